// N:M masks: n of each m consecutive entries.
#pragma once

#include "../math/group.h"
#include "tile.cuh"
#include "words.cuh"

namespace pruneops::cuda {

// Vectors that a thread has under way before it uses the first.
constexpr int kNmVectors = 4;
constexpr int64_t kNmTile = kNmVectors * kThreads * kVector;

// Keeps the n best of each kGroup scores of a vector. How many of its group are behind an entry is counted in
// the byte of the mask: a pair is compared once, and one addition tells both. A byte starts where its entry
// is behind all later ones, so far below 128 that the top bit tells the n best.
template <int kGroup, class T>
__device__ __forceinline__ MaskWords keep_best(const T (&scores)[kVector], int n) {
  constexpr int kBytes = MaskWords::kBytes;
  MaskWords mask;
#pragma unroll
  for (int w = 0; w < MaskWords::kWords; ++w) {
    mask.words[w] = (128u + static_cast<unsigned>(n) - kGroup) * MaskWords::kOnes;
#pragma unroll
    for (int i = w * kBytes; i < (w + 1) * kBytes; ++i) mask.words[w] += i % kGroup * MaskWords::one(i);
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
#pragma unroll
    for (int j = i + 1; j < (i / kGroup + 1) * kGroup; ++j) {
      if (!earlier_goes_before(scores[i], scores[j])) continue;
      if (i / kBytes == j / kBytes) {
        mask.words[i / kBytes] += MaskWords::one(i) - MaskWords::one(j);
      } else {
        mask.words[i / kBytes] += MaskWords::one(i);
        mask.words[j / kBytes] -= MaskWords::one(j);
      }
    }
  }
#pragma unroll
  for (int w = 0; w < MaskWords::kWords; ++w) mask.words[w] = (mask.words[w] >> 7) & MaskWords::kOnes;
  return mask;
}

// Groups of 1, 2, 4 or 8 entries lie within a thread's vector.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    nm_vector_kernel(const SelectTensor t, const Metric metric, const int64_t n) {
  constexpr int64_t kStep = kThreads * kVector;
  const bool at_hand = (metric == Metric::stored || metric == Metric::magnitude) && is_aligned(t.weight, 16);
  const auto write = [&](int64_t at, int entries, const T(&scores)[kVector]) {
    store_mask(t, at, entries, keep_best<kGroup>(scores, static_cast<int>(n)));
  };
  for (int64_t first = blockIdx.x * kNmTile + threadIdx.x * kVector; first < t.numel;
       first += gridDim.x * kNmTile) {
    if (at_hand && first + (kNmVectors - 1) * kStep + kVector <= t.numel) {
      visit_dtype_of<T>(t.weight_dtype, [&](auto element) {
        RawVector<decltype(element)> raw[kNmVectors];
#pragma unroll
        for (int v = 0; v < kNmVectors; ++v) raw[v].load(t.weight, first + v * kStep);
#pragma unroll
        for (int v = 0; v < kNmVectors; ++v) {
          T scores[kVector];
          raw[v].convert(scores);
          if (metric == Metric::magnitude) {
#pragma unroll
            for (int i = 0; i < kVector; ++i) scores[i] = magnitude_of(scores[i]);
          }
          write(first + v * kStep, kVector, scores);
        }
      });
      continue;
    }
#pragma unroll 1
    for (int64_t at = first; at < min64(t.numel, first + kNmTile); at += kStep) {
      const int entries = static_cast<int>(min64(kVector, t.numel - at));
      T scores[kVector];
      load_scores(t, metric, at, entries, scores);
      write(at, entries, scores);
    }
  }
}

// Other groups of up to a warp's width: each lane holds one entry and meets the others of its group by
// shuffles.
template <class T>
__global__ void __launch_bounds__(kThreads)
    nm_warp_kernel(const SelectTensor t, const Metric metric, const int64_t n, const int m) {
  const int lane = threadIdx.x % kWarp, groups = kWarp / m, group = lane / m;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps * groups * m;
  for (int64_t base = warp * groups * m; base < t.numel; base += step) {
    const int64_t at = base + lane;
    const bool holds = group < groups && at < t.numel;
    Key<T> key = 0;
    if (holds) {
      Key<T> keys[kVector];
      load_keys<T>(t, metric, at, 1, keys);
      key = keys[0];
    }
    int64_t rank = 0;
    for (int j = 0; j < m; ++j) {
      const Key<T> other = __shfl_sync(kAllLanes, key, (group * m + j) % kWarp);
      rank += goes_before(other, j, key, lane - group * m);
    }
    const bool keep = holds && rank < n;
    // Groups that are packed fill bytes, so that each byte lies within one warp.
    const unsigned kept = __ballot_sync(kAllLanes, keep);
    if (!t.packed) {
      if (holds) t.mask[at] = keep;
    } else if (holds && lane % 8 == 0) {
      t.mask[at / 8] = static_cast<uint8_t>(kept >> lane);
    }
  }
}

}  // namespace pruneops::cuda
