// Keys or scores compared with a bound, a word of them at a time: one bit each.
#pragma once

#include "../../math/dtype.h"
#include "../../math/order.h"
#include "compare.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// A key to compare keys with.
template <class K>
struct KeyBound {
  K key;
};

// The bits that are read of bfloat16 scores: all, or of their magnitudes all but the sign.
constexpr uint16_t bfloat16_read(bool magnitude) {
  return magnitude ? 0x7fff : 0xffff;
}

// A key to compare bfloat16 scores with as they lie in memory, or their magnitudes: by their order as signed
// integers, once the bits below the sign of a negative one are flipped.
struct Bfloat16Bound {
  static constexpr int16_t kInfinity = -0x7f81;  // negative: NaN lies below

  int16_t from;  // what lies below is lower
  int16_t at;    // -1, which stands for -0.0 and is read as 0, where no score has the key
  uint16_t read;
  ScoreBound<float> score;

  Bfloat16Bound(uint32_t key, bool magnitude) : read(bfloat16_read(magnitude)), score(key) {
    constexpr uint32_t top = 0x8000, lowest = static_cast<uint16_t>(kInfinity) ^ top, highest = 0xffff;
    // The keys of two scores side by side differ by 2^16, those of negative ones end in ones.
    uint32_t bits = key < top << 16 ? key >> 16 : (key >> 16) + ((key & 0xffff) != 0);
    bits = bits < lowest ? lowest : bits > highest ? highest : bits;
    from = static_cast<int16_t>(bits ^ top);
    at = key == (bits < top ? bits << 16 | 0xffff : bits << 16) ? from : -1;
    if (key == 0) from = INT16_MIN;
  }

  float value(uint16_t bits) const { return bf16_to_float(bits & read); }
};

// The lowest n bits, none where n is negative and all from kWord on.
inline uint64_t first_bits(int64_t n) {
  return n >= kWord ? ~uint64_t(0) : n <= 0 ? 0 : (uint64_t(1) << n) - 1;
}

// f(i) for the bits of a word.
template <class F>
void for_bits(uint64_t bits, const F& f) {
  for (; bits != 0; bits &= bits - 1) f(__builtin_ctzll(bits));
}

template <class K>
uint64_t lower_word(const K* keys, const KeyBound<K>& bound) {
  return compare_word<Is::lower>(keys, bound.key);
}
template <class K>
uint64_t equal_word(const K* keys, const KeyBound<K>& bound) {
  return compare_word<Is::equal>(keys, bound.key);
}
// No comparison with a number finds NaN, and nothing is lower.
template <class T>
uint64_t lower_word(const T* scores, const ScoreBound<T>& bound) {
  return bound.is_nan ? 0 : compare_word<Is::not_at_least>(scores, bound.from);
}
template <class T>
uint64_t equal_word(const T* scores, const ScoreBound<T>& bound) {
  return bound.is_nan ? compare_word<Is::nan>(scores, T(0)) : compare_word<Is::equal>(scores, bound.at);
}

// A whole word of values in memory,
template <class V>
struct Whole {
  const V* values;

  template <class Bound>
  Whole(const V* first, const Bound&) : values(first) {}

  template <class Bound>
  uint64_t lower(const Bound& bound) const {
    return lower_word(values, bound);
  }
  template <class Bound>
  uint64_t equal(const Bound& bound) const {
    return equal_word(values, bound);
  }
};

// or of bfloat16 scores as integers of their order, NaN below all numbers.
template <>
struct Whole<uint16_t> {
  int16_t orders[kWord];

  Whole(const uint16_t* scores, const Bfloat16Bound& bound) {
    const uint16_t read = bound.read;
    for (int64_t i = 0; i < kWord; ++i) {
      const auto bits = static_cast<int16_t>(scores[i] & read);
      const auto order = static_cast<int16_t>(bits ^ ((bits >> 15) & 0x7fff));
      const auto number = static_cast<int16_t>(order + (order == -1));
      orders[i] = number > 0x7f80 ? int16_t(INT16_MIN) : number;
    }
  }
  uint64_t lower(const Bfloat16Bound& bound) const { return compare_word<Is::lower>(orders, bound.from); }
  uint64_t equal(const Bfloat16Bound& bound) const {
    if (bound.score.is_nan) return compare_word<Is::lower>(orders, Bfloat16Bound::kInfinity);
    return compare_word<Is::equal>(orders, bound.at);
  }
};

// Fewer than kWord values and zeros behind them, to be compared as a whole word.
template <class V>
struct Padded {
  V values[kWord] = {};

  Padded(const V* some, int64_t n) { memcpy(values, some, static_cast<size_t>(n) * sizeof(V)); }
};

// Which of n values equal a bound, n at most kWord. What is not a whole word is kept out of the loops over
// words, and gets copies: what a call might point to would be loaded again after every write to a mask.
template <class V, class Bound>
[[gnu::noinline, gnu::cold]] uint64_t ties_of_some(const V* values, int64_t n, Bound bound) {
  const Padded<V> word(values, n);
  return Whole<V>(word.values, bound).equal(bound) & first_bits(n);
}
template <class V, class Bound>
uint64_t ties_of(const V* values, int64_t n, const Bound& bound) {
  return n == kWord ? Whole<V>(values, bound).equal(bound) : ties_of_some(values, n, bound);
}

// Which of n scores are at least as high as a threshold, n at most kWord; none, where that is NaN.
template <class T>
[[gnu::noinline]] uint64_t at_least_of_some(const T* scores, int64_t n, T threshold) {
  return compare_word<Is::at_least>(Padded<T>(scores, n).values, threshold) & first_bits(n);
}
template <class T>
uint64_t at_least(const T* scores, int64_t n, T threshold) {
  return n == kWord ? compare_word<Is::at_least>(scores, threshold) : at_least_of_some(scores, n, threshold);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
