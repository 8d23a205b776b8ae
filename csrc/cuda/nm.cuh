// N:M masks: n of each m consecutive entries.
#pragma once

#include "../math/group.h"
#include "tile.cuh"

namespace pruneops::cuda {

// Groups of 1, 2, 4 or 8 entries lie within a thread's vector: their ranks are counted in registers.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    nm_vector_kernel(const SelectTensor t, const Metric metric, const int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector; at < t.numel;
       at += step) {
    const int entries = static_cast<int>(min64(kVector, t.numel - at));
    Key<T> keys[kVector];
    load_keys<T>(t, metric, at, entries, keys);
    Vector<bool> keep;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      int rank = 0;
#pragma unroll
      for (int j = i / kGroup * kGroup; j < (i / kGroup + 1) * kGroup; ++j) {
        rank += goes_before(keys[j], j, keys[i], i);
      }
      keep.words[i] = rank < n;
    }
    store_mask(t, at, entries, keep);
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
