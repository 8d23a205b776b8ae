// A thread works on kVector neighbouring entries: two 16-byte accesses of float32, one of a half type.
#pragma once

#include "../math/dtype.h"
#include "../math/tensors.h"
#include "launch.h"

namespace pruneops::cuda {

constexpr int kVector = 8;

// f(at, n) for the vectors that this thread has of the entries [begin, end).
template <class F>
__device__ __forceinline__ void for_each_vector(int64_t begin, int64_t end, const F& f) {
  for (int64_t at = begin + threadIdx.x * kVector; at < end; at += kThreads * kVector) {
    f(at, static_cast<int>(min64(kVector, end - at)));
  }
}

template <class T>
__device__ __forceinline__ bool is_aligned(const T* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Copies kVector words between memory and registers in the widest accesses that their size allows.
template <class Word>
struct Vector {
  static constexpr int kBytes = kVector * static_cast<int>(sizeof(Word));
  static constexpr int kAlign = kBytes < 16 ? kBytes : 16;
  Word words[kVector];

  __device__ __forceinline__ void load(const Word* source) {
    if constexpr (kBytes >= 16) {
      uint4 raw[kBytes / 16];
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) raw[i] = reinterpret_cast<const uint4*>(source)[i];
      memcpy(words, raw, kBytes);
    } else {
      const uint2 raw = *reinterpret_cast<const uint2*>(source);
      memcpy(words, &raw, kBytes);
    }
  }
  __device__ __forceinline__ void store(Word* target) const {
    if constexpr (kBytes >= 16) {
      uint4 raw[kBytes / 16];
      memcpy(raw, words, kBytes);
      // A plain store of 16 bytes may be taken apart again where the words are at hand.
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) __stcg(reinterpret_cast<uint4*>(target) + i, raw[i]);
    } else {
      uint2 raw;
      memcpy(&raw, words, kBytes);
      *reinterpret_cast<uint2*>(target) = raw;
    }
  }
};

// Words [at, at + n), n at most kVector; what lies past n is 0.
template <class Word>
__device__ __forceinline__ Vector<Word> load_words(const Word* source, int n) {
  Vector<Word> v;
  if (n == kVector && is_aligned(source, Vector<Word>::kAlign)) {
    v.load(source);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) v.words[i] = i < n ? source[i] : Word(0);
  }
  return v;
}

template <class Word>
__device__ __forceinline__ void store_words(Word* target, int n, const Vector<Word>& v) {
  if (n == kVector && is_aligned(target, Vector<Word>::kAlign)) {
    v.store(target);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < n) target[i] = v.words[i];
    }
  }
}

// The bytes [0, n) of a mask: any but 0 keeps. They are not read as bool, whose other values are undefined.
__device__ __forceinline__ Vector<bool> load_mask(const uint8_t* mask, int n) {
  const auto bytes = load_words(mask, n);
  Vector<bool> keep;
#pragma unroll
  for (int i = 0; i < kVector; ++i) keep.words[i] = bytes.words[i] != 0;
  return keep;
}

// The first n of kVector bits, lowest first.
__device__ __forceinline__ uint8_t pack_byte(const Vector<bool>& keep, int n) {
  unsigned byte = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) byte |= static_cast<unsigned>(i < n && keep.words[i]) << i;
  return static_cast<uint8_t>(byte);
}

// Entries [at, at + n) of `data`, from T.
template <class T>
__device__ __forceinline__ void store_entries(void* data, Dtype dtype, int64_t at, int n,
                                              const T (&values)[kVector]) {
  visit_dtype_of<T>(dtype, [&](auto element) {
    using E = decltype(element);
    Vector<typename E::type> v;
#pragma unroll
    for (int i = 0; i < kVector; ++i) v.words[i] = E::template store<T>(values[i]);
    store_words(static_cast<typename E::type*>(data) + at, n, v);
  });
}

// v of kVector entries from what the metric reads.
template <class T>
__device__ __forceinline__ void values_of(Metric metric, const T (&w)[kVector], const T (&g)[kVector],
                                          const T (&norm)[kVector], T (&v)[kVector]) {
  visit_metric(metric, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      v[i] = element_value<T>(decltype(constant)::value, w[i], g[i], norm[i]);
    }
  });
}

// The input norms of the columns of the entries [at, at + n) of a selection.
template <class T>
__device__ __forceinline__ void load_norms(const SelectTensor& t, int64_t at, int n, T (&out)[kVector]) {
  int64_t col = at % t.cols;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < n) out[i] = static_cast<T>(t.norm[col]);
    col = col + 1 == t.cols ? 0 : col + 1;
  }
}

}  // namespace pruneops::cuda
