// What a pass does with keys and a bracket: it counts what lies below, at and above it, and either writes
// what lies strictly inside side by side, or says where that is and what lies above.
#pragma once

#include "../../math/bracket.h"
#include "../../math/order.h"
#include "bits.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Keys past the last one inside that `inside` must have room for.
constexpr int64_t kCompactRoom = 16;

// `inside` has room for n + kCompactRoom keys and may be `keys`; with one key for both ends, its ties count
// as `at_low`.
template <class K>
BracketCounts compact_plain(const K* keys, int64_t n, const Bracket<K>& bracket, K* inside) {
  const K low = bracket.low, high = bracket.high;
  BracketCounts counts{};
  for (int64_t i = 0; i < n; ++i) {
    const K key = keys[i];
    counts.below += key < low;
    counts.at_low += key == low;
    counts.at_high += (key == high) & (low != high);
    inside[counts.between] = key;
    counts.between += (key > low) & (key < high);
  }
  return counts;
}

// Keys that are classified at a time: one bit each in a word.
constexpr int64_t kWord = 64;

// Adds n keys, at most kWord, to the counts, writes which are from the high end on, and returns which lie
// strictly inside.
template <class K>
uint64_t classify_plain(const K* keys, int64_t n, const Bracket<K>& bracket, BracketCounts& counts,
                        uint8_t* from_high) {
  const K low = bracket.low, high = bracket.high;
  uint8_t inside[kWord] = {};
  int32_t from_low = 0, above_low = 0, at_high = 0, above = 0;
  for (int64_t i = 0; i < n; ++i) {
    from_low += keys[i] >= low;
    above_low += keys[i] > low;
    above += keys[i] > high;
  }
  for (int64_t i = 0; i < n; ++i) {
    from_high[i] = keys[i] >= high;
    at_high += keys[i] == high;
    inside[i] = (keys[i] > low) & (keys[i] < high);
  }
  counts.below += n - from_low;
  counts.at_low += from_low - above_low;
  if (low == high) return 0;
  counts.at_high += at_high;
  const int64_t between = above_low - above - at_high;
  counts.between += between;
  uint64_t bits = 0;
  if (between != 0) pack_bits(inside, kWord, reinterpret_cast<uint8_t*>(&bits));
  return bits;
}

#if defined(PRUNEOPS_AVX512)
struct Keys32 {
  using Vector = __m512i;
  static constexpr int kLanes = 16;
  static Vector all(uint32_t key) { return _mm512_set1_epi32(static_cast<int>(key)); }
  static unsigned less(Vector a, Vector b) { return _mm512_cmplt_epu32_mask(a, b); }
  static unsigned equal(Vector a, Vector b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static Vector compress(unsigned mask, Vector a) {
    return _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), a);
  }
};
struct Keys64 {
  using Vector = __m512i;
  static constexpr int kLanes = 8;
  static Vector all(uint64_t key) { return _mm512_set1_epi64(static_cast<long long>(key)); }
  static unsigned less(Vector a, Vector b) { return _mm512_cmplt_epu64_mask(a, b); }
  static unsigned equal(Vector a, Vector b) { return _mm512_cmpeq_epi64_mask(a, b); }
  static Vector compress(unsigned mask, Vector a) {
    return _mm512_maskz_compress_epi64(static_cast<__mmask8>(mask), a);
  }
};
template <class K>
struct Lanes;
template <>
struct Lanes<uint32_t> : Keys32 {};
template <>
struct Lanes<uint64_t> : Keys64 {};

template <class K>
BracketCounts compact(const K* keys, int64_t n, const Bracket<K>& bracket, K* inside) {
  using L = Lanes<K>;
  const auto low = L::all(bracket.low), high = L::all(bracket.high);
  const unsigned apart = bracket.low != bracket.high ? ~0u : 0u;
  BracketCounts counts{};
  int64_t i = 0;
  for (; i + L::kLanes <= n; i += L::kLanes) {
    const auto some = _mm512_loadu_si512(keys + i);
    const unsigned between = L::less(low, some) & L::less(some, high);
    counts.below += __builtin_popcount(L::less(some, low));
    counts.at_low += __builtin_popcount(L::equal(some, low));
    counts.at_high += __builtin_popcount(L::equal(some, high) & apart);
    _mm512_storeu_si512(inside + counts.between, L::compress(between, some));
    counts.between += __builtin_popcount(between);
  }
  const BracketCounts rest = compact_plain(keys + i, n - i, bracket, inside + counts.between);
  return {counts.below + rest.below, counts.at_low + rest.at_low, counts.between + rest.between,
          counts.at_high + rest.at_high};
}

template <class K>
uint64_t classify(const K* keys, int64_t n, const Bracket<K>& bracket, BracketCounts& counts,
                  uint8_t* from_high) {
  if (n < kWord) return classify_plain(keys, n, bracket, counts, from_high);
  using L = Lanes<K>;
  const auto low = L::all(bracket.low), high = L::all(bracket.high);
  uint64_t below = 0, at_low = 0, at_high = 0, above = 0;
#pragma GCC unroll 8
  for (int i = 0; i < kWord; i += L::kLanes) {
    const auto some = _mm512_loadu_si512(keys + i);
    below |= static_cast<uint64_t>(L::less(some, low)) << i;
    at_low |= static_cast<uint64_t>(L::equal(some, low)) << i;
    at_high |= static_cast<uint64_t>(L::equal(some, high)) << i;
    above |= static_cast<uint64_t>(L::less(high, some)) << i;
  }
  const __m512i bytes = _mm512_maskz_set1_epi8(at_high | above, 1);
  _mm512_storeu_si512(from_high, bytes);
  if (bracket.low == bracket.high) at_high = 0;
  const uint64_t between = ~(below | at_low | at_high | above);
  counts.below += __builtin_popcountll(below);
  counts.at_low += __builtin_popcountll(at_low);
  counts.at_high += __builtin_popcountll(at_high);
  counts.between += __builtin_popcountll(between);
  return between;
}
#else
template <class K>
uint64_t classify(const K* keys, int64_t n, const Bracket<K>& bracket, BracketCounts& counts,
                  uint8_t* from_high) {
  return classify_plain(keys, n, bracket, counts, from_high);
}

template <class K>
BracketCounts compact(const K* keys, int64_t n, const Bracket<K>& bracket, K* inside) {
  return compact_plain(keys, n, bracket, inside);
}
#endif

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
