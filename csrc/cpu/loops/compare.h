// Which of 64 values compare in a way with another, one bit each.
#pragma once

#include "bits.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Values that are compared at a time.
constexpr int64_t kWord = 64;

enum class Is { lower, equal, at_least, not_at_least, nan };

template <Is kIs, class V>
PRUNEOPS_HD bool compare(V value, V with) {
  return kIs == Is::lower          ? value < with
         : kIs == Is::equal        ? value == with
         : kIs == Is::at_least     ? value >= with
         : kIs == Is::not_at_least ? !(value >= with)
                                   : value != value;
}

#if defined(PRUNEOPS_AVX512) || defined(PRUNEOPS_AVX2)
constexpr int float_predicate(Is is) {
  return is == Is::lower          ? _CMP_LT_OQ
         : is == Is::equal        ? _CMP_EQ_OQ
         : is == Is::at_least     ? _CMP_GE_OQ
         : is == Is::not_at_least ? _CMP_NGE_UQ
                                  : _CMP_UNORD_Q;
}
#endif

#if defined(PRUNEOPS_AVX512)
constexpr int int_predicate(Is is) {
  return is == Is::lower ? _MM_CMPINT_LT : _MM_CMPINT_EQ;
}

// A mask of the values of one register.
template <Is kIs>
__mmask16 compare_vector(const float* scores, float with) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(with), float_predicate(kIs));
}
template <Is kIs>
__mmask8 compare_vector(const double* scores, double with) {
  return _mm512_cmp_pd_mask(_mm512_loadu_pd(scores), _mm512_set1_pd(with), float_predicate(kIs));
}
template <Is kIs>
__mmask16 compare_vector(const uint32_t* keys, uint32_t with) {
  const __m512i other = _mm512_set1_epi32(static_cast<int>(with));
  return _mm512_cmp_epu32_mask(_mm512_loadu_si512(keys), other, int_predicate(kIs));
}
template <Is kIs>
__mmask8 compare_vector(const uint64_t* keys, uint64_t with) {
  const __m512i other = _mm512_set1_epi64(static_cast<long long>(with));
  return _mm512_cmp_epu64_mask(_mm512_loadu_si512(keys), other, int_predicate(kIs));
}
template <Is kIs>
__mmask32 compare_vector(const int16_t* orders, int16_t with) {
  return _mm512_cmp_epi16_mask(_mm512_loadu_si512(orders), _mm512_set1_epi16(with), int_predicate(kIs));
}

// Masks are joined as masks: GCC 12 may write a narrow one that it was told to widen to memory as it is, and
// read it back wide.
template <Is kIs, class V>
uint64_t compare_word(const V* values, V with) {
  const auto mask = [&](int i) {
    return compare_vector<kIs>(values + i * static_cast<int64_t>(64 / sizeof(V)), with);
  };
  const auto join16 = [](const auto& f) {
    return _mm512_kunpackd(_mm512_kunpackw(f(3), f(2)), _mm512_kunpackw(f(1), f(0)));
  };
  if constexpr (sizeof(V) == 2) {
    return _mm512_kunpackd(mask(1), mask(0));
  } else if constexpr (sizeof(V) == 4) {
    return join16(mask);
  } else {
    return join16([&](int i) { return _mm512_kunpackb(mask(2 * i + 1), mask(2 * i)); });
  }
}
#else
// Compilers make vectors of a loop whose length they know.
template <Is kIs, class V>
PRUNEOPS_HD uint64_t compare_word(const V* values, V with) {
  uint8_t bytes[kWord];
  uint64_t word;
  for (int64_t i = 0; i < kWord; ++i) bytes[i] = compare<kIs>(values[i], with);
  pack_bits(bytes, kWord, reinterpret_cast<uint8_t*>(&word));
  return word;
}
#endif

#if defined(PRUNEOPS_AVX2)
// The usual types with fewer instructions: all ones or zeros of a comparison are narrowed by saturation,
// which takes the halves of two registers in turn.
PRUNEOPS_HD uint64_t join_bytes(__m256i first, __m256i second) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(first)) |
         static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(second))) << 32;
}

template <Is kIs>
PRUNEOPS_HD uint64_t compare_word(const float* scores, float with) {
  const auto lanes = [&](int i) {
    const __m256 some = _mm256_loadu_ps(scores + i * 8);
    return _mm256_castps_si256(_mm256_cmp_ps(some, _mm256_set1_ps(with), float_predicate(kIs)));
  };
  const auto half = [&](int i) {
    const __m256i low = _mm256_packs_epi32(lanes(i), lanes(i + 1));
    const __m256i high = _mm256_packs_epi32(lanes(i + 2), lanes(i + 3));
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
  };
  return join_bytes(half(0), half(4));
}

template <Is kIs>
PRUNEOPS_HD uint64_t compare_word(const int16_t* orders, int16_t with) {
  const __m256i other = _mm256_set1_epi16(with);
  const auto lanes = [&](int i) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(orders + i * 16));
    return kIs == Is::lower ? _mm256_cmpgt_epi16(other, some) : _mm256_cmpeq_epi16(other, some);
  };
  const auto half = [&](int i) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi16(lanes(i), lanes(i + 1)), 0xd8);
  };
  return join_bytes(half(0), half(2));
}
#endif

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
