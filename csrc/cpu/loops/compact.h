// What a pass does with keys, or scores, and a bracket: it counts what lies below, at and above it, and
// either writes what lies strictly inside side by side, or says where that is and what lies above.
#pragma once

#include "../../math/bracket.h"
#include "../../math/order.h"
#include "bits.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Keys or scores that are compared at a time: one bit each in a word.
constexpr int64_t kWord = 64;

// A key to compare keys with.
template <class K>
struct KeyBound {
  K key;

  bool above(K other) const { return other < key; }
  bool equals(K other) const { return other == key; }
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
  bool above(uint16_t bits) const { return score.above(value(bits)); }
  bool equals(uint16_t bits) const { return score.equals(value(bits)); }
};

// The lowest n bits, none where n is negative and all from kWord on.
inline uint64_t first_bits(int64_t n) {
  return n >= kWord ? ~uint64_t(0) : n <= 0 ? 0 : (uint64_t(1) << n) - 1;
}

// A bit for each of at most kWord values: f(value).
template <class V, class F>
uint64_t word_of(const V* values, int64_t n, const F& f) {
  uint8_t bytes[kWord] = {};
  uint64_t bits;
  for (int64_t i = 0; i < n; ++i) bytes[i] = f(values[i]);
  pack_bits(bytes, kWord, reinterpret_cast<uint8_t*>(&bits));
  return bits;
}

// At most kWord values: which are lower than a bound, and which equal it.
template <class V>
struct Some {
  const V* values;
  int64_t n;

  template <class Bound>
  uint64_t lower(const Bound& bound) const {
    return word_of(values, n, [&](V value) { return bound.above(value); });
  }
  template <class Bound>
  uint64_t equal(const Bound& bound) const {
    return word_of(values, n, [&](V value) { return bound.equals(value); });
  }
};

#if defined(PRUNEOPS_AVX512)
// A word of the masks f(0), f(1), ... of 16 or 8 keys. They are joined as masks: GCC 12 may write a narrow
// mask that it was told to widen to memory as it is, and read it back wide.
template <class F>
uint64_t join16(const F& f) {
  return _mm512_kunpackd(_mm512_kunpackw(f(3), f(2)), _mm512_kunpackw(f(1), f(0)));
}
template <class F>
uint64_t join8(const F& f) {
  return join16([&](int i) { return _mm512_kunpackb(f(2 * i + 1), f(2 * i)); });
}

// A mask of the values of one register.
template <int kPredicate>
__mmask16 compare_vector(const float* scores, float with) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(with), kPredicate);
}
template <int kPredicate>
__mmask8 compare_vector(const double* scores, double with) {
  return _mm512_cmp_pd_mask(_mm512_loadu_pd(scores), _mm512_set1_pd(with), kPredicate);
}
template <int kPredicate>
__mmask16 compare_vector(const uint32_t* keys, uint32_t with) {
  const __m512i other = _mm512_set1_epi32(static_cast<int>(with));
  return _mm512_cmp_epu32_mask(_mm512_loadu_si512(keys), other, kPredicate);
}
template <int kPredicate>
__mmask8 compare_vector(const uint64_t* keys, uint64_t with) {
  const __m512i other = _mm512_set1_epi64(static_cast<long long>(with));
  return _mm512_cmp_epu64_mask(_mm512_loadu_si512(keys), other, kPredicate);
}
template <int kPredicate, class V>
uint64_t compare_word(const V* values, V with) {
  const auto vector = [&](int i) {
    return compare_vector<kPredicate>(values + i * static_cast<int64_t>(64 / sizeof(V)), with);
  };
  if constexpr (sizeof(V) == 4) {
    return join16(vector);
  } else {
    return join8(vector);
  }
}

