// Correct kernels, as they are written for the device.
#include "planted.h"

namespace planted {

EMULATION_DYNAMIC_SHARED(int, planted_dynamic);

__global__ void reverse_dynamic(const int* input, int* output) {
  extern __shared__ int planted_dynamic[];
  planted_dynamic[threadIdx.x] = input[(blockIdx.x * blockDim.x + threadIdx.x)];
  __syncthreads();
  output[(blockIdx.x * blockDim.x + threadIdx.x)] = planted_dynamic[blockDim.x - 1 - threadIdx.x];
}

namespace {

__global__ void __launch_bounds__(kMaxThreads) block_sum(const int* input, int* output) {
  __shared__ int sums[kMaxThreads];
  sums[threadIdx.x] = input[global_index()];
  __syncthreads();
  for (unsigned width = blockDim.x; width > 1;) {
    const unsigned half = (width + 1) / 2;
    if (threadIdx.x + half < width) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
    width = half;
  }
  output[global_index()] = sums[0];
}

template <class T>
__global__ void reverse(const T* input, T* output) {
  __shared__ T values[kMaxThreads];
  values[threadIdx.x] = __ldg(input + global_index());
  __syncthreads();
  output[global_index()] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void warp_prefix_sum(const int* input, int* output) {
  int sum = input[global_index()];
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(lanes_here(), sum, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) sum += other;
  }
  output[global_index()] = sum;
}

// Neighbouring lanes swap through shared memory; only __syncwarp orders them.
__global__ void warp_swap(const int* input, int* output) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = input[global_index()];
  __syncwarp(lanes_here());
  output[global_index()] = values[(threadIdx.x ^ 1) < blockDim.x ? threadIdx.x ^ 1 : threadIdx.x];
}

__global__ void equal_in_block(const int* input, int* output) {
  __shared__ int counts[16];
  for (int bin = threadIdx.x; bin < 16; bin += blockDim.x) counts[bin] = 0;
  __syncthreads();
  const int bin = input[global_index()] & 15;
  atomicAdd(&counts[bin], 1);
  __syncthreads();
  output[global_index()] = counts[bin];
}

// Aggregated over whatever lanes are converged, as with cooperative groups' coalesced threads.
__global__ void count_with_activemask(const int*, int* output) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  const unsigned active = __activemask();
  const int leader = __ffs(static_cast<int>(active)) - 1;
  if (static_cast<int>(threadIdx.x % 32) == leader) atomicAdd(&count, __popc(active));
  __syncthreads();
  output[global_index()] = count;
}

__global__ void copy_vectors(const int* input, int* output) {
  const int at = global_index(), total = gridDim.x * blockDim.x;
  if (4 * at + 3 < total) {
    reinterpret_cast<uint4*>(output)[at] = reinterpret_cast<const uint4*>(input)[at];
  } else if (4 * at < total) {
    for (int i = 4 * at; i < total; ++i) output[i] = input[i];
  }
}

__global__ void look_up(const int* input, int* output) {
  static constexpr int kSquares[] = {0, 1, 4, 9, 16, 25, 36, 49};
  output[global_index()] = kSquares[input[global_index()] & 7];
}

struct Pair {
  int low;
  int high;
};

__global__ void parameters(const __grid_constant__ Pair pair, const int* input, int* output, int64_t shift) {
  output[global_index()] = input[global_index()] * pair.high + pair.low + static_cast<int>(shift);
}

void on_dynamic(unsigned blocks, unsigned threads, const int* input, int* output) {
  emulation::launch(reverse_dynamic, emulation::Config{blocks, threads, threads * sizeof(int)}, input,
                    output);
}

// With more than every kernel may have.
void on_opted_in(unsigned blocks, unsigned threads, const int* input, int* output) {
  constexpr int kBytes = 60 * 1024;
  cudaFuncSetAttribute(reverse_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  emulation::launch(reverse_dynamic, emulation::Config{blocks, threads, kBytes}, input, output);
}

void on_parameters(unsigned blocks, unsigned threads, const int* input, int* output) {
  emulation::launch(parameters, blocks, threads, cudaStream_t{}, Pair{2, 3}, input, output, 5);
}

}  // namespace

const std::vector<Case> correct = {
    {"block_sum", on<block_sum>},
    {"reverse", on<reverse<int>>},
    {"reverse_dynamic", on_dynamic},
    {"reverse_opted_in", on_opted_in},
    {"warp_prefix_sum", on<warp_prefix_sum>},
    {"warp_swap", on<warp_swap>},
    {"equal_in_block", on<equal_in_block>},
    {"count_with_activemask", on<count_with_activemask>},
    {"copy_vectors", on<copy_vectors>},
    {"look_up", on<look_up>},
    {"parameters", on_parameters},
};

}  // namespace planted
