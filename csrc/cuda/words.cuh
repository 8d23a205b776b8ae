// A thread's vector in 32-bit registers: entries as they lie in memory, and the bytes of their mask. Taken
// apart into entries of fewer bits, each would cost a register and instructions of its own.
#pragma once

#include "vector.cuh"

namespace pruneops::cuda {

// kVector entries of an Element's type, as they lie in memory.
template <class E>
struct RawVector {
  static constexpr int kWords = kVector * static_cast<int>(sizeof(typename E::type)) / 4;
  Vector<typename E::type> entries;

  __device__ __forceinline__ void load(const void* data, int64_t at) {
    entries.load(static_cast<const typename E::type*>(data) + at);
  }
  // The entries as T. Both bfloat16 of a word are floats after one operation.
  template <class T>
  __device__ __forceinline__ void convert(T (&out)[kVector]) const {
    if constexpr (std::is_same_v<E, Element<Dtype::bf16>>) {
      uint32_t words[kWords];
      memcpy(words, entries.words, sizeof(words));
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        out[2 * w] = static_cast<T>(bit_cast<float>(words[w] << 16));
        out[2 * w + 1] = static_cast<T>(bit_cast<float>(words[w] & 0xffff0000u));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) out[i] = E::template load<T>(entries.words[i]);
    }
  }
};

// The mask of kVector entries: a byte of 0 or 1 for each, lowest first.
struct MaskWords {
  static constexpr int kBytes = 4;
  static constexpr uint32_t kOnes = 0x01010101u;
  uint32_t words[kVector / kBytes];

  __device__ __forceinline__ static constexpr uint32_t one(int i) {
    return uint32_t(1) << (8 * (i % kBytes));
  }
  // A bit for each entry: the product brings those of a word side by side, with no carry among them.
  __device__ __forceinline__ unsigned bits() const {
    unsigned all = 0;
#pragma unroll
    for (int w = 0; w < kVector / kBytes; ++w) all |= (words[w] * 0x10204080u) >> 28 << (kBytes * w);
    return all;
  }
};

// Writes the mask of the entries [at, at + n); at is a multiple of kVector where it is packed.
__device__ __forceinline__ void store_mask(const SelectTensor& t, int64_t at, int n, const MaskWords& keep) {
  if (t.packed) {
    t.mask[at / kVector] = static_cast<uint8_t>(keep.bits() & ((1u << n) - 1));
  } else if (n == kVector && is_aligned(t.mask + at, kVector)) {
    *reinterpret_cast<uint2*>(t.mask + at) = {keep.words[0], keep.words[1]};
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const uint32_t byte = keep.words[i / MaskWords::kBytes] >> (8 * (i % MaskWords::kBytes));
      if (i < n) t.mask[at + i] = static_cast<uint8_t>(byte & 1);
    }
  }
}

}  // namespace pruneops::cuda
