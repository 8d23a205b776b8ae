// What N:M selection goes by within a group: which of two keys or scores is kept first.
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

// The same of two scores, the one at the earlier position first: it goes before the other unless it is lower,
// and NaN is lowest.
template <class T>
PRUNEOPS_HD bool earlier_goes_before(T earlier, T later) {
  return earlier >= later || later != later;
}

}  // namespace pruneops
