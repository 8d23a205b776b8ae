// Selection among keys that lie in an array.
#pragma once

#include "../../math/radix.h"
#include "tiles.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// The k-th smallest of n keys, k from 1; `spare` has room for n keys and may be the array itself if that may
// be overwritten. After each round only the keys that are still in question are kept.
template <class K>
Selection<K> select_in_array(const K* keys, int64_t n, int64_t k, K* spare) {
  using R = WideRadix<K>;
  auto selection = start_selection<K>(k);
  for (int round = 0; round < R::kRounds; ++round) {
    int64_t counts[2][R::kBins] = {};  // two, so that a run of equal keys does not wait for itself
    for (int64_t i = 0; i < n; ++i) ++counts[i & 1][R::digit(keys[i], round)];
    for (int b = 0; b < R::kBins; ++b) counts[0][b] += counts[1][b];
    decide_round<R>(selection, round, counts[0]);
    if (selection.equal < n) {
      const int digit = R::digit(selection.prefix, round);
      int64_t left = 0;
      for (int64_t i = 0; i < n; ++i) {
        const K key = keys[i];
        spare[left] = key;
        left += R::digit(key, round) == digit;
      }
      keys = spare;
      n = left;
    }
    if (n == 1) {
      selection.prefix = keys[0];
      return selection;
    }
  }
  return selection;
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
