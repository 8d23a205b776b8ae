// The order of scores as unsigned integers: NaN < -inf < ... < -0.0 == +0.0 < ... < +inf.
#pragma once

#include "portable.h"

namespace pruneops {

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class T>
using Key = typename KeyOf<T>::type;

// Negative numbers are complemented, others get the top bit; NaN takes 0, which no number maps to.
template <class T>
PRUNEOPS_HD Key<T> sort_key(T score) {
  using K = Key<T>;
  constexpr K top = K(1) << (sizeof(K) * 8 - 1);
  const K bits = bit_cast<K>(score + T(0));  // -0.0 + 0.0 is +0.0
  const K key = (bits & top) ? ~bits : (bits | top);
  return score != score ? K(0) : key;
}

template <class T>
PRUNEOPS_HD T key_to_score(Key<T> key) {
  using K = Key<T>;
  constexpr K top = K(1) << (sizeof(K) * 8 - 1);
  if (key == 0) return bit_cast<T>(static_cast<K>(~K(0) >> 1));  // a NaN
  return bit_cast<T>(static_cast<K>((key & top) ? (key ^ top) : ~key));
}

}  // namespace pruneops
