// The pass over a bracket (math/bracket.h): a sample of the keys, rounds that find the ends of the bracket
// among it, and one pass over all keys that writes masks, counts, and collects what is strictly inside.
#pragma once

#include "fused.cuh"
#include "select.cuh"

namespace pruneops::cuda {

// Samples that a block takes, and counts: each is a miss of every cache, so a thread has several.
constexpr int64_t kSampleShare = kThreads * 8;

// Where the keys of a selection come from: from what a metric reads,
struct MetricKeys {
  using Tensor = SelectTensor;
  Metric metric;

  template <class T>
  __device__ __forceinline__ Key<T> peek(const Tensor& t, int64_t at) const {
    Key<T> keys[kVector];
    load_keys<T>(t, metric, at, 1, keys);
    return keys[0];
  }
  template <class T>
  __device__ __forceinline__ TileKeys<T> take(const Tensor& t, int64_t begin, int64_t end) const {
    return load_tile<T>(t, metric, begin, end);
  }
};

// or from scores that are updated as they are passed over.
struct UpdatedKeys {
  using Tensor = FusedTensor;
  UpdateRule rule;

  template <class T>
  __device__ __forceinline__ Key<T> peek(const Tensor& t, int64_t at) const {
    Key<T> keys[kVector];
    updated_keys<T>(t.update, rule, at, 1, false, keys);
    return keys[0];
  }
  template <class T>
  __device__ __forceinline__ TileKeys<T> take(const Tensor& t, int64_t begin, int64_t end) const {
    TileKeys<T> tile{{}, begin, end};
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      if (tile.size(v) > 0) updated_keys<T>(t.update, rule, tile.at(v), tile.size(v), true, tile.keys[v]);
    }
    return tile;
  }
};

// Where the entries of each tensor of a table end, in the order of all tensors.
template <class Tensor>
struct EntryEnds {
  int64_t ends[Table<Tensor>::kCapacity];
  long long partial[kWarps];

  // Every thread of the block calls it.
  __device__ __forceinline__ void find(const Table<Tensor>& table, int64_t before) {
    for (int64_t base = 0; base < table.count; base += kThreads) {
      const int64_t i = base + threadIdx.x;
      const long long own = i < table.count ? table.tensors[i].size() : 0;
      const auto scan = block_scan(own, partial);
      if (i < table.count) ends[i] = before + scan.before + own;
      before += scan.total;
    }
    __syncthreads();
  }
  __device__ __forceinline__ int64_t tensor_of(const Table<Tensor>& table, int64_t position) const {
    int64_t low = 0, high = table.count - 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (position < ends[middle]) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

// The samples that may lie in a table of `entries` entries, behind `before` others; those that do not are
// left to the tables that they lie in.
struct SampleShare {
  int64_t before;
  int64_t entries;
  int64_t first;
  int64_t last;

  SampleShare(int64_t entries_before, int64_t own, int64_t size, int64_t total)
      : before(entries_before), entries(own) {
    const int64_t stretch = total / size;
    first = before / (stretch + 1);
    last = min64((before + entries - 1) / stretch + 1, size);
  }
};

// Takes the samples of a table, and counts their first digits.
template <class T, class Source>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ Table<typename Source::Tensor> table, const Source source,
                  const SelectWork<Key<T>> work, const SampleShare share) {
  using K = Key<T>;
  __shared__ EntryEnds<typename Source::Tensor> entry_ends;
  __shared__ unsigned counts[Search<K>::kBins];
  const Search<K> whole = start_search(1, K(0), static_cast<K>(~K(0)), 0, work.sample_size);
  entry_ends.find(table, share.before);
  clear_counts(counts);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = share.first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < share.last;
       j += step) {
    const int64_t position = sample_position(j, work.sample_size, work.entries) - share.before;
    if (position < 0 || position >= share.entries) continue;
    const int64_t i = entry_ends.tensor_of(table, position + share.before);
    const auto& t = table.tensors[i];
    const K key = source.template peek<T>(t, position + share.before - (entry_ends.ends[i] - t.size()));
    work.sample[j] = key;
    atomicAdd(&counts[whole.digit(key, 0)], 1u);
  }
  add_counts(counts, work.state->sample_counts[0][0]);
}

// The search for one end of the bracket, as it stands before a round.
template <class K>
__device__ __forceinline__ Search<K> end_before(const SelectWork<K>& work, int round, int side,
                                                Deciding<K>& shared) {
  const auto* state = work.state;
  if (round > 1)
    return decide(state->ends[round - 1][side], round - 1, state->sample_counts[round - 1][side], shared);
  // Both ends have the counts of the first round in common.
  const int64_t rank = side == 0 ? work.ranks.low : work.ranks.high;
  const int64_t within = rank < 1 ? 1 : min64(rank, work.sample_size);
  const auto whole = start_search(within, K(0), static_cast<K>(~K(0)), 0, work.sample_size);
  return decide(whole, 0, state->sample_counts[0][0], shared);
}

// Counts the digits of a round after the first, for both ends of the bracket.
template <class K>
__global__ void __launch_bounds__(kThreads) sample_round_kernel(const SelectWork<K> work, const int round) {
  __shared__ Deciding<K> deciding;
  __shared__ unsigned counts[2][Search<K>::kBins];
  __shared__ Search<K> ends[2];
  for (int side = 0; side < 2; ++side) {
    const Search<K> end = end_before(work, round, side, deciding);
    if (is_first_thread()) work.state->ends[round][side] = end;
    if (threadIdx.x == 0) ends[side] = end;
    clear_counts(counts[side]);
  }
  for_each_key_vector(work.sample, work.sample_size, [&](const auto& keys, int n) {
    for (int side = 0; side < 2; ++side) {
      const Search<K> end = ends[side];
      count_keys(
          keys, n, [&](K key) { return end.matches(key, round) ? end.digit(key, round) : -1; }, counts[side]);
    }
  });
  for (int side = 0; side < 2; ++side) add_counts(counts[side], work.state->sample_counts[round][side]);
}