template <class K>
uint64_t lower_word(const K* keys, const KeyBound<K>& bound) {
  return compare_word<_MM_CMPINT_LT>(keys, bound.key);
}
template <class K>
uint64_t equal_word(const K* keys, const KeyBound<K>& bound) {
  return compare_word<_MM_CMPINT_EQ>(keys, bound.key);
}
// No comparison with a number finds NaN, and nothing is lower.
template <class T>
uint64_t lower_word(const T* scores, const ScoreBound<T>& bound) {
  return bound.is_nan ? 0 : compare_word<_CMP_NGE_UQ>(scores, bound.from);
}
template <class T>
uint64_t equal_word(const T* scores, const ScoreBound<T>& bound) {
  return bound.is_nan ? compare_word<_CMP_UNORD_Q>(scores, T(0)) : compare_word<_CMP_EQ_OQ>(scores, bound.at);
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
  __m512i first;
  __m512i second;

  Whole(const uint16_t* scores, const Bfloat16Bound& bound)
      : first(in_order(scores, bound.read)), second(in_order(scores + 32, bound.read)) {}

  static __m512i in_order(const uint16_t* scores, uint16_t read) {
    const __m512i bits =
        _mm512_and_si512(_mm512_loadu_si512(scores), _mm512_set1_epi16(static_cast<int16_t>(read)));
    const __m512i flip = _mm512_srli_epi16(_mm512_srai_epi16(bits, 15), 1);
    const __m512i order = _mm512_xor_si512(bits, flip);
    const __mmask32 is_zero = _mm512_cmpeq_epi16_mask(order, _mm512_set1_epi16(-1));
    const __mmask32 is_nan = _mm512_cmpgt_epi16_mask(order, _mm512_set1_epi16(0x7f80));
    return _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(order, is_zero, _mm512_setzero_si512()), is_nan,
                                 _mm512_set1_epi16(INT16_MIN));
  }
  uint64_t below(int16_t order) const {
    const __m512i from = _mm512_set1_epi16(order);
    return _mm512_kunpackd(_mm512_cmplt_epi16_mask(second, from), _mm512_cmplt_epi16_mask(first, from));
  }
  uint64_t lower(const Bfloat16Bound& bound) const { return below(bound.from); }
  uint64_t equal(const Bfloat16Bound& bound) const {
    if (bound.score.is_nan) return below(Bfloat16Bound::kInfinity);
    const __m512i at = _mm512_set1_epi16(bound.at);
    return _mm512_kunpackd(_mm512_cmpeq_epi16_mask(second, at), _mm512_cmpeq_epi16_mask(first, at));
  }
};
#endif

// Which of n values equal a bound, n at most kWord. What is not a whole word is kept out of the loops over
// words, and gets copies: what a call might point to would be loaded again after every write to a mask.
template <class V, class Bound>
[[gnu::noinline, gnu::cold]] uint64_t ties_of_some(const V* values, int64_t n, Bound bound) {
  return Some<V>{values, n}.equal(bound);
}
template <class V, class Bound>
uint64_t ties_of(const V* values, int64_t n, const Bound& bound) {
#if defined(PRUNEOPS_AVX512)
  if (n == kWord) return Whole<V>(values, bound).equal(bound);
#endif
  return ties_of_some(values, n, bound);
}

// Which of n scores are at least as high as a threshold, n at most kWord; none, where that is NaN.
template <class T>
uint64_t at_least(const T* scores, int64_t n, T threshold) {
#if defined(PRUNEOPS_AVX512)
  if (n == kWord) return compare_word<_CMP_GE_OQ>(scores, threshold);
#endif
  return word_of(scores, n, [&](T score) { return score >= threshold; });
}

// The ends of a bracket, and the key past the high one, which what is not above the bracket is lower than.
template <class Bound>
struct Ends {
  Bound low;
  Bound high;
  Bound past;
};
// make_bound(key) makes a bound. No score has the highest key.
template <class K, class F>
auto ends_of(const Bracket<K>& bracket, const F& make_bound) {
  const K past = bracket.high == static_cast<K>(~K(0)) ? bracket.high : static_cast<K>(bracket.high + 1);
  return Ends<decltype(make_bound(past))>{make_bound(bracket.low), make_bound(bracket.high),
                                          make_bound(past)};
}

