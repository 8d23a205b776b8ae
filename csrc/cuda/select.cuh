// Exact global selection: rounds of digit counts, a decision after each, then one pass that writes the masks.
// All state stays in device memory; nothing returns to the host.
#pragma once

#include "../math/radix.h"
#include "block_scan.cuh"
#include "table.cuh"
#include "vector.cuh"

namespace pruneops::cuda {

// At most this many blocks count digits, so that few partial counts are added up.
constexpr int64_t kCountingBlocks = 2048;

template <class T>
struct SelectState {
  using K = Key<T>;
  Selection<K> selection;
  int64_t cut_tile;  // ties are kept in the tiles before this one, and
  int64_t cut_ties;  // the first so many of this one
  unsigned long long counts[WideRadix<K>::kBins];

  // Whether some ties with the threshold are kept and some are not.
  __device__ bool splits_ties() const {
    const int64_t kept = selection.ties_kept();
    return kept > 0 && kept < selection.equal;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) start_selection_kernel(SelectState<T>* state, int64_t k) {
  for (int b = threadIdx.x; b < WideRadix<Key<T>>::kBins; b += kThreads) state->counts[b] = 0;
  if (threadIdx.x == 0) {
    state->selection = start_selection<Key<T>>(k);
    state->cut_tile = 0;
    state->cut_ties = 0;
  }
}

// Keys [at, at + n) of a tensor, of type T's order. A score is computed in its own tensor's type, whatever
// other tensors it is ranked with.
template <class T, class Own>
__device__ __forceinline__ void load_own_keys(const SelectTensor& t, Metric metric, int64_t at, int n,
                                              Key<T> (&keys)[kVector]) {
  Own scores[kVector];
  load_scores(t, metric, at, n, scores);
#pragma unroll
  for (int i = 0; i < kVector; ++i) keys[i] = sort_key(static_cast<T>(scores[i]));
}

template <class T>
__device__ __forceinline__ void load_keys(const SelectTensor& t, Metric metric, int64_t at, int n,
                                          Key<T> (&keys)[kVector]) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (t.wide()) return load_own_keys<T, double>(t, metric, at, n, keys);
  }
  load_own_keys<T, float>(t, metric, at, n, keys);
}

// Adds the digits of a thread's keys to the block's counts; neighbours with one digit are added together,
// which keeps long runs of equal scores from queueing for one counter.
template <class R, class K, class Count>
__device__ __forceinline__ void count_keys(const K (&keys)[kVector], int n, K prefix, int round,
                                           Count* counts) {
  int digit = -1;
  Count run = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i >= n || !R::matches(keys[i], prefix, round)) continue;
    const int next = R::digit(keys[i], round);
    if (next != digit) {
      if (run > 0) atomicAdd(&counts[digit], run);
      digit = next;
      run = 0;
    }
    ++run;
  }
  if (run > 0) atomicAdd(&counts[digit], run);
}

// A block's counts of digits: cleared before keys are counted, and added to those of all blocks after.
template <int kBins>
__device__ __forceinline__ void clear_counts(unsigned (&counts)[kBins]) {
  for (int b = threadIdx.x; b < kBins; b += kThreads) counts[b] = 0;
  __syncthreads();
}

template <int kBins>
__device__ __forceinline__ void add_counts(const unsigned (&counts)[kBins], unsigned long long* total) {
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    if (counts[b] != 0) atomicAdd(&total[b], static_cast<unsigned long long>(counts[b]));
  }
}

// Counts the digits of all keys of a table with a prefix.
template <class T>
__device__ __forceinline__ void count_table(const Table<SelectTensor>& table, Metric metric, Key<T> prefix,
                                            int round, unsigned long long* total) {
  using R = WideRadix<Key<T>>;
  __shared__ unsigned counts[R::kBins];
  clear_counts(counts);
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) {
      Key<T> keys[kVector];
      load_keys<T>(t, metric, at, n, keys);
      count_keys<R>(keys, n, prefix, round, counts);
    });
  });
  add_counts(counts, total);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_next_digits_kernel(const __grid_constant__ Table<SelectTensor> table, const Metric metric,
                             const int64_t* prefix, const int round, unsigned long long* counts) {
  count_table<T>(table, metric, static_cast<Key<T>>(*prefix), round, counts);
}

