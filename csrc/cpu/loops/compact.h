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

// Which of at most kWord keys or scores are lower than a bound, and which equal it.
struct Compared {
  uint64_t lower;
  uint64_t equal;
};

// A key to compare keys with.
template <class K>
struct KeyBound {
  K key;

  bool above(K other) const { return other < key; }
  bool equals(K other) const { return other == key; }
};

// A key to compare bfloat16 scores with as they lie in memory, or their magnitudes: by their order as signed
// integers, once the bits below the sign of a negative one are flipped.
struct Bfloat16Bound {
  int16_t from;  // what is not NaN and lies below is lower
  int16_t at;    // -1, which stands for -0.0 and is read as 0, where no score has the key
  uint16_t read;
  ScoreBound<float> score;

  Bfloat16Bound(uint32_t key, bool magnitude) : read(magnitude ? 0x7fff : 0xffff), score(key) {
    constexpr uint32_t top = 0x8000, lowest = 0x7f, highest = 0xffff;
    // The keys of two scores side by side differ by 2^16, those of negative ones end in ones.
    uint32_t bits = key < top << 16 ? key >> 16 : (key >> 16) + ((key & 0xffff) != 0);
    bits = bits < lowest ? lowest : bits > highest ? highest : bits;
    from = static_cast<int16_t>(bits ^ top);
    at = key == (bits < top ? bits << 16 | 0xffff : bits << 16) ? from : -1;
  }

  float value(uint16_t bits) const { return bf16_to_float(bits & read); }
  bool above(uint16_t bits) const { return score.above(value(bits)); }
  bool equals(uint16_t bits) const { return score.equals(value(bits)); }
};

// The lowest n bits, none where n is negative and all from kWord on.
inline uint64_t first_bits(int64_t n) {
  return n >= kWord ? ~uint64_t(0) : n <= 0 ? 0 : (uint64_t(1) << n) - 1;
}

template <class V, class Bound>
Compared compare_plain(const V* values, int64_t n, const Bound& bound) {
  uint8_t lower[kWord] = {}, equal[kWord] = {};
  for (int64_t i = 0; i < n; ++i) {
    lower[i] = bound.above(values[i]);
    equal[i] = bound.equals(values[i]);
  }
  Compared result;
  pack_bits(lower, kWord, reinterpret_cast<uint8_t*>(&result.lower));
  pack_bits(equal, kWord, reinterpret_cast<uint8_t*>(&result.equal));
  return result;
}

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

inline Compared compare_whole(const uint32_t* keys, KeyBound<uint32_t> bound) {
  const __m512i key = _mm512_set1_epi32(static_cast<int>(bound.key));
  return {
      join16([&](int i) { return _mm512_cmplt_epu32_mask(_mm512_loadu_si512(keys + 16 * i), key); }),
      join16([&](int i) { return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(keys + 16 * i), key); }),
  };
}
inline Compared compare_whole(const uint64_t* keys, KeyBound<uint64_t> bound) {
  const __m512i key = _mm512_set1_epi64(static_cast<long long>(bound.key));
  return {
      join8([&](int i) { return _mm512_cmplt_epu64_mask(_mm512_loadu_si512(keys + 8 * i), key); }),
      join8([&](int i) { return _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(keys + 8 * i), key); }),
  };
}
template <int kPredicate>
uint64_t compare_word(const float* scores, float with) {
  const __m512 other = _mm512_set1_ps(with);
  return join16(
      [&](int i) { return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + 16 * i), other, kPredicate); });
}
template <int kPredicate>
uint64_t compare_word(const double* scores, double with) {
  const __m512d other = _mm512_set1_pd(with);
  return join8([&](int i) { return _mm512_cmp_pd_mask(_mm512_loadu_pd(scores + 8 * i), other, kPredicate); });
}
template <class T>
Compared compare_whole(const T* scores, const ScoreBound<T>& bound) {
  return {compare_word<_CMP_NGE_UQ>(scores, bound.from), compare_word<_CMP_EQ_OQ>(scores, bound.at)};
}

