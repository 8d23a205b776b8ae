// Launchers of the kernels that try the emulation itself: correct ones, and ones with a fault each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace planted {

struct Case {
  const char* name;
  // Launches on `blocks` blocks of `threads` threads; input and output hold one int per thread of the grid.
  void (*launch)(unsigned blocks, unsigned threads, const int* input, int* output);
};

template <void (*kKernel)(const int*, int*)>
void on(unsigned blocks, unsigned threads, const int* input, int* output) {
  emulation::launch(kKernel, blocks, threads, cudaStream_t{}, input, output);
}

constexpr int kMaxThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int global_index() {
  return blockIdx.x * blockDim.x + threadIdx.x;
}

// The lanes of the caller's warp that exist.
__device__ inline unsigned lanes_here() {
  const unsigned left = blockDim.x - threadIdx.x / 32 * 32;
  return left >= 32 ? kAllLanes : (1u << left) - 1;
}

extern const std::vector<Case> correct;
extern const std::vector<Case> primitives;
extern const std::vector<Case> faults;

}  // namespace planted
