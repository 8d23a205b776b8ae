// What lets one formula compile for the host, for every vector instruction set, and for the device.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PRUNEOPS_HD __host__ __device__ __forceinline__
#else
// Forced: an out-of-line copy made under one instruction set could be linked into code for another.
#define PRUNEOPS_HD inline __attribute__((always_inline))
#endif

namespace pruneops {

template <class To, class From>
PRUNEOPS_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of equal size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

PRUNEOPS_HD int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
// a / b of numbers that are not negative: in 32 bits, where they fit, it takes a fraction of the time.
PRUNEOPS_HD int64_t divide(int64_t a, int64_t b) {
  if (static_cast<uint64_t>(a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}
PRUNEOPS_HD bool is_power_of_two(int64_t x) {
  return (x & (x - 1)) == 0;
}
PRUNEOPS_HD int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}

}  // namespace pruneops
