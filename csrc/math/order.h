// The order of scores as unsigned integers: NaN < -inf < ... < -0.0 == +0.0 < ... < +inf.
#pragma once

#include <type_traits>

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
// The type whose scores have keys of type K.
template <class K>
using ScoreOf = std::conditional_t<sizeof(K) == sizeof(float), float, double>;

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

// The same of the bits of a bfloat16, as 16 bits.
PRUNEOPS_HD uint16_t bf16_sort_key(uint16_t bits) {
  constexpr uint16_t top = 0x8000, infinity = 0x7f80;
  const uint16_t magnitude = bits & 0x7fff;
  const uint16_t key = (bits & top) && magnitude != 0 ? ~bits : bits | top;
  return magnitude > infinity ? uint16_t(0) : key;
}

// A key as what scores are compared with, for loops that would only make keys to compare them with one: a
// score is lower than the key where not `score >= from`, and has it where `score == at`. Not every key is one
// of a score; the key of NaN stands apart, since no comparison finds it.
template <class T>
struct ScoreBound {
  T from;
  T at;
  bool is_nan;

  PRUNEOPS_HD explicit ScoreBound(Key<T> key) : from(key_to_score<T>(key)), at(from), is_nan(key == 0) {
    const T lowest = -bit_cast<T>(static_cast<Key<T>>(sizeof(T) == 4 ? 0x7f800000u : 0x7ff0000000000000u));
    if (sort_key(from) != key) at = key_to_score<T>(0);  // -0.0, or a NaN: equals nothing
    if (key < sort_key(lowest)) from = lowest;
  }

  PRUNEOPS_HD static T value(T score) { return score; }
};

}  // namespace pruneops
