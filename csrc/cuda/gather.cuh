// Slabs of a tensor by importance. Instances are few (heads, neurons), so their ranks are counted, not
// sorted.
#pragma once

#include "../math/group.h"
#include "../math/order.h"
#include "../math/tensors.h"
#include "block_scan.cuh"

namespace pruneops::cuda {

__global__ void __launch_bounds__(kThreads)
    importance_keys_kernel(const void* importance, const Dtype dtype, unsigned long long* keys,
                           const int64_t instances) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < instances; i += step) {
    visit_dtype(dtype, [&](auto element) {
      using E = decltype(element);
      keys[i] = sort_key(E::template load<double>(static_cast<const typename E::type*>(importance)[i]));
    });
  }
}

// One thread block an instance: its rank is the number of instances that go before it, and its place among
// the kept ones is that rank, or the number of kept ones with a lower index.
__device__ __forceinline__ int64_t rank_of(const unsigned long long* keys, int64_t instances, int64_t i,
                                           long long (&partial)[kWarps]) {
  long long before = 0;
  for (int64_t j = threadIdx.x; j < instances; j += kThreads) before += goes_before(keys[j], j, keys[i], i);
  return block_scan(before, partial).total;
}

__global__ void __launch_bounds__(kThreads)
    rank_instances_kernel(const unsigned long long* keys, const int64_t instances, int64_t* ranks) {
  __shared__ long long partial[kWarps];
  for (int64_t i = blockIdx.x; i < instances; i += gridDim.x) {
    const int64_t rank = rank_of(keys, instances, i, partial);
    if (threadIdx.x == 0) ranks[i] = rank;
  }
}

__global__ void __launch_bounds__(kThreads)
    place_instances_kernel(const int64_t* ranks, const int64_t instances, const int64_t kept,
                           const bool original_order, int64_t* order) {
  __shared__ long long partial[kWarps];
  for (int64_t i = blockIdx.x; i < instances; i += gridDim.x) {
    if (ranks[i] >= kept) continue;
    int64_t place = ranks[i];
    if (original_order) {
      long long before = 0;
      for (int64_t j = threadIdx.x; j < i; j += kThreads) before += ranks[j] < kept;
      place = block_scan(before, partial).total;
    }
    if (threadIdx.x == 0) order[place] = i;
  }
}

template <class Word>
__global__ void __launch_bounds__(kThreads) copy_slabs_kernel(const SlabTensor t, const int64_t* order) {
  const int64_t words = t.slab_bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t total = t.outer * t.kept * words, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < total; at += step) {
    const int64_t slab = at / words, outer = slab / t.kept;
    const int64_t from = (outer * t.instances + order[slab % t.kept]) * words + at % words;
    static_cast<Word*>(t.target)[at] = static_cast<const Word*>(t.source)[from];
  }
}

}  // namespace pruneops::cuda
