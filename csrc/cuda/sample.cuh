// The bracket of a selection (math/bracket.h): a sample of the keys, and rounds that find the ends of the
// bracket among it.
#pragma once

#include "select.cuh"

namespace pruneops::cuda {

// Samples that a block takes, and counts. Each is a miss of every cache, so a thread has several under way.
constexpr int64_t kSampleShare = kThreads * 8;
constexpr int kSamplesAtOnce = 4;

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
  const auto score_at = [&](int64_t position) {
    const int64_t i = entry_ends.tensor_of(table, position);
    const auto& t = table.tensors[i];
    return source.template peek<T>(t, position - (entry_ends.ends[i] - t.size()));
  };
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = share.first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; j < share.last;
       j += step * kSamplesAtOnce) {
    T scores[kSamplesAtOnce];
    bool lies_here[kSamplesAtOnce];
#pragma unroll
    for (int u = 0; u < kSamplesAtOnce; ++u) {
      const int64_t own = j + u * step;
      const int64_t position = sample_position(own, work.sample_size, work.entries);
      lies_here[u] = own < share.last && position >= share.before && position < share.before + share.entries;
      if (lies_here[u]) scores[u] = score_at(position);
    }
#pragma unroll
    for (int u = 0; u < kSamplesAtOnce; ++u) {
      if (!lies_here[u]) continue;
      const K key = sort_key(scores[u]);
      work.sample[j + u * step] = key;
      atomicAdd(&counts[whole.digit(key, 0)], 1u);
    }
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

// The bracket of the pass. Its ends are tied with as often as not where scores have few bits, and then half
// of the masks would be written again for the ties of the end that is found: so they are moved outwards,
// among what is collected, where the sample says that this has room.
template <class K>
__device__ __forceinline__ Bracket<K> find_bracket(const SelectWork<K>& work, Deciding<K>& shared) {
  const Search<K> low = end_before(work, Search<K>::kRounds, 0, shared);
  const Search<K> high = end_before(work, Search<K>::kRounds, 1, shared);
  const bool has_low = work.ranks.low >= 1, has_high = work.ranks.high <= work.sample_size;
  const int64_t below = has_low ? low.selection.less : 0;
  const int64_t up_to = has_high ? high.selection.less + high.selection.equal : work.sample_size;
  const K outwards = work.has_room_for(up_to - below) ? 1 : 0;
  return {has_low ? static_cast<K>(low.key() - (low.key() > 0 ? outwards : 0)) : K(0),
          has_high ? static_cast<K>(high.key() + (high.key() > 0 ? outwards : 0)) : static_cast<K>(~K(0))};
}

}  // namespace pruneops::cuda
