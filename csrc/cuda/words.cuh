// A thread's vector in 32-bit registers: entries as they lie in memory, and the bytes of their mask. Taken
// apart into entries of fewer bits, each would cost a register and instructions of its own.
#pragma once

#include <type_traits>

#include "vector.cuh"

namespace pruneops::cuda {

// kVector entries of an Element's type, as they lie in memory.
template <class E>
struct RawVector {
  using Entry = typename E::type;
  static constexpr int kWords = kVector * static_cast<int>(sizeof(Entry)) / 4;
  static constexpr uint32_t kAllButSigns = sizeof(Entry) == 2 ? 0x7fff7fffu : 0x7fffffffu;
  uint32_t words[kWords];

  static __device__ __forceinline__ bool can_load(const void* data, int64_t at) {
    return is_aligned(static_cast<const Entry*>(data) + at, 16);
  }
  // All entries from `at` on, where that is aligned,
  __device__ __forceinline__ void load(const void* data, int64_t at) {
    const auto* source = reinterpret_cast<const uint4*>(static_cast<const Entry*>(data) + at);
#pragma unroll
    for (int w = 0; w < kWords; w += 4) {
      const uint4 four = source[w / 4];
      words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
    }
  }
  // or n of them; what lies past n is 0.
  __device__ __forceinline__ void load(const void* data, int64_t at, int n) {
    if (n == kVector && can_load(data, at)) return load(data, at);
    const Entry* source = static_cast<const Entry*>(data) + at;
    Entry entries[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) entries[i] = i < n ? source[i] : Entry(0);
    memcpy(words, entries, sizeof(words));
  }
  __device__ __forceinline__ void take_magnitudes() {
    static_assert(sizeof(Entry) <= 4, "each word has signs");
#pragma unroll
    for (uint32_t& word : words) word &= kAllButSigns;
  }
  // The entries as T. Both bfloat16 of a word are floats after one operation.
  template <class T>
  __device__ __forceinline__ void convert(T (&out)[kVector]) const {
    if constexpr (std::is_same_v<E, Element<Dtype::bf16>>) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        out[2 * w] = static_cast<T>(bit_cast<float>(words[w] << 16));
        out[2 * w + 1] = static_cast<T>(bit_cast<float>(words[w] & 0xffff0000u));
      }
    } else {
      Entry entries[kVector];
      memcpy(entries, words, sizeof(words));
#pragma unroll
      for (int i = 0; i < kVector; ++i) out[i] = E::template load<T>(entries[i]);
    }
  }
};

// Entries [at, at + n) of `data` as T.
template <class T>
__device__ __forceinline__ void load_entries(const void* data, Dtype dtype, int64_t at, int n,
                                             T (&out)[kVector]) {
  visit_dtype_of<T>(dtype, [&](auto element) {
    RawVector<decltype(element)> raw;
    raw.load(data, at, n);
    raw.convert(out);
  });
}

// kVector entries of a dtype that is known at run time, as they lie in memory. Converting them waits for
// them, so that what a thread reads of several tensors is asked for before any of it is converted.
template <class T>
struct AnyVector {
  uint32_t words[kVector * sizeof(T) / 4] = {};

  // Entries [at, at + n) of `data`.
  __device__ __forceinline__ void load(const void* data, Dtype dtype, int64_t at, int n) {
    if constexpr (sizeof(T) == sizeof(double)) {
      if (dtype == Dtype::f64) return load_as<Element<Dtype::f64>>(data, at, n);
    }
    // Half types lie in memory alike.
    dtype == Dtype::f32 ? load_as<Element<Dtype::f32>>(data, at, n)
                        : load_as<Element<Dtype::bf16>>(data, at, n);
  }
  __device__ __forceinline__ void convert(Dtype dtype, T (&out)[kVector]) const {
    visit_dtype_of<T>(dtype, [&](auto element) {
      RawVector<decltype(element)> raw;
      memcpy(raw.words, words, sizeof(raw.words));
      raw.convert(out);
    });
  }

 private:
  template <class E>
  __device__ __forceinline__ void load_as(const void* data, int64_t at, int n) {
    RawVector<E> raw;
    raw.load(data, at, n);
    memcpy(words, raw.words, sizeof(raw.words));
  }
};

// The mask of kVector entries: a byte of 0 or 1 for each, lowest first.
struct MaskWords {
  static constexpr int kBytes = 4;
  static constexpr int kWords = kVector / kBytes;
  static constexpr uint32_t kOnes = 0x01010101u;
  uint32_t words[kWords];