// 32 scores as integers of their order: NaN lies at both ends.
inline __m512i in_order(const uint16_t* scores, uint16_t read) {
  const __m512i bits =
      _mm512_and_si512(_mm512_loadu_si512(scores), _mm512_set1_epi16(static_cast<int16_t>(read)));
  const __m512i flip = _mm512_srli_epi16(_mm512_srai_epi16(bits, 15), 1);
  const __m512i order = _mm512_xor_si512(bits, flip);
  return _mm512_mask_mov_epi16(order, _mm512_cmpeq_epi16_mask(order, _mm512_set1_epi16(-1)),
                               _mm512_setzero_si512());
}
inline Compared compare_whole(const uint16_t* scores, const Bfloat16Bound& bound) {
  const __m512i first = in_order(scores, bound.read), second = in_order(scores + 32, bound.read);
  const __m512i from = _mm512_set1_epi16(bound.from), at = _mm512_set1_epi16(bound.at);
  const __m512i infinity = _mm512_set1_epi16(0x7f80);
  return {
      _mm512_kunpackd(_mm512_cmplt_epi16_mask(second, from), _mm512_cmplt_epi16_mask(first, from)) |
          _mm512_kunpackd(_mm512_cmpgt_epi16_mask(second, infinity),
                          _mm512_cmpgt_epi16_mask(first, infinity)),
      _mm512_kunpackd(_mm512_cmpeq_epi16_mask(second, at), _mm512_cmpeq_epi16_mask(first, at)),
  };
}

template <class K>
bool in_registers(KeyBound<K>) {
  return true;
}
template <class T>
bool in_registers(const ScoreBound<T>& bound) {
  return !bound.is_nan;
}
inline bool in_registers(const Bfloat16Bound& bound) {
  return !bound.score.is_nan;
}

// Kept out of the loops over whole words.
template <class V, class Bound>
[[gnu::noinline, gnu::cold]] Compared compare_rest(const V* values, int64_t n, const Bound& bound) {
  return compare_plain(values, n, bound);
}

template <class V, class Bound>
Compared compare(const V* values, int64_t n, const Bound& bound) {
  return n == kWord && in_registers(bound) ? compare_whole(values, bound) : compare_rest(values, n, bound);
}
#else
template <class V, class Bound>
Compared compare(const V* values, int64_t n, const Bound& bound) {
  return compare_plain(values, n, bound);
}
#endif

// Which of n scores are at least as high as a threshold, n at most kWord; none, where that is NaN.
template <class T>
uint64_t at_least_plain(const T* scores, int64_t n, T threshold) {
  uint8_t bytes[kWord] = {};
  uint64_t bits;
  for (int64_t i = 0; i < n; ++i) bytes[i] = scores[i] >= threshold;
  pack_bits(bytes, kWord, reinterpret_cast<uint8_t*>(&bits));
  return bits;
}
template <class T>
uint64_t at_least(const T* scores, int64_t n, T threshold) {
#if defined(PRUNEOPS_AVX512)
  if (n == kWord) return compare_word<_CMP_GE_OQ>(scores, threshold);
#endif
  return at_least_plain(scores, n, threshold);
}

// Where n keys or scores lie, n at most kWord; with one key for both ends, its ties are `at_low`.
struct Places {
  uint64_t below;
  uint64_t at_low;
  uint64_t between;
  uint64_t at_high;
  uint64_t from_high;  // the ties of the high end and what lies above

  template <class V, class Bound>
  Places(const V* values, int64_t n, const Bound& low_bound, const Bound& high_bound) {
    const uint64_t all = first_bits(n);
    const Compared low = compare(values, n, low_bound), high = compare(values, n, high_bound);
    below = low.lower;
    at_low = low.equal;
    at_high = high.equal & ~at_low;
    between = high.lower & ~(below | at_low);
    from_high = all & ~high.lower;
  }

  void count_into(BracketCounts& counts) const {
    counts.below += __builtin_popcountll(below);
    counts.at_low += __builtin_popcountll(at_low);
    counts.between += __builtin_popcountll(between);
    counts.at_high += __builtin_popcountll(at_high);
  }
};

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
  for (int64_t at = 0; at < n; at += kWord) {
    const int64_t some = min64(kWord, n - at);
    const Places places(keys + at, some, KeyBound<K>{bracket.low}, KeyBound<K>{bracket.high});
    if (places.between != 0) compact_word(keys + at, some, places.between, inside + counts.between);
    places.count_into(counts);
  }
  return counts;
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
