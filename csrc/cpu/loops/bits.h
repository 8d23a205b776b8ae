// Masks as bits, and as bytes of 0 or 1.
#pragma once

#include "../../math/portable.h"

#if defined(PRUNEOPS_AVX512) || defined(PRUNEOPS_AVX2)
#include <immintrin.h>
#endif

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// The 8 bits of a byte as 8 bytes of 0 or 1, lowest first: each bit is isolated in a byte of its own, and
// adding 0x7f carries into that byte's top bit where it is set.
PRUNEOPS_HD uint64_t spread_bits(uint8_t bits) {
  const uint64_t isolated = (bits * 0x0101010101010101u) & 0x8040201008040201u;
  return ((isolated + 0x7f7f7f7f7f7f7f7fu) >> 7) & 0x0101010101010101u;
}

// The inverse, of bytes that are 0 or not: adding 0x7f to the low bits of a byte carries into its top bit
// unless they are 0. Then the product moves byte i, times 2^(56 - 7 i), to bit 56 + i.
PRUNEOPS_HD uint8_t gather_bits(uint64_t bytes) {
  constexpr uint64_t low = 0x7f7f7f7f7f7f7f7fu;
  const uint64_t ones = (((bytes & low) + low) | bytes) >> 7 & 0x0101010101010101u;
  return static_cast<uint8_t>((ones * 0x0102040810204080u) >> 56);
}

// Bits [begin, begin + n) as bytes; begin is a multiple of 8.
void unpack_bits(const uint8_t* packed, int64_t begin, int64_t n, uint8_t* bytes) {
  const uint8_t* source = packed + begin / 8;
  const int64_t whole = n / 8;
  int64_t i = 0;
#if defined(PRUNEOPS_AVX512)
  for (; i + 8 <= whole; i += 8) {
    uint64_t word;
    memcpy(&word, source + i, 8);
    _mm512_storeu_si512(bytes + i * 8, _mm512_maskz_set1_epi8(word, 1));
  }
#elif defined(PRUNEOPS_AVX2)
  // Each byte eight times, in which one bit is looked at.
  const __m256i copies = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  for (; i + 4 <= whole; i += 4) {
    int32_t word;
    memcpy(&word, source + i, 4);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(word), copies);
    const __m256i ones = _mm256_min_epu8(_mm256_and_si256(spread, bit), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + i * 8), ones);
  }
#endif
  for (; i < whole; ++i) {
    const uint64_t spread = spread_bits(source[i]);
    memcpy(bytes + i * 8, &spread, 8);
  }
  for (i = whole * 8; i < n; ++i) bytes[i] = (source[whole] >> (i - whole * 8)) & 1;
}

// Which of n bytes are not 0, as bits; the unused bits of the last byte are 0.
void pack_bits(const uint8_t* bytes, int64_t n, uint8_t* packed) {
  const int64_t whole = n / 8;
  int64_t i = 0;
#if defined(PRUNEOPS_AVX512)
  for (; i + 8 <= whole; i += 8) {
    const __m512i some = _mm512_loadu_si512(bytes + i * 8);
    const uint64_t packed64 = _mm512_test_epi8_mask(some, some);
    memcpy(packed + i, &packed64, 8);
  }
#elif defined(PRUNEOPS_AVX2)
  for (; i + 4 <= whole; i += 4) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + i * 8));
    const int packed32 = ~_mm256_movemask_epi8(_mm256_cmpeq_epi8(some, _mm256_setzero_si256()));
    memcpy(packed + i, &packed32, 4);
  }
#endif
  for (; i < whole; ++i) {
    uint64_t eight;
    memcpy(&eight, bytes + i * 8, 8);
    packed[i] = gather_bits(eight);
  }
  if (n % 8 != 0) packed[whole] = 0;
  for (i = whole * 8; i < n; ++i) packed[whole] |= static_cast<uint8_t>((bytes[i] != 0) << (i - whole * 8));
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