__global__ void __launch_bounds__(kThreads)
    clear_counts_kernel(unsigned long long* counts, const int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    counts[i] = 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    count_digits_kernel(const __grid_constant__ Table<SelectTensor> table, const Metric metric,
                        SelectState<T>* state, const int round) {
  count_table<T>(table, metric, state->selection.prefix, round, state->counts);
}

// One block finds the digit in which the k-th key lies, and clears the counts for the next round.
template <class T>
__global__ void __launch_bounds__(kThreads) decide_kernel(SelectState<T>* state, const int round) {
  using R = WideRadix<Key<T>>;
  constexpr int kOwn = R::kBins / kThreads;
  __shared__ long long partial[kWarps];
  const int first = threadIdx.x * kOwn;
  const int64_t wanted = state->selection.k - state->selection.less;
  long long own = 0;
  for (int b = first; b < first + kOwn; ++b) own += static_cast<long long>(state->counts[b]);
  int64_t below = block_scan(own, partial).before;
  // The scan has a barrier behind which every thread has read k and less.
  for (int b = first; b < first + kOwn; ++b) {
    const int64_t count = static_cast<int64_t>(state->counts[b]);
    if (below < wanted && wanted <= below + count) state->selection.decide(b, R::shift(round), below, count);
    below += count;
    state->counts[b] = 0;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_value_kernel(const SelectState<T>* state, void* value, const Dtype dtype) {
  if (threadIdx.x != 0) return;
  const T score = key_to_score<T>(state->selection.prefix);
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    *static_cast<typename E::type*>(value) = E::template store<T>(score);
  });
}

template <class K>
__device__ __forceinline__ int count_equal(const K (&keys)[kVector], int n, K threshold) {
  int equal = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) equal += i < n && keys[i] == threshold;
  return equal;
}

// Ties with the threshold in each tile, one block a tile.
template <class T>
__global__ void __launch_bounds__(kThreads)
    count_ties_kernel(const __grid_constant__ Table<SelectTensor> table, const Metric metric,
                      const SelectState<T>* state, unsigned* ties) {
  __shared__ int partial[kWarps];
  if (!state->splits_ties()) return;
  const Key<T> threshold = state->selection.prefix;
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t number) {
    int equal = 0;
    for_each_vector(begin, end, [&](int64_t at, int n) {
      Key<T> keys[kVector];
      load_keys<T>(t, metric, at, n, keys);
      equal += count_equal(keys, n, threshold);
    });
    const int total = block_scan(equal, partial).total;
    if (threadIdx.x == 0) ties[number] = static_cast<unsigned>(total);
  });
}

// One block finds the tile in which the last kept tie lies.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_cut_kernel(SelectState<T>* state, const unsigned* ties, const int64_t tiles, const bool prune_ties) {
  __shared__ long long partial[kWarps];
  const int64_t kept = prune_ties ? 0 : state->selection.ties_kept();
  if (kept == 0 || kept == state->selection.equal) {
    if (threadIdx.x == 0) state->cut_tile = kept == 0 ? 0 : tiles;
    return;
  }
  int64_t before = 0;
  for (int64_t base = 0; base < tiles && before < kept; base += kThreads) {
    const int64_t tile = base + threadIdx.x;
    const long long own = tile < tiles ? ties[tile] : 0;
    const auto scan = block_scan(own, partial);
    const int64_t here = before + scan.before;
    if (here < kept && kept <= here + own) {
      state->cut_tile = tile;
      state->cut_ties = kept - here;
    }
    before += scan.total;
  }
}

// Keeps keys above the threshold, and of those that tie with it the first `ties` of [begin, end) in order.
template <class T>
__device__ __forceinline__ void write_cut(const SelectTensor& t, Metric metric, int64_t begin, int64_t end,
                                          Key<T> threshold, int64_t ties, int (&partial)[kWarps]) {
  for (int64_t base = begin; base < end; base += kThreads * kVector) {
    const int64_t at = base + threadIdx.x * kVector;
    const int n = static_cast<int>(at < end ? min64(kVector, end - at) : 0);
    Key<T> keys[kVector] = {};
    if (n > 0) load_keys<T>(t, metric, at, n, keys);
    const auto scan = block_scan(count_equal(keys, n, threshold), partial);
    int64_t left = ties - scan.before;
    Vector<bool> keep;
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      keep.words[i] = keys[i] > threshold || (keys[i] == threshold && left-- > 0);
    if (n > 0) store_mask(t, at, n, keep);
    ties -= scan.total;
  }
}

template <class T>
__device__ __forceinline__ void write_whole(const SelectTensor& t, Metric metric, int64_t begin, int64_t end,
                                            Key<T> threshold, bool keep_ties) {
  for_each_vector(begin, end, [&](int64_t at, int n) {
    Key<T> keys[kVector];
    load_keys<T>(t, metric, at, n, keys);
    Vector<bool> keep;
#pragma unroll
    for (int i = 0; i < kVector; ++i) keep.words[i] = keep_ties ? keys[i] >= threshold : keys[i] > threshold;
    store_mask(t, at, n, keep);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_mask_kernel(const __grid_constant__ Table<SelectTensor> table, const Metric metric,
                      const SelectState<T>* state) {
  __shared__ int partial[kWarps];
  const Key<T> threshold = state->selection.prefix;
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t number) {
    if (number == state->cut_tile) {
      write_cut<T>(t, metric, begin, end, threshold, state->cut_ties, partial);
    } else {
      write_whole<T>(t, metric, begin, end, threshold, number < state->cut_tile);
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    fill_masks_kernel(const __grid_constant__ Table<SelectTensor> table, const bool keep) {
  Vector<bool> all;
#pragma unroll
  for (int i = 0; i < kVector; ++i) all.words[i] = keep;
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) { store_mask(t, at, n, all); });
  });
}

}  // namespace pruneops::cuda
