// Exact selection in each row. A row is read once where it fits into the registers of a warp or of a block
// that has as many warps as it needs; longer ones are read for every threshold that is counted, and few very
// long ones are selected as tensors (rows.cu).
#pragma once

#include "../math/bracket.h"
#include "row_group.cuh"

namespace pruneops::cuda {

// ---- the search

// A sample of a row, one score for each lane, the same in all warps that share it.
template <class Row>
__device__ __forceinline__ auto sample_of(const Row& row, const SelectTensor& t, Metric metric, int64_t begin,
                                          int size) {
  if constexpr (Row::kHoldsSample) return row.held.sample();
  return load_sample<typename Row::Type>(t, metric, begin, size);
}

// The keys of all lanes' scores, sorted over the lanes (bitonic, Batcher 1968).
template <class T>
__device__ __forceinline__ Key<T> sort_sample(T own) {
  const int lane = warp_lane();
  Key<T> key = RowSearch<T>::stand(own);
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
#pragma unroll
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const Key<T> other = __shfl_xor_sync(kAllLanes, key, distance);
      const bool takes_higher = ((lane & distance) != 0) != ((lane & size) != 0);
      key = takes_higher == (other > key) ? other : key;
    }
  }
  return key;
}

template <class Row, class T>
__device__ __forceinline__ int count_below(const Row& row, T threshold) {
  int own = 0;
  row.for_each_part([&](const auto& held) { own += held.count_below(threshold); });
  return own;
}

template <class Row, class Group>
__device__ __forceinline__ auto search_row(const Row& row, int k, int size, Key<typename Row::Type> fine,
                                           Key<typename Row::Type> sample, Group& group) {
  using T = typename Row::Type;
  using Search = RowSearch<T>;
  const auto sample_at = [=](int place) { return __shfl_sync(kAllLanes, sample, place - 1); };
  Search search(k, size, fine, sample_at);
  while (true) {
    search.take(group.sum(count_below(row, Search::score(search.next))) - row.padding());
    if (search.decided()) return search;
    if (search.plan(sample_at)) continue;
    T lowest = Search::score(Search::kAboveAll - 1), highest = -lowest;
    row.for_each_part([&](const auto& held) {
      held.take_ends(Search::score(search.low), Search::score(search.high), lowest, highest);
    });
    group.ends(lowest, highest);
    search.take_ends(lowest, highest);
    if (search.decided()) return search;
  }
}

// ---- the mask

template <class Held, class T>
__device__ __forceinline__ void write_from(const SelectTensor& t, const Held& held, T from) {
  MaskWords masks[Held::kVectors];
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) masks[v] = held.keep_from(v, from);
  store_masks(t, held.places.anew(), masks);
}

// Of the entries of a mask, keeps the first. In a loop, as this is done in one cell of a row.
__device__ __forceinline__ void keep_first(MaskWords& mask, int entries) {
  uint64_t others = mask.words[0] | static_cast<uint64_t>(mask.words[1]) << 32;
#pragma unroll 1
  for (; entries > 0 && others != 0; --entries) others &= others - 1;
  mask.words[0] ^= static_cast<uint32_t>(others);
  mask.words[1] ^= static_cast<uint32_t>(others >> 32);
}

// Keeps also the first ties of the k-th smallest score, so many of those that are held; how many are left to
// be kept behind them.
template <class Held, class T, class Group>
__device__ __forceinline__ int write_cut(const SelectTensor& t, const Held& held, const RowSearch<T>& found,
                                         int first_ties, Group& group) {
  const T from = RowSearch<T>::score(found.high), at = RowSearch<T>::score(found.low);
  RowMarks marks[Held::kVectors];
  int own[Held::kVectors];
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) {
    marks[v] = held.marks(v, at, from);
    own[v] = marks[v].ties().sum();
  }
  const RowCut cut = group.cut(own, first_ties);
  MaskWords masks[Held::kVectors];
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) {
    MaskWords ties = marks[v].ties();
    if (group.cell(v) == cut.cell) keep_first(ties, cut.rest - warp_scan(own[v]).before);
    masks[v] = marks[v].above();
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) {
      if (group.cell(v) <= cut.cell) masks[v].words[w] |= ties.words[w];
    }
  }
  store_masks(t, held.places.anew(), masks);
  return cut.total < first_ties ? first_ties - cut.total : 0;
}

// Prunes the k lowest of a row, 0 < k < row. Every thread of the group calls it.
template <class Row, class Group>
__device__ __forceinline__ void select_row(const SelectTensor& t, Metric metric, const Row& row,
                                           int64_t begin, int size, int k, Group& group) {
  using T = typename Row::Type;
  const auto found = search_row(row, k, size, fine_bits<T>(metric, t.weight_dtype),
                                sort_sample(sample_of(row, t, metric, begin, size)), group);
  int first_ties = found.ties_kept();
  row.for_each_part([&](const auto& held) {
    if (Row::kAlwaysCut || first_ties > 0) {
      first_ties = write_cut(t, held, found, first_ties, group);
    } else {
      write_from(t, held, RowSearch<T>::score(found.high));
    }
  });
}

// ---- a warp, or a block, for each row. What is not selected as a tensor has fewer than 2^31 entries.

template <class Held>
__global__ void __launch_bounds__(kWarpRows* kWarp, Held::kWarps / kWarpRows)
    warp_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  WarpGroup group;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarpRows * row;
  for (int64_t begin = (static_cast<int64_t>(blockIdx.x) * kWarpRows + threadIdx.x / kWarp) * row;
       begin < t.numel; begin += step) {
    const HeldRow<Held> held{{t, metric, begin, row}};
    select_row(t, metric, held, begin, row, k, group);
  }
}

template <class Held>
__global__ void __launch_bounds__(kRowWarps* kWarp, 1)
    block_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  using T = typename Held::Type;
  __shared__ RowShared<T> shared;
  BlockGroup<T> group{shared};
  const int64_t step = static_cast<int64_t>(gridDim.x) * row;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * row; begin < t.numel; begin += step) {
    const HeldRow<Held> held{{t, metric, begin, row}};
    select_row(t, metric, held, begin, row, k, group);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    memory_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  __shared__ RowShared<T> shared;
  BlockGroup<T> group{shared};
  const int64_t step = static_cast<int64_t>(gridDim.x) * row;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * row; begin < t.numel; begin += step) {
    select_row(t, metric, MemoryRow<T>{t, metric, begin, row}, begin, row, k, group);
  }
}

}  // namespace pruneops::cuda
