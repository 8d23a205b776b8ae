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

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PRUNEOPS_SHUFFLES

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

// The even or the odd entries of a and b, two of each in turn: shuffles within 16 bytes take the least time.
template <int kOdd, int... kLane>
PRUNEOPS_HD Vector<float> pick(const Vector<float>& a, const Vector<float>& b, Lanes<kLane...>) {
  constexpr int kSize = kEntries<float>;
  return __builtin_shufflevector(a, b, (kLane % 4 < 2 ? 0 : kSize) + kLane / 4 * 4 + kLane % 2 * 2 + kOdd...);
}
// The sums of pairs of entries, in the same order.
PRUNEOPS_HD Vector<float> sums_of_pairs(const Vector<float>& a, const Vector<float>& b) {
  return pick<0>(a, b, AllLanes{}) + pick<1>(a, b, AllLanes{});
}

// What two such steps make of four vectors, in the order of the vectors.
template <int... kLane>
PRUNEOPS_HD Vector<float> in_order(const Vector<float>& v, Lanes<kLane...>) {
  constexpr int kFours = kEntries<float> / 4;
  return __builtin_shufflevector(v, v, kLane % kFours * 4 + kLane / kFours...);
}
// The sums of fours of the entries of four vectors.
PRUNEOPS_HD Vector<float> sums_of_fours(const Vector<float>& a, const Vector<float>& b,
                                        const Vector<float>& c, const Vector<float>& d) {
  return in_order(sums_of_pairs(sums_of_pairs(a, b), sums_of_pairs(c, d)), AllLanes{});
}

#endif
#endif

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
