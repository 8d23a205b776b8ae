// Selection among keys that lie in an array: SELECT of Floyd and Rivest (1975). A sample brackets the wanted
// rank, one pass keeps the keys inside of the bracket, and so on with these.
#pragma once

#include "../../math/bracket.h"
#include "../../math/radix.h"
#include "compact.h"
#include "tiles.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Up to so many keys are selected among bit by bit, and so many are sampled of more.
constexpr int64_t kFewKeys = 1 << 10;

// The k-th smallest is the highest key that has fewer than k keys below it: its bits from the top, each by
// one pass over keys that stay in the first-level cache.
template <class K>
K select_by_bits(const K* keys, int64_t n, int64_t k) {
  K found = 0;
  for (int bit = static_cast<int>(sizeof(K)) * 8 - 1; bit >= 0; --bit) {
    const K candidate = found | (K(1) << bit);
    int32_t below = 0;
    for (int64_t i = 0; i < n; ++i) below += keys[i] < candidate;
    if (below < k) found = candidate;
  }
  return found;
}

// Keys that bracket the k-th smallest of n, unless the sample misled; each end is within [low, high].
template <class K>
Bracket<K> bracket_in_array(const K* keys, int64_t n, int64_t k, Bracket<K> bracket) {
  K sample[kFewKeys];
  const int64_t size = min64(kFewKeys, n / 32);
  for (int64_t j = 0; j < size; ++j) sample[j] = keys[sample_position(j, size, n)];
  const SampleRanks ranks = sample_ranks(size, n, k);
  if (ranks.low >= 1) bracket.low = select_by_bits(sample, size, ranks.low);
  if (ranks.high <= size) bracket.high = select_by_bits(sample, size, ranks.high);
  return bracket;
}

// The k-th smallest of n keys, k from 1; `spare` has room for n + kCompactRoom keys.
template <class K>
Selection<K> select_in_array(const K* keys, int64_t n, int64_t k, K* spare) {
  Bracket<K> outer = whole_bracket<K>();  // the k-th smallest is an end of it or strictly inside,
  const K* inside = keys;                 // where these keys are,
  int64_t size = n, less = 0;             // so many of them, with so many going before
  while (size > kFewKeys) {
    Bracket<K> bracket = bracket_in_array(inside, size, k - less, outer);
    BracketCounts counts = compact(inside, size, bracket, spare);
    if (find_rank(counts, k - less) == Found::missed) {
      // The counts say on which side it lies. That side comes from all keys: others have been written over.
      bracket = beside(outer, bracket, counts, k - less);
      less = 0;
      counts = compact(keys, n, bracket, spare);
    }
    const Found found = find_rank(counts, k - less);
    if (found != Found::between) return at_end(bracket, counts, found, k, less);
    outer = bracket;
    inside = spare;
    size = counts.between;
    less += counts.below + counts.at_low;
  }
  const K key = select_by_bits(inside, size, k - less);
  int64_t below = 0, equal = 0;
  for (int64_t i = 0; i < size; ++i) {
    below += inside[i] < key;
    equal += inside[i] == key;
  }
  return {key, k, less + below, equal};
}

// The place behind the tie number `kept` among n keys, `kept` being at most their number.
template <class K>
int64_t place_behind_tie(const K* keys, int64_t n, K key, int64_t kept) {
  constexpr int64_t kRun = 256;
  int64_t place = 0;
  for (; place + kRun <= n; place += kRun) {  // runs that lie before it are counted whole
    int32_t ties = 0;
    for (int64_t i = 0; i < kRun; ++i) ties += keys[place + i] == key;
    if (ties >= kept) break;
    kept -= ties;
  }
  for (; kept > 0; ++place) kept -= keys[place] == key;
  return place;
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