// On which side of a bracket at most kWord keys or scores lie: two comparisons, all that most words need.
struct Sides {
  uint64_t below;
  uint64_t inside;  // between the ends, or at one of them
  uint64_t above;
};

// Where those inside lie; with one key for both ends, its ties are `at_low`.
struct Places {
  uint64_t at_low;
  uint64_t between;
  uint64_t ties_of_high;

  void count_into(BracketCounts& counts) const {
    counts.at_low += __builtin_popcountll(at_low);
    counts.between += __builtin_popcountll(between);
    counts.at_high += __builtin_popcountll(ties_of_high & ~at_low);
  }
};

template <class Word, class Bound>
Sides sides_in(const Word& word, int64_t n, const Ends<Bound>& ends) {
  const uint64_t below = word.lower(ends.low), to_high = word.lower(ends.past);
  return {below, to_high & ~below, first_bits(n) & ~to_high};
}
template <class V, class Bound>
[[gnu::noinline, gnu::cold]] Sides sides_of_some(const V* values, int64_t n, Ends<Bound> ends) {
  return sides_in(Some<V>{values, n}, n, ends);
}
template <class V, class Bound>
Sides sides_of(const V* values, int64_t n, const Ends<Bound>& ends) {
#if defined(PRUNEOPS_AVX512)
  if (n == kWord) return sides_in(Whole<V>(values, ends.low), n, ends);
#endif
  return sides_of_some(values, n, ends);
}

template <class V, class Bound>
Places places_of(const V* values, int64_t n, uint64_t inside, const Ends<Bound>& ends) {
  const uint64_t at_low = ties_of(values, n, ends.low), ties_of_high = ties_of(values, n, ends.high);
  return {at_low, inside & ~(at_low | ties_of_high), ties_of_high};
}

// f(i) for the bits of a word.
template <class F>
void for_bits(uint64_t bits, const F& f) {
  for (; bits != 0; bits &= bits - 1) f(__builtin_ctzll(bits));
}

// Keys past the last one inside that `inside` must have room for.
constexpr int64_t kCompactRoom = 16;

// Writes the keys or scores that `bits` names, of n at most kWord, side by side; `inside` may be where they
// lie.
template <class V>
void compact_word(const V* values, int64_t n, uint64_t bits, V* inside) {
#if defined(PRUNEOPS_AVX512)
  if constexpr (sizeof(V) == 4) {
    if (n == kWord) {
      for (int i = 0; i < kWord; i += 16) {
        const auto some = static_cast<__mmask16>(bits >> i);
        _mm512_storeu_si512(inside, _mm512_maskz_compress_epi32(some, _mm512_loadu_si512(values + i)));
        inside += __builtin_popcountll(bits >> i & 0xffff);
      }
      return;
    }
  }
#endif
  for_bits(bits, [&](int i) { *inside++ = values[i]; });
}

// `inside` has room for n + kCompactRoom keys and may be `keys`.
template <class K>
BracketCounts compact(const K* keys, int64_t n, const Bracket<K>& bracket, K* inside) {
  BracketCounts counts{};
  const auto ends = ends_of(bracket, [](K key) { return KeyBound<K>{key}; });
  for (int64_t at = 0; at < n; at += kWord) {
    const int64_t some = min64(kWord, n - at);
    const Sides sides = sides_of(keys + at, some, ends);
    counts.below += __builtin_popcountll(sides.below);
    if (sides.inside == 0) continue;
    const Places places = places_of(keys + at, some, sides.inside, ends);
    compact_word(keys + at, some, places.between, inside + counts.between);
    places.count_into(counts);
  }
  return counts;
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
