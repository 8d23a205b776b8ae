// A thread works on kVector neighbouring entries: two 16-byte accesses of float32, one of a half type.
#pragma once

#include <type_traits>

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

// Copies neighbouring words between memory and registers in the widest accesses that their size allows.
template <class Word, int kCount = kVector>
struct Vector {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(Word));
  static constexpr int kAlign = kBytes < 16 ? kBytes : 16;
  using Wide = std::conditional_t<
      kBytes >= 16, uint4,
      std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
  static constexpr int kWide = kBytes / static_cast<int>(sizeof(Wide));
  Word words[kCount];

  __device__ __forceinline__ void load(const Word* source) {
    Wide raw[kWide];
#pragma unroll
    for (int i = 0; i < kWide; ++i) raw[i] = reinterpret_cast<const Wide*>(source)[i];
    memcpy(words, raw, kBytes);
  }
  __device__ __forceinline__ void store(Word* target) const {
    Wide raw[kWide];
    memcpy(raw, words, kBytes);
    // A plain store of 16 bytes may be taken apart again where the words are at hand.
#pragma unroll
    for (int i = 0; i < kWide; ++i) __stcg(reinterpret_cast<Wide*>(target) + i, raw[i]);
  }
};

// Words [at, at + n), n at most kCount; what lies past n is 0.
template <int kCount = kVector, class Word>
__device__ __forceinline__ Vector<Word, kCount> load_words(const Word* source, int n) {
  Vector<Word, kCount> v;
  if (n == kCount && is_aligned(source, v.kAlign)) {
    v.load(source);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v.words[i] = i < n ? source[i] : Word(0);
  }
  return v;
}

template <class Word, int kCount>
__device__ __forceinline__ void store_words(Word* target, int n, const Vector<Word, kCount>& v) {
  if (n == kCount && is_aligned(target, v.kAlign)) {
    v.store(target);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < n) target[i] = v.words[i];
    }
  }
}

// Entries [at, at + n) of `data` as T,
template <class T, int kCount>
__device__ __forceinline__ void load_few(const void* data, Dtype dtype, int64_t at, int n,
                                         T (&values)[kCount]) {
  visit_dtype_of<T>(dtype, [&](auto element) {
    using E = decltype(element);
    const auto v = load_words<kCount>(static_cast<const typename E::type*>(data) + at, n);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = E::template load<T>(v.words[i]);
  });
}

// and from T.
template <class T, int kCount>
__device__ __forceinline__ void store_entries(void* data, Dtype dtype, int64_t at, int n,
                                              const T (&values)[kCount]) {
  visit_dtype_of<T>(dtype, [&](auto element) {
    using E = decltype(element);
    Vector<typename E::type, kCount> v;
#pragma unroll
    for (int i = 0; i < kCount; ++i) v.words[i] = E::template store<T>(values[i]);
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