  __device__ __forceinline__ static constexpr uint32_t one(int i) {
    return uint32_t(1) << (8 * (i % kBytes));
  }
  __device__ __forceinline__ uint8_t byte(int i) const {
    return static_cast<uint8_t>(words[i / kBytes] >> (8 * (i % kBytes)));
  }
  // The kVector bytes of a mask from an aligned place on,
  static __device__ __forceinline__ MaskWords load(const uint8_t* mask) {
    const uint2 both = *reinterpret_cast<const uint2*>(mask);
    return {{both.x, both.y}};
  }
  // or n of them from anywhere; those past n are 0.
  static __device__ __forceinline__ MaskWords load(const uint8_t* mask, int n) {
    if (n == kVector && is_aligned(mask, kVector)) return load(mask);
    MaskWords loaded{};
#pragma unroll
    for (int i = 0; i < kVector; ++i) loaded.words[i / kBytes] |= i < n ? mask[i] * one(i) : 0u;
    return loaded;
  }
  // A byte for each of kVector bits: the product puts one copy of four bits where each has its byte.
  static __device__ __forceinline__ MaskWords of_bits(unsigned bits) {
    MaskWords mask;
#pragma unroll
    for (int w = 0; w < kWords; ++w) mask.words[w] = ((bits >> (kBytes * w) & 0xfu) * 0x00204081u) & kOnes;
    return mask;
  }
  // All kept, or none.
  static __device__ __forceinline__ MaskWords all(bool keep) {
    MaskWords mask;
#pragma unroll
    for (int w = 0; w < kWords; ++w) mask.words[w] = keep ? kOnes : 0u;
    return mask;
  }
  // 1 for each byte that is not 0, as any but 0 keeps: the sum carries into the top bit of such a byte.
  __device__ __forceinline__ MaskWords ones() const {
    constexpr uint32_t kLow = 0x7fu * kOnes;
    MaskWords mask;
#pragma unroll
    for (int w = 0; w < kWords; ++w) mask.words[w] = (((words[w] & kLow) + kLow) | words[w]) >> 7 & kOnes;
    return mask;
  }
  // Hides from the compiler what the words are made of, so that it makes them at once, three terms to an
  // operation, and keeps no term for a store of single bytes.
  __device__ __forceinline__ void close() {
#pragma unroll
    for (int w = 0; w < kVector / kBytes; ++w) asm("" : "+r"(words[w]));
  }
  // All bytes, where that is aligned,
  __device__ __forceinline__ void store(uint8_t* target) const {
    *reinterpret_cast<uint2*>(target) = {words[0], words[1]};
  }
  // or n of them anywhere.
  __device__ __forceinline__ void store(uint8_t* target, int n) const {
    if (n == kVector && is_aligned(target, kVector)) return store(target);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < n) target[i] = byte(i);
    }
  }
  // A bit for each of the first n: the product brings those of a word side by side, with no carry among them.
  __device__ __forceinline__ unsigned bits(int n) const {
    unsigned all = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) all |= (words[w] * 0x10204080u) >> 28 << (kBytes * w);
    return all & ((1u << n) - 1);
  }
  // How many entries are kept.
  __device__ __forceinline__ int count() const { return __popc(words[0]) + __popc(words[1]); }
  // The same where many masks are counted in turn, which is what popc is slow at: a product adds the bytes.
  __device__ __forceinline__ int sum() const {
    return static_cast<int>(((words[0] + words[1]) * kOnes) >> 24);
  }
  // Those of the first n.
  __device__ __forceinline__ int count(int n) const { return n == kVector ? count() : __popc(bits(n)); }
};

// keep(i) for each entry, beside `others`.
template <class F>
__device__ __forceinline__ MaskWords mask_where(const F& keep, uint32_t others = 0) {
  MaskWords mask;
#pragma unroll
  for (int i = 0; i < kVector; i += MaskWords::kBytes) mask.words[i / MaskWords::kBytes] = others;
#pragma unroll
  for (int i = 0; i < kVector; ++i) mask.words[i / MaskWords::kBytes] |= keep(i) ? MaskWords::one(i) : 0u;
  mask.close();
  return mask;
}

// Writes the mask of the entries [at, at + n) of a selection; at is a multiple of kVector where it is packed.
template <class Tensor>
__device__ __forceinline__ void store_mask(const Tensor& t, int64_t at, int n, const MaskWords& mask) {
  if (t.packed) {
    t.mask[static_cast<uint64_t>(at) / kVector] = static_cast<uint8_t>(mask.bits(n));
  } else {
    mask.store(t.mask + at, n);
  }
}

// The scores [at, at + n) of a selection, stored or made on the fly.
template <class T>
__device__ __forceinline__ void load_scores(const SelectTensor& t, Metric metric, int64_t at, int n,
                                            T (&out)[kVector]) {
  T w[kVector] = {}, g[kVector] = {}, norm[kVector] = {};
  if (reads_weight(metric)) load_entries(t.weight, t.weight_dtype, at, n, w);
  if (reads_grad(metric)) load_entries(t.grad, t.grad_dtype, at, n, g);
  if (metric == Metric::wanda) load_norms(t, at, n, norm);
  values_of(metric, w, g, norm, out);
}

}  // namespace pruneops::cuda
