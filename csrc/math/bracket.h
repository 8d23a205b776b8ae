// Selection in one pass: a sample brackets the wanted rank, the pass counts what lies below, in and above the
// bracket and collects what lies strictly inside, and the rank is found among the few collected (SELECT of
// Floyd and Rivest, 1975, with a bracket for keys that tie). The two ends are counted apart: whatever number
// of keys ties with an end, none of them need be collected, and a key with so many ties that it could fill
// the bracket is an end of it.
#pragma once

#include <math.h>

#include "radix.h"

namespace pruneops {

template <class K>
struct Bracket {
  K low;
  K high;
};

template <class K>
PRUNEOPS_HD Bracket<K> whole_bracket() {
  return {K(0), static_cast<K>(~K(0))};
}

// Ranks in a sample of `size` of `total` keys that bracket the k-th smallest: 3 standard deviations of a
// random sample to each side, and a stratified one has fewer. 0 and size + 1 stand for no bound.
struct SampleRanks {
  int64_t low;
  int64_t high;
};

PRUNEOPS_HD SampleRanks sample_ranks(int64_t size, int64_t total, int64_t k) {
  const double share = static_cast<double>(k) / static_cast<double>(total);
  const double rank = share * static_cast<double>(size);
  const double margin = 3.0 * sqrt(rank * (1.0 - share)) + 2.0;
  const auto low = static_cast<int64_t>(rank - margin), high = static_cast<int64_t>(rank + margin) + 1;
  return {low < 1 ? 0 : low, high > size ? size + 1 : high};
}

// An upper bound of how many of `total` keys lie strictly inside the bracket, unless the sample misled.
PRUNEOPS_HD int64_t bracket_capacity(int64_t size, int64_t total) {
  return static_cast<int64_t>(5.0 * static_cast<double>(total) / sqrt(static_cast<double>(size)));
}

// The position of sample j of `size` among `total` < 2^32 * size: one at random from each of `size` equal
// stretches, so that no period of the data can hide from the sample. The mixing is that of splitmix64.
PRUNEOPS_HD int64_t sample_position(int64_t j, int64_t size, int64_t total) {
  uint64_t x = static_cast<uint64_t>(j) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  const int64_t stretch = total / size, rest = total % size;
  const int64_t begin = j * stretch + min64(j, rest);
  const uint64_t random = (x ^ (x >> 31)) >> 32;
  return begin + static_cast<int64_t>((random * static_cast<uint64_t>(stretch + (j < rest))) >> 32);
}

// How many keys lie where; with one key for both ends, its ties count as `at_low`.
struct BracketCounts {
  int64_t below;
  int64_t at_low;
  int64_t between;
  int64_t at_high;
};

PRUNEOPS_HD BracketCounts operator+(const BracketCounts& a, const BracketCounts& b) {
  return {a.below + b.below, a.at_low + b.at_low, a.between + b.between, a.at_high + b.at_high};
}

enum class Found { at_low, between, at_high, missed };

PRUNEOPS_HD Found find_rank(const BracketCounts& counts, int64_t k) {
  int64_t rank = k - counts.below;
  if (rank <= 0) return Found::missed;
  if (rank <= counts.at_low) return Found::at_low;
  rank -= counts.at_low;
  if (rank <= counts.between) return Found::between;
  return rank - counts.between <= counts.at_high ? Found::at_high : Found::missed;
}

// The selection where the k-th smallest is an end of the bracket; `less` keys go before those counted.
template <class K>
PRUNEOPS_HD Selection<K> at_end(const Bracket<K>& bracket, const BracketCounts& counts, Found found,
                                int64_t k, int64_t less) {
  less += counts.below;
  if (found == Found::at_low) return {bracket.low, k, less, counts.at_low};
  return {bracket.high, k, less + counts.at_low + counts.between, counts.at_high};
}

// Where a bracket missed the k-th smallest: the side of `outer` on which it lies by the counts.
template <class K>
PRUNEOPS_HD Bracket<K> beside(const Bracket<K>& outer, const Bracket<K>& missed, const BracketCounts& counts,
                              int64_t k) {
  if (k <= counts.below) return {outer.low, missed.low};
  return {missed.high, outer.high};
}

}  // namespace pruneops
