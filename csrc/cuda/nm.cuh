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

// Puts the higher of two keys first.
template <class K>
__device__ __forceinline__ void put_in_order(K& first, K& second) {
  const K lower = first < second ? first : second;
  first = first < second ? second : first;
  second = lower;
}

// Sorts each 2 * kApart of a lane's keys, highest first, where these rise and then fall or are a rotation of
// such keys, as halves are of which one has been kept of two sorted runs.
template <int kApart, class K>
__device__ __forceinline__ void merge_own(K (&keys)[kVector]) {
  if constexpr (kApart > 0) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if ((i & kApart) == 0) put_in_order(keys[i], keys[i + kApart]);
    }
    merge_own<kApart / 2>(keys);
  }
}

// Sorts each kSize of a lane's keys, highest first (bitonic, Batcher 1968).
template <int kSize, class K>
__device__ __forceinline__ void sort_own(K (&keys)[kVector]) {
  if constexpr (kSize > 1) {
    sort_own<kSize / 2>(keys);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int mirrored = i ^ (kSize - 1);
      if (i < mirrored) put_in_order(keys[i], keys[mirrored]);
    }
    merge_own<kSize / 4>(keys);
  }
}

// Keeps the higher keys in one of two lanes and the lower in the other; the other's come in reverse where two
// sorted sequences meet, and as they are within one.
template <bool kReverse, class K>
__device__ __forceinline__ void meet(K (&keys)[kVector], int lanes_apart, bool keeps_higher) {
  K others[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    others[i] = __shfl_xor_sync(kAllLanes, keys[kReverse ? kVector - 1 - i : i], lanes_apart);
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) keys[i] = (keys[i] > others[i]) == keeps_higher ? keys[i] : others[i];
}

// The same with the keys of kLanes neighbouring lanes.
template <int kLanes, class K>
__device__ __forceinline__ void sort_lanes(K (&keys)[kVector]) {
  const int lane = threadIdx.x % kWarp;
  sort_own<kVector>(keys);
#pragma unroll
  for (int lanes = 2; lanes <= kLanes; lanes *= 2) {
    meet<true>(keys, lanes - 1, (lane & lanes / 2) == 0);
#pragma unroll
    for (int apart = lanes / 4; apart > 0; apart /= 2) meet<false>(keys, apart, (lane & apart) == 0);
    merge_own<kVector / 2>(keys);
  }
}

// Keeps the n best of the scores that kLanes neighbouring lanes hold.
template <int kLanes, class T>
__device__ __forceinline__ MaskWords keep_best_of_lanes(const T (&scores)[kVector], int n) {
  constexpr unsigned kShift = 16;  // ties are counted above those that are better
  const int lane = threadIdx.x % kWarp, lane_of_group = lane % kLanes;
  Key<T> keys[kVector], sorted[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) keys[i] = sorted[i] = sort_key(scores[i]);
  sort_lanes<kLanes>(sorted);
  // Of the lane that holds the n-th best: halved three times, as an index would put the keys into memory.
  const int last = n > 0 ? n - 1 : 0, place = last % kVector;
#pragma unroll
  for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) sorted[i] = (place & half) != 0 ? sorted[i + half] : sorted[i];
  }
  Key<T> threshold = __shfl_sync(kAllLanes, sorted[0], lane - lane_of_group + last / kVector);
  if (n == 0) threshold = ~Key<T>(0);  // no score has this key
  unsigned own = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) own += (keys[i] > threshold) + ((keys[i] == threshold) << kShift);
  unsigned up_to = own;
#pragma unroll
  for (int apart = 1; apart < kLanes; apart *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, up_to, apart);
    if (lane_of_group >= apart) up_to += before;
  }
  const unsigned total = __shfl_sync(kAllLanes, up_to, lane - lane_of_group + kLanes - 1);
  int ties = n - static_cast<int>(total & ((1u << kShift) - 1)) - static_cast<int>((up_to - own) >> kShift);
  return mask_where([&](int i) { return keys[i] > threshold || (keys[i] == threshold && ties-- > 0); });
}

// Groups of a power of two entries up to 32 lie within a thread's vector, or those of neighbouring lanes.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    nm_vector_kernel(const SelectTensor t, const Metric metric, const int64_t n) {
  constexpr int64_t kStep = kThreads * kVector;
  const bool at_hand = (metric == Metric::stored || metric == Metric::magnitude) && is_aligned(t.weight, 16);
  const auto write = [&](int64_t at, int entries, const T(&scores)[kVector]) {
    MaskWords mask;
    if constexpr (kGroup <= kVector) {
      mask = keep_best<kGroup>(scores, static_cast<int>(n));
    } else {
      mask = keep_best_of_lanes<kGroup / kVector>(scores, static_cast<int>(n));
    }
    if (entries > 0) store_mask(t, at, entries, mask);
  };
  // Lanes meet: those of a warp go the same way.
  const int64_t of_warp = threadIdx.x / kWarp * kWarp * kVector, of_lane = threadIdx.x % kWarp * kVector;
  for (int64_t begin = blockIdx.x * kNmTile + of_warp; begin < t.numel; begin += gridDim.x * kNmTile) {
    const int64_t first = begin + of_lane;
    if (at_hand && begin + (kNmVectors - 1) * kStep + kWarp * kVector <= t.numel) {
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
    for (int64_t step = 0; step < kNmTile && begin + step < t.numel; step += kStep) {
      const int64_t at = first + step;
      const int entries = at < t.numel ? static_cast<int>(min64(kVector, t.numel - at)) : 0;
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
