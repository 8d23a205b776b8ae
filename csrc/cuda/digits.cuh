// A round of a search by a thread block: counts of digits, and the decision from them.
#pragma once

#include "../math/search.h"
#include "block_scan.cuh"
#include "vector.cuh"

namespace pruneops::cuda {

template <class K>
struct Deciding {
  long long partial[kWarps];
  Search<K> search;
};

// The search after a round, from the counts of all its digits. Every thread of the block calls it.
template <class K, class Count>
__device__ __forceinline__ Search<K> decide(const Search<K>& search, int round, const Count* counts,
                                            Deciding<K>& shared) {
  if (search.width(round) == 0) return search;
  constexpr int kOwn = Search<K>::kBins / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  long long own[kOwn], total = 0;
#pragma unroll
  for (int b = 0; b < kOwn; ++b) total += own[b] = static_cast<long long>(counts[first + b]);
  const auto scan = block_scan(total, shared.partial);
  int64_t below = scan.before;
  const int64_t wanted = search.selection.k - search.selection.less;
  // Scores that somebody else writes meanwhile may not add up to the rank.
  if (threadIdx.x == 0 && (wanted <= 0 || wanted > scan.total)) shared.search = search;
#pragma unroll
  for (int b = 0; b < kOwn; ++b) {
    if (below < wanted && wanted <= below + own[b]) {
      shared.search = search;
      shared.search.decide(round, first + b, below, own[b]);
    }
    below += own[b];
  }
  __syncthreads();
  return shared.search;
}

// Whether some ties with the threshold are kept and some are not.
template <class K>
__device__ __forceinline__ bool splits_ties(const Selection<K>& found) {
  return found.ties_kept() > 0 && found.ties_kept() < found.equal;
}

// Adds the digits of a thread's keys to the block's counts; neighbours with one digit are added together,
// which keeps long runs of equal scores from queueing for one counter. digit_of is negative for keys that do
// not count.
template <class K, class DigitOf, class Count>
__device__ __forceinline__ void count_keys(const K (&keys)[kVector], int n, const DigitOf& digit_of,
                                           Count* counts) {
  int digit = -1;
  Count run = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int next = i < n ? digit_of(keys[i]) : -1;
    if (next < 0) continue;
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

template <int kBins, class Count>
__device__ __forceinline__ void add_counts(const unsigned (&counts)[kBins], Count* total) {
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    if (counts[b] != 0) atomicAdd(&total[b], static_cast<Count>(counts[b]));
  }
}

}  // namespace pruneops::cuda
