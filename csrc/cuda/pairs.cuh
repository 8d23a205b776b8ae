// Two bfloat16 in a register, as they lie in memory; compared at once where the device can, from compute
// capability 9.0 on.
#pragma once

#include "words.cuh"

#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
#define PRUNEOPS_PAIRS
#else
#define PRUNEOPS_NO_PAIRS
#endif
#endif

namespace pruneops::cuda {

// Whether that is worth comparing one score several times.
#if defined(PRUNEOPS_NO_PAIRS)
constexpr bool kHasPairs = false;
#else
constexpr bool kHasPairs = true;
#endif

constexpr uint32_t kPairOfNan = 0x7fff7fffu;

__device__ __forceinline__ float first_of(uint32_t pair) {
  return bit_cast<float>(pair << 16);
}
__device__ __forceinline__ float second_of(uint32_t pair) {
  return bit_cast<float>(pair & 0xffff0000u);
}

// Of two floats that are bfloat16.
__device__ __forceinline__ uint32_t pair_of(float first, float second) {
  return bit_cast<uint32_t>(first) >> 16 | bit_cast<uint32_t>(second);
}

// The lowest bfloat16 that is not below a threshold, twice: no other compares differently with either.
__device__ __forceinline__ uint32_t pair_from(float threshold) {
  if (threshold != threshold) return kPairOfNan;
  const auto bits = bit_cast<uint32_t>(threshold);
  const uint32_t half = (bits + (bits >> 31 != 0 ? 0 : 0xffffu)) >> 16;
  return half | half << 16;
}

// 0xffff in place of each of a pair that is not below the threshold's.
__device__ __forceinline__ uint32_t are_from(uint32_t pair, uint32_t threshold) {
#if defined(PRUNEOPS_PAIRS)
  uint32_t marks;
  asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(marks) : "r"(pair), "r"(threshold));
  return marks;
#else
  return (first_of(pair) >= first_of(threshold) ? 0xffffu : 0u) |
         (second_of(pair) >= second_of(threshold) ? 0xffff0000u : 0u);
#endif
}

// The lower or, with kHigher, the higher of each of two pairs; of a number and NaN the number.
template <bool kHigher>
__device__ __forceinline__ uint32_t outer_of(uint32_t one, uint32_t other) {
#if defined(PRUNEOPS_PAIRS)
  if constexpr (kHigher) {
    asm("max.bf16x2 %0, %0, %1;" : "+r"(one) : "r"(other));
  } else {
    asm("min.bf16x2 %0, %0, %1;" : "+r"(one) : "r"(other));
  }
  return one;
#else
  const auto outer = [](float a, float b) { return kHigher ? fmaxf(a, b) : fminf(a, b); };
  return pair_of(outer(first_of(one), first_of(other)), outer(second_of(one), second_of(other)));
#endif
}

// How many of a thread's are not below a threshold.
template <int kCount, int kPairs>
__device__ __forceinline__ int count_from(const uint32_t (&pairs)[kCount][kPairs], uint32_t threshold) {
#if defined(PRUNEOPS_PAIRS)
  // Each comparison is a pair of 1 or 0, and their sums are exact up to 256. One for each place of a vector,
  // as an addition waits for the one before.
  static_assert(kCount * kPairs <= 256, "sums of bfloat16");
  uint32_t sums[kPairs] = {};
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      uint32_t ones;
      asm("set.ge.bf16x2.bf16x2 %0, %1, %2;" : "=r"(ones) : "r"(pairs[v][p]), "r"(threshold));
      asm("add.rn.bf16x2 %0, %0, %1;" : "+r"(sums[p]) : "r"(ones));
    }
  }
#pragma unroll
  for (int p = 1; p < kPairs; ++p) asm("add.rn.bf16x2 %0, %0, %1;" : "+r"(sums[0]) : "r"(sums[p]));
  return static_cast<int>(first_of(sums[0]) + second_of(sums[0]));
#else
  int count = 0;
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      count += first_of(pairs[v][p]) >= first_of(threshold);
      count += second_of(pairs[v][p]) >= second_of(threshold);
    }
  }
  return count;
#endif
}

// The lowest of a thread's from `low` on and the highest below `high`, where one is farther out than it was;
// all are, of a NaN.
template <int kCount, int kPairs>
__device__ __forceinline__ void ends_between(const uint32_t (&pairs)[kCount][kPairs], float low, float high,
                                             float& lowest, float& highest) {
  const uint32_t all = low != low ? ~0u : 0u, from = pair_from(low), behind = pair_from(high);
  const uint32_t first = pair_from(lowest), last = pair_from(highest);
  uint32_t lowest_two = first, highest_two = last;
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const uint32_t pair = pairs[v][p], is_from = are_from(pair, from) | all,
                     is_behind = are_from(pair, behind);
      lowest_two = outer_of<false>((pair & is_from) | (first & ~is_from), lowest_two);
      highest_two = outer_of<true>((pair & ~is_behind) | (last & is_behind), highest_two);
    }
  }
  lowest = fminf(first_of(lowest_two), second_of(lowest_two));
  highest = fmaxf(first_of(highest_two), second_of(highest_two));
}

// Whether any of a vector is not below `low`, but below `behind`.
__device__ __forceinline__ bool any_between(const uint32_t (&pairs)[kVector / 2], uint32_t low,
                                            uint32_t behind) {
  uint32_t any = 0;
#pragma unroll
  for (int p = 0; p < kVector / 2; ++p) any |= are_from(pairs[p], low) ^ are_from(pairs[p], behind);
  return any != 0;
}

// The first byte of each of four marks, side by side.
__device__ __forceinline__ uint32_t bytes_of(uint32_t low, uint32_t high) {
  return __byte_perm(low, high, 0x6420);
}

// The mask of a vector: what is not below a threshold.
__device__ __forceinline__ MaskWords mask_from(const uint32_t (&pairs)[kVector / 2], uint32_t threshold) {
  MaskWords mask;
#pragma unroll
  for (int w = 0; w < MaskWords::kWords; ++w) {
    const uint32_t low = are_from(pairs[2 * w], threshold), high = are_from(pairs[2 * w + 1], threshold);
    mask.words[w] = bytes_of(low, high) & MaskWords::kOnes;
  }
  return mask;
}

}  // namespace pruneops::cuda
