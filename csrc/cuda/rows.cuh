// Exact selection in each row: one thread block a row, whose rounds of counts stay in shared memory. Any row
// length.
#pragma once

#include "select.cuh"

namespace pruneops::cuda {

template <class K>
using RowRadix = Radix<K, 8>;
static_assert(RowRadix<uint32_t>::kBins == kThreads, "one thread for each bin");

template <class K>
struct RowShared {
  unsigned long long counts[kThreads];
  long long partial[kWarps];
  unsigned long long ties_partial[kWarps];
  Selection<K> selection;
};

// Counts the digits of the row [begin, end) and decides a round. Every thread of the block calls it.
template <class T>
__device__ __forceinline__ void row_round(const SelectTensor& t, Metric metric, int64_t begin, int64_t end,
                                          int round, RowShared<Key<T>>& shared) {
  using R = RowRadix<Key<T>>;
  shared.counts[threadIdx.x] = 0;
  __syncthreads();
  const Key<T> prefix = shared.selection.prefix;
  const int64_t wanted = shared.selection.k - shared.selection.less;
  for_each_vector(begin, end, [&](int64_t at, int n) {
    Key<T> keys[kVector];
    load_keys<T>(t, metric, at, n, keys);
    const auto digit_of = [=](Key<T> key) {
      return R::matches(key, prefix, round) ? R::digit(key, round) : -1;
    };
    count_keys(keys, n, digit_of, shared.counts);
  });
  __syncthreads();
  const long long own = static_cast<long long>(shared.counts[threadIdx.x]);
  const int64_t below = block_scan(own, shared.partial).before;
  if (below < wanted && wanted <= below + own) {
    shared.selection.decide(static_cast<int>(threadIdx.x), R::shift(round), below, own);
  }
  __syncthreads();
}

// Prunes the k lowest of each row, 0 < k < row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_topk_mask_kernel(const SelectTensor t, const Metric metric, const int64_t row, const int64_t k) {
  __shared__ RowShared<Key<T>> shared;
  for (int64_t r = blockIdx.x; r < t.numel / row; r += gridDim.x) {
    const int64_t begin = r * row, end = begin + row;
    if (threadIdx.x == 0) shared.selection = start_selection<Key<T>>(k);
    for (int round = 0; round < RowRadix<Key<T>>::kRounds; ++round)
      row_round<T>(t, metric, begin, end, round, shared);
    const Key<T> threshold = shared.selection.prefix;
    const int64_t kept = shared.selection.ties_kept();
    const bool splits = kept > 0 && kept < shared.selection.equal;
    int64_t left = kept;
    for (int64_t at = begin; at < end; at += kTile) {
      const auto tile = load_tile<T>(t, metric, at, min64(at + kTile, end));
      if (splits) {
        left = write_cut_tile(t, tile, threshold, left, shared.ties_partial);
      } else {
        write_tile(t, tile, threshold, kept > 0);
      }
    }
    __syncthreads();
  }
}

}  // namespace pruneops::cuda
