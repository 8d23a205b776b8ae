// The k-th smallest key, known to lie in a range, by rounds of digit counts as in radix.h. The digits are
// those of the distance from the start of the range, and only of the bits that the range needs: what a
// bracket has narrowed takes fewer rounds, and keys that share their first bits are spread over all digits.
#pragma once

#include "bracket.h"

namespace pruneops {

// The keys that a search counts: all, or those that a pass has collected inside the bracket.
enum class Among : int32_t { all, collected };

template <class K>
struct Search {
  static constexpr int kDigitBits = WideRadix<K>::kDigitBits;
  static constexpr int kBins = WideRadix<K>::kBins;
  static constexpr int kRounds = WideRadix<K>::kRounds;

  Selection<K> selection;  // its prefix is a distance from `base`
  K base;
  int32_t bits;  // of the distances that occur
  Among among;

  // Bits below the digit of a round, and of the digit: 0 where all is decided.
  PRUNEOPS_HD int shift(int round) const {
    const int left = bits - (round + 1) * kDigitBits;
    return left > 0 ? left : 0;
  }
  PRUNEOPS_HD int width(int round) const {
    const int left = bits - round * kDigitBits;
    return left < 0 ? 0 : left < kDigitBits ? left : kDigitBits;
  }

  // Whether a key may be the one sought, by the digits decided in the rounds before this one. A key outside
  // of the range passes only where it is farther from the base than every key of the range, and so changes
  // nothing.
  PRUNEOPS_HD bool matches(K key, int round) const {
    const int decided_from = shift(round) + width(round);
    if (decided_from == static_cast<int>(sizeof(K)) * 8) return true;
    return static_cast<K>(key - base) >> decided_from == selection.prefix >> decided_from;
  }
  PRUNEOPS_HD int digit(K key, int round) const {
    return static_cast<int>((static_cast<K>(key - base) >> shift(round)) & ((K(1) << width(round)) - 1));
  }
  PRUNEOPS_HD void decide(int round, int digit, int64_t below, int64_t count) {
    selection.decide(digit, shift(round), below, count);
  }
  // A round from the counts of all its digits.
  PRUNEOPS_HD void decide(int round, const int64_t* counts) {
    int64_t below = 0;
    int digit = 0;
    while (selection.less + below + counts[digit] < selection.k) below += counts[digit++];
    decide(round, digit, below, counts[digit]);
  }
  // The lowest key that may be the one sought: that one, after the last round.
  PRUNEOPS_HD K key() const { return static_cast<K>(base + selection.prefix); }
  PRUNEOPS_HD Selection<K> found() const { return {key(), selection.k, selection.less, selection.equal}; }
};

PRUNEOPS_HD int32_t bit_width(uint64_t x) {
  int32_t bits = 0;
  for (; x != 0; x >>= 1) ++bits;
  return bits;
}

// A search among `count` keys from `first` to `last`; `less` keys lie below.
template <class K>
PRUNEOPS_HD Search<K> start_search(int64_t k, K first, K last, int64_t less, int64_t count,
                                   Among among = Among::all) {
  return {{K(0), k, less, count}, first, bit_width(static_cast<K>(last - first)), among};
}

// What is left to do after a pass over `total` keys has counted what lies in and around a bracket.
template <class K>
PRUNEOPS_HD Search<K> search_after(const BracketCounts& counts, const Bracket<K>& bracket, int64_t k,
                                   int64_t total, Among among) {
  const Found found = find_rank(counts, k);
  const int64_t to_low = counts.below + counts.at_low, to_high = to_low + counts.between + counts.at_high;
  if (found == Found::between) {
    return start_search(k, static_cast<K>(bracket.low + 1), static_cast<K>(bracket.high - 1), to_low,
                        counts.between, among);
  }
  if (found != Found::missed) {
    const Selection<K> end = at_end(bracket, counts, found, k, 0);
    return start_search(k, end.prefix, end.prefix, end.less, end.equal);
  }
  if (k <= counts.below) return start_search(k, K(0), static_cast<K>(bracket.low - 1), 0, counts.below);
  return start_search(k, static_cast<K>(bracket.high + 1), static_cast<K>(~K(0)), to_high, total - to_high);
}

}  // namespace pruneops
