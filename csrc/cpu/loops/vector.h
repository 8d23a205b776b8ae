// Vectors as wide as the registers of the instruction set, for loops whose values the compiler would not keep
// in registers by itself.
#pragma once

#include "../../math/portable.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

#if defined(PRUNEOPS_AVX512)
constexpr int64_t kVectorBytes = 64;
#elif defined(PRUNEOPS_AVX2)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int64_t kEntries = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class T>
PRUNEOPS_HD Vector<T> load_vector(const T* entries) {
  Vector<T> v;
  memcpy(&v, entries, sizeof(v));
  return v;
}
template <class T>
PRUNEOPS_HD void store_vector(const Vector<T>& v, T* entries) {
  memcpy(entries, &v, sizeof(v));
}

template <int... kLane>
struct Lanes {};
using AllLanes =
#if defined(PRUNEOPS_AVX512)
    Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(PRUNEOPS_AVX2)
    Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
    Lanes<0, 1, 2, 3>;
#endif

// Entries of a and b in turn, by their places.
template <int... kPlace>
PRUNEOPS_HD Vector<float> shuffle(const Vector<float>& a, const Vector<float>& b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kPlace...);
#else
  return __builtin_shuffle(a, b, Vector<int32_t>{kPlace...});
#endif
}

// The even or the odd entries of a and b, two of each in turn: shuffles within 16 bytes take the least time.
template <int kOdd, int... kLane>
PRUNEOPS_HD Vector<float> pick(const Vector<float>& a, const Vector<float>& b, Lanes<kLane...>) {
  constexpr int kSize = kEntries<float>;
  return shuffle<((kLane % 4 < 2 ? 0 : kSize) + kLane / 4 * 4 + kLane % 2 * 2 + kOdd)...>(a, b);
}
// The sums of pairs of entries, in the same order.
PRUNEOPS_HD Vector<float> sums_of_pairs(const Vector<float>& a, const Vector<float>& b) {
  return pick<0>(a, b, AllLanes{}) + pick<1>(a, b, AllLanes{});
}

// What one such step makes of two vectors, or two of four, in the order of the vectors.
template <int... kLane>
PRUNEOPS_HD Vector<float> pairs_in_order(const Vector<float>& v, Lanes<kLane...>) {
  constexpr int kHalf = kEntries<float> / 2;
  return shuffle<(kLane % kHalf / 2 * 4 + kLane / kHalf * 2 + kLane % 2)...>(v, v);
}
template <int... kLane>
PRUNEOPS_HD Vector<float> fours_in_order(const Vector<float>& v, Lanes<kLane...>) {
  constexpr int kFours = kEntries<float> / 4;
  return shuffle<(kLane % kFours * 4 + kLane / kFours)...>(v, v);
}

// The sums of each kRun neighbours, 2 or 4, of the entries of as many vectors; vector(j) is the j-th.
template <int64_t kRun, class F>
PRUNEOPS_HD Vector<float> sums_of_runs(const F& vector) {
  const Vector<float> pairs = sums_of_pairs(vector(0), vector(1));
  if constexpr (kRun == 2) {
    return pairs_in_order(pairs, AllLanes{});
  } else {
    return fours_in_order(sums_of_pairs(pairs, sums_of_pairs(vector(2), vector(3))), AllLanes{});
  }
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