template <class K>
__device__ __forceinline__ Bracket<K> find_bracket(const SelectWork<K>& work, Deciding<K>& shared) {
  const K low = end_before(work, Search<K>::kRounds, 0, shared).key();
  const K high = end_before(work, Search<K>::kRounds, 1, shared).key();
  return {work.ranks.low < 1 ? K(0) : low, work.ranks.high > work.sample_size ? static_cast<K>(~K(0)) : high};
}

// What the threads of a block have counted of a tile.
enum Region { kAtLow, kBetween, kAtHigh, kAbove };

template <class T>
__device__ __forceinline__ Four count_regions(const TileKeys<T>& tile, const Bracket<Key<T>>& bracket) {
  const bool two = bracket.low != bracket.high;
  int from_low = 0, at_low = 0, at_high = 0, above = 0;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= tile.size(v)) continue;
      const Key<T> key = tile.keys[v][i];
      from_low += key >= bracket.low;
      at_low += key == bracket.low;
      at_high += two && key == bracket.high;
      above += key > bracket.high;
    }
  }
  Four regions;
  regions.add(kAtLow, at_low);
  regions.add(kBetween, from_low - at_low - at_high - above);
  regions.add(kAtHigh, at_high);
  regions.add(kAbove, above);
  return regions;
}

// f(key, place in the tile) for a thread's keys strictly inside the bracket.
template <class T, class F>
__device__ __forceinline__ void for_inside(const TileKeys<T>& tile, const Bracket<Key<T>>& bracket,
                                           const F& f) {
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Key<T> key = tile.keys[v][i];
      if (i < tile.size(v) && key > bracket.low && key < bracket.high)
        f(key, static_cast<unsigned>((v * kThreads + threadIdx.x) * kVector + i));
    }
  }
}

// Counts that a block keeps over its tiles, in its first thread.
struct BlockCounts {
  unsigned long long entries = 0, at_low = 0, between = 0, at_high = 0, above = 0;

  __device__ __forceinline__ void add(int64_t size, const Four& regions) {
    entries += static_cast<unsigned long long>(size);
    at_low += regions[kAtLow];
    between += regions[kBetween];
    at_high += regions[kAtHigh];
    above += regions[kAbove];
  }
  // What lies between has been added as its places were taken.
  template <class K>
  __device__ __forceinline__ void flush(SelectState<K>& state, bool adds_between) const {
    atomicAdd(&state.below, entries - at_low - between - at_high - above);
    atomicAdd(&state.at_low, at_low);
    atomicAdd(&state.at_high, at_high);
    if (adds_between) atomicAdd(&state.between, between);
  }
};

// Writes masks and collects what is inside the bracket; without kCollect, counts the first digits of that.
template <class T, class Source, bool kCollect>
__global__ void __launch_bounds__(kThreads, kTileBlocks<T>)
    pass_kernel(const __grid_constant__ Table<typename Source::Tensor> table, const Source source,
                const SelectWork<Key<T>> work) {
  using K = Key<T>;
  __shared__ Deciding<K> deciding;
  __shared__ unsigned long long partial[kWarps], place;
  __shared__ unsigned digits[kCollect ? 1 : Search<K>::kBins];
  const Bracket<K> bracket = find_bracket(work, deciding);
  const auto inside =
      start_search(work.k, static_cast<K>(bracket.low + 1), static_cast<K>(bracket.high - 1), 0, 0);
  if (is_first_thread()) work.state->bracket = bracket;
  if constexpr (!kCollect) clear_counts(digits);
  BlockCounts counts;
  for_each_flat_tile(table, [&](const auto& t, int64_t begin, int64_t end, int64_t number) {
    const auto tile = source.template take<T>(t, begin, end);
    if (kCollect && t.mask != nullptr) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v)
        store_kept(t, tile, v, [&](K key) { return key >= bracket.high; });
    }
    const auto scan = block_scan(count_regions(tile, bracket).bits, partial);
    const Four total{scan.total};
    const auto between = static_cast<unsigned>(total[kBetween]);
    if (threadIdx.x == 0) {
      counts.add(end - begin, total);
      const int64_t part = work.part_of(number);
      if (total[kAtLow] > 0) atomicAdd(&work.ties_of(Ties::low)[part], static_cast<unsigned>(total[kAtLow]));
      if (total[kAtHigh] > 0)
        atomicAdd(&work.ties_of(Ties::high)[part], static_cast<unsigned>(total[kAtHigh]));
      if constexpr (kCollect) {
        if (between > 0) place = atomicAdd(&work.state->between, static_cast<unsigned long long>(between));
        work.runs[number] = {static_cast<unsigned>(between > 0 ? place : 0), between};
      }
    }
    if (between == 0) return;
    if constexpr (kCollect) {
      __syncthreads();
      if (static_cast<int64_t>(place + between) > work.capacity) return;
      int64_t next = static_cast<int64_t>(place) + Four{scan.before}[kBetween];
      for_inside(tile, bracket, [&](K key, unsigned offset) {
        work.few[next] = key;
        work.places[next++] = static_cast<uint16_t>(offset);
      });
    } else {
      for_inside(tile, bracket, [&](K key, unsigned) { atomicAdd(&digits[inside.digit(key, 0)], 1u); });
    }
  });
  if (threadIdx.x == 0) counts.flush(*work.state, !kCollect);
  if constexpr (!kCollect) add_counts(digits, work.state->inside_counts);
}

}  // namespace pruneops::cuda
