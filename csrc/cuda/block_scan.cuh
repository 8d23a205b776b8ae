// Sums over the threads of a block.
#pragma once

#include "launch.h"

namespace pruneops::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Scan {
  T before;  // sum over the threads before this one
  T total;   // sum over all threads
};

// Every thread of the block calls this; `partial` is shared by them. The barrier at the start lets a block
// call it again with the same `partial`.
template <class T>
__device__ __forceinline__ Scan<T> block_scan(T value, T (&partial)[kWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  T inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, inclusive, distance);
    if (lane >= distance) inclusive += other;
  }
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
