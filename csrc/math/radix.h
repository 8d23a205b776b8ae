// Exact selection of the k-th smallest key as rounds of counts -> decision. A round counts, among the keys
// that share the prefix decided so far, how many have each next digit; the decision extends the prefix. Who
// supplies the counts (threads, blocks of a grid, processes) does not matter: they are sums of integers. AIR
// top-k (Zhang et al., SC'23, section 3) uses the same rounds.
#pragma once

#include "order.h"

namespace pruneops {

template <class K, int kBits>
struct Radix {
  static constexpr int kDigitBits = kBits;
  static constexpr int kBins = 1 << kBits;
  static constexpr int kKeyBits = sizeof(K) * 8;
  static constexpr int kRounds = (kKeyBits + kBits - 1) / kBits;

  // Bits below the digit of a round; the last digit may be narrower.
  static PRUNEOPS_HD int shift(int round) {
    const int left = kKeyBits - (round + 1) * kBits;
    return left > 0 ? left : 0;
  }
  static PRUNEOPS_HD int bins(int round) {
    const int width = kKeyBits - round * kBits;
    return width < kBits ? 1 << width : kBins;
  }
  static PRUNEOPS_HD int digit(K key, int round) {
    return static_cast<int>((key >> shift(round)) & static_cast<K>(bins(round) - 1));
  }
  // Whether a key shares the digits decided in the rounds before this one.
  static PRUNEOPS_HD bool matches(K key, K prefix, int round) {
    return round == 0 || (key >> shift(round - 1)) == (prefix >> shift(round - 1));
  }
};

// Digits for keys in memory: 3 rounds for 32 bits, and 2048 counts fit a first-level cache or shared memory.
template <class K>
using WideRadix = Radix<K, 11>;

// Where a selection stands. After the last round `prefix` is the key of the k-th smallest score, `less`
// counts the keys below it and `equal` those that tie with it.
template <class K>
struct Selection {
  K prefix;
  int64_t k;  // rank from 1 over all keys
  int64_t less;
  int64_t equal;

  // Of the tied keys, those that stay when exactly k keys are pruned.
  PRUNEOPS_HD int64_t ties_kept() const { return less + equal - k; }

  // `below` keys of the current prefix have a smaller digit than `digit`, and `count` have it.
  PRUNEOPS_HD void decide(int digit, int shift, int64_t below, int64_t count) {
    prefix |= static_cast<K>(digit) << shift;
    less += below;
    equal = count;
  }
};

}  // namespace pruneops
