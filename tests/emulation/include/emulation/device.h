// The CUDA C++ that device code is written in: keywords, built-in variables, barriers, warp functions,
// intrinsics.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "atomics.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
// Static and dynamic shared memory alike lie in the module's thread-local segment, whose bounds the loader
// knows.
#define __shared__ thread_local
// Defines what kernels of this namespace, which must have a name, declare as `extern __shared__ type name[]`.
#define EMULATION_DYNAMIC_SHARED(type, name)                      \
  thread_local type name[emulation::kOptInShared / sizeof(type)]; \
  [[maybe_unused]] static const bool emulation_declared_##name =  \
      emulation::declare_dynamic_shared([]() -> const void* { return name; })

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index())
#define blockDim (emulation::block_size())
#define gridDim (emulation::grid_size())

__forceinline__ void __syncthreads() {
  emulation::barrier(emulation::Barrier::sync, false);
}
__forceinline__ int __syncthreads_count(int predicate) {
  return emulation::barrier(emulation::Barrier::count, predicate != 0);
}
__forceinline__ int __syncthreads_and(int predicate) {
  return emulation::barrier(emulation::Barrier::all, predicate != 0);
}
__forceinline__ int __syncthreads_or(int predicate) {
  return emulation::barrier(emulation::Barrier::any, predicate != 0);
}

__attribute__((noinline)) inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::gather(emulation::Collective::syncwarp, mask, 0, __builtin_return_address(0));
}
// Fences order, but make no thread wait: they never excuse a race.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}
// Only the caller is sure to be converged.
inline unsigned __activemask() {
  return 1u << emulation::lane();
}

namespace emulation {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "warp functions move up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// source(own lane, first lane of its segment of `width` lanes) is the lane whose value it gets.
template <class T, class Source>
__attribute__((noinline, no_sanitize("thread"))) T shuffle(Collective operation, unsigned mask, T value,
                                                           int width, Source source) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    trap("shuffles with a width that is no power of two");
  const uint64_t* values = gather(operation, mask, to_bits(value), __builtin_return_address(0));
  const int own = static_cast<int>(lane());
  return from_bits<T>(values[source(own, own & ~(width - 1))]);
}

template <class T, class Start, class Fold>
__attribute__((noinline, no_sanitize("thread"))) T fold(Collective operation, unsigned mask, uint64_t value,
                                                        Start start, Fold f) {
  const uint64_t* values = gather(operation, mask, value, __builtin_return_address(0));
  T result = start;
  for (unsigned i = 0; i < 32; ++i) {
    if (mask >> i & 1) result = f(result, values[i], i);
  }
  return result;
}

}  // namespace emulation

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulation::shuffle(emulation::Collective::shfl, mask, value, width,
                            [=](int, int begin) { return begin + (source & (width - 1)); });
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::shuffle(emulation::Collective::shfl_up, mask, value, width, [=](int own, int begin) {
    return static_cast<int>(delta) > own - begin ? own : own - static_cast<int>(delta);
  });
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::shuffle(emulation::Collective::shfl_down, mask, value, width, [=](int own, int begin) {
    return static_cast<int>(delta) >= begin + width - own ? own : own + static_cast<int>(delta);
  });
}
// Lanes of earlier segments can be reached, those of later ones not.
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulation::shuffle(emulation::Collective::shfl_xor, mask, value, width, [=](int own, int begin) {
    const int from = own ^ (lanes & 31);
    return from < begin + width ? from : own;
  });
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulation::fold<unsigned>(emulation::Collective::ballot, mask, predicate != 0, 0u,
                                   [](unsigned r, uint64_t v, unsigned i) { return v ? r | 1u << i : r; });
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return emulation::fold<int>(emulation::Collective::any, mask, predicate != 0, 0,
                              [](int r, uint64_t v, unsigned) { return r | static_cast<int>(v); });
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return emulation::fold<int>(emulation::Collective::all, mask, predicate != 0, 1,
                              [](int r, uint64_t v, unsigned) { return r & static_cast<int>(v); });
}
template <class T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t own = emulation::to_bits(value);
  return emulation::fold<unsigned>(
      emulation::Collective::match_any, mask, own, 0u,
      [=](unsigned r, uint64_t v, unsigned i) { return v == own ? r | 1u << i : r; });
}
template <class T>
__forceinline__ unsigned __match_all_sync(unsigned mask, T value, int* all) {
  const uint64_t own = emulation::to_bits(value);
  *all = emulation::fold<int>(emulation::Collective::match_all, mask, own, 1,
                              [=](int r, uint64_t v, unsigned) { return r & static_cast<int>(v == own); });
  return *all ? mask : 0u;
}
__forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return emulation::fold<unsigned>(
      emulation::Collective::reduce, mask, value, 0u,
      [](unsigned r, uint64_t v, unsigned) { return r + static_cast<unsigned>(v); });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}

// The bytes of b and a, of which each place of `selector` names one; the signs of bytes are not asked for.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = a | static_cast<uint64_t>(b) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
// One rounding each: the build switches contraction off.
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
