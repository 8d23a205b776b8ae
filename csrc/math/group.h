// N:M selection within a group of m keys, by rank: how many of the group are better.
#pragma once

#include "portable.h"

namespace pruneops {

// Larger groups are selected as rows.
constexpr int64_t kMaxGroup = 32;

// Whether the key at position j of a group goes before the one at position i: higher, or equal and earlier.
template <class K>
PRUNEOPS_HD bool goes_before(K other, int64_t j, K key, int64_t i) {
  return other > key || (other == key && j < i);
}

}  // namespace pruneops
