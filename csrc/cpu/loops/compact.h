// What a pass does with keys, or scores, and a bracket: it counts what lies below, at and above it, and
// either writes what lies strictly inside side by side, or says where that is and what lies above.
#pragma once

#include "../../math/bracket.h"
#include "words.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

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
  const uint64_t all = first_bits(n), below = word.lower(ends.low) & all,
                 to_high = word.lower(ends.past) & all;
  return {below, to_high & ~below, all & ~to_high};
}
template <class V, class Bound>
[[gnu::noinline, gnu::cold]] Sides sides_of_some(const V* values, int64_t n, Ends<Bound> ends) {
  const Padded<V> word(values, n);
  return sides_in(Whole<V>(word.values, ends.low), n, ends);
}
template <class V, class Bound>
Sides sides_of(const V* values, int64_t n, const Ends<Bound>& ends) {
  return n == kWord ? sides_in(Whole<V>(values, ends.low), kWord, ends) : sides_of_some(values, n, ends);
}

template <class V, class Bound>
Places places_of(const V* values, int64_t n, uint64_t inside, const Ends<Bound>& ends) {
  const uint64_t at_low = ties_of(values, n, ends.low), ties_of_high = ties_of(values, n, ends.high);
  return {at_low, inside & ~(at_low | ties_of_high), ties_of_high};
}

// Keys past the last one inside that `inside` must have room for.
constexpr int64_t kCompactRoom = 16;

#if defined(PRUNEOPS_AVX2)
// For each set of lanes of a register, its lanes in order, 4 bits each.
struct LaneTable {
  uint32_t lanes[256];

  constexpr LaneTable() : lanes() {
    for (uint32_t set = 0; set < 256; ++set) {
      for (uint32_t lane = 0, found = 0; lane < 8; ++lane) {
        if ((set >> lane & 1) != 0) lanes[set] |= lane << 4 * found++;
      }
    }
  }
};
constexpr LaneTable kLaneTable;
#endif

// Writes those of the keys or scores of one register that `bits` names side by side, and what is in the way
// behind them.
#if defined(PRUNEOPS_AVX512)
constexpr int64_t kCompressed = 16;
template <class V>
void compress(const V* values, uint64_t bits, V* inside) {
  const __m512i some = _mm512_loadu_si512(values);
  _mm512_storeu_si512(inside, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), some));
}
#elif defined(PRUNEOPS_AVX2)
constexpr int64_t kCompressed = 8;
template <class V>
void compress(const V* values, uint64_t bits, V* inside) {
  const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i lanes = _mm256_set1_epi32(static_cast<int>(kLaneTable.lanes[bits & 0xff]));
  const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(inside),
                      _mm256_permutevar8x32_epi32(some, _mm256_srlv_epi32(lanes, shifts)));
}
#endif

// Writes the keys or scores that `bits` names, of n at most kWord, side by side; `inside` may be where they
// lie.
template <class V>
void compact_word(const V* values, int64_t n, uint64_t bits, V* inside) {
#if defined(PRUNEOPS_AVX512) || defined(PRUNEOPS_AVX2)
  if constexpr (sizeof(V) == 4) {
    if (n == kWord) {
      constexpr uint64_t kAll = (uint64_t(1) << kCompressed) - 1;
      for (int64_t i = 0; i < kWord; i += kCompressed) {
        compress(values + i, bits >> i & kAll, inside);
        inside += __builtin_popcountll(bits >> i & kAll);
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
