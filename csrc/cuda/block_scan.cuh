// Sums over the threads of a warp or of a block.
#pragma once

#include "launch.h"

namespace pruneops::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Scan {
  T before;  // sum over the threads of the warp or block before this one
  T total;   // sum over all threads
};

// The sum over the lanes up to this one. Every lane of the warp calls it.
template <class T>
__device__ __forceinline__ T sum_up_to(T value) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  return value;
}

template <class T>
__device__ __forceinline__ Scan<T> warp_scan(T value) {
  const T inclusive = sum_up_to(value);
  return {inclusive - value, __shfl_sync(kAllLanes, inclusive, kWarp - 1)};
}

// Every thread of the block calls this; `partial` is shared by them. The barrier at the start lets a block
// call it again with the same `partial`.
template <class T>
__device__ __forceinline__ Scan<T> block_scan(T value, T (&partial)[kWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T inclusive = sum_up_to(value);
  __syncthreads();
  if (lane == kWarp - 1) partial[warp] = inclusive;
  __syncthreads();
  Scan<T> scan{inclusive - value, T(0)};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) scan.before += partial[w];
    scan.total += partial[w];
  }
  return scan;
}

}  // namespace pruneops::cuda
