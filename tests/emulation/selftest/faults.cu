// Kernels with one fault each, which the emulation must refuse.
#include "planted.h"

namespace planted {

EMULATION_DYNAMIC_SHARED(int, planted_dynamic_too);

__global__ void more_dynamic_shared_than_asked(const int* input, int* output) {
  extern __shared__ int planted_dynamic_too[];
  planted_dynamic_too[threadIdx.x + 1] = input[(blockIdx.x * blockDim.x + threadIdx.x)];
  output[(blockIdx.x * blockDim.x + threadIdx.x)] = 0;
}

namespace {

__global__ void missing_barrier(const int* input, int* output) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = input[global_index()];
  output[global_index()] = values[blockDim.x - 1 - threadIdx.x];
}

// Each round reads what the next one overwrites, with a barrier on one side only.
__global__ void missing_second_barrier(const int* input, int* output) {
  __shared__ int value;
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) value = input[global_index()] + round;
    __syncthreads();
    sum += value;
  }
  output[global_index()] = sum;
}

__global__ void missing_syncwarp(const int* input, int* output) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = input[global_index()];
  __shfl_sync(kAllLanes, 0, 0);  // moves a value, but orders no memory
  output[global_index()] = values[threadIdx.x ^ 1];
}

__global__ void half_a_syncwarp(const int* input, int* output) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = input[global_index()];
  __syncwarp(threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u);
  output[global_index()] = values[threadIdx.x ^ 16];
}

__global__ void unordered_counter(const int* input, int* output) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  count += input[global_index()] & 1;
  __syncthreads();
  output[global_index()] = count;
}

__global__ void half_atomic_counter(const int*, int* output) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x % 2 == 0) {
    atomicAdd(&count, 1);
  } else {
    count = 1;
  }
  __syncthreads();
  output[global_index()] = count;
}

__global__ void race_between_blocks(const int* input, int* output) {
  output[threadIdx.x] = input[global_index()];
}

__global__ void unwritten_shared(const int*, int* output) {
  __shared__ int values[kMaxThreads];
  if (threadIdx.x != 0) values[threadIdx.x] = 0;
  __syncthreads();
  output[global_index()] = values[threadIdx.x];
}

__global__ void unwritten_global(const int* input, int* output) {
  output[global_index()] += input[global_index()];
}

__global__ void skipped_tail(const int* input, int* output) {
  const int total = gridDim.x * blockDim.x;
  if (global_index() < total - 1) output[global_index()] = input[global_index()];
}

__global__ void divergent_shuffle(const int* input, int* output) {
  int value = input[global_index()];
  if (threadIdx.x % 32 < 16) value = __shfl_down_sync(kAllLanes, value, 1);
  __syncthreads();
  output[global_index()] = value;
}

__global__ void shuffle_in_partial_warp(const int* input, int* output) {
  int value = input[global_index()];
  if (threadIdx.x < 40) {  // the second warp is cut
    value = __shfl_xor_sync(kAllLanes, value, 1);
  }
  output[global_index()] = value;
}

__global__ void shuffle_with_exited_lanes(const int* input, int* output) {
  output[global_index()] = 0;
  if (threadIdx.x % 32 > 20) return;
  output[global_index()] = __shfl_xor_sync(kAllLanes, input[global_index()], 1);
}

__global__ void caller_outside_mask(const int* input, int* output) {
  output[global_index()] = __shfl_sync(0x7fffffffu, input[global_index()], 0);
}

__global__ void masks_that_differ(const int* input, int* output) {
  const unsigned mask = threadIdx.x % 32 == 0 ? 1u : kAllLanes;
  output[global_index()] = static_cast<int>(__ballot_sync(mask, input[global_index()] & 1));
}

__global__ void operations_that_differ(const int* input, int* output) {
  const int value = input[global_index()] & 1;
  output[global_index()] = threadIdx.x % 2 == 0 ? __any_sync(kAllLanes, value) : __all_sync(kAllLanes, value);
}

__global__ void wrong_width(const int* input, int* output) {
  output[global_index()] = __shfl_down_sync(kAllLanes, input[global_index()], 1, 12);
}

__global__ void divergent_barrier(const int* input, int* output) {
  if (threadIdx.x < blockDim.x / 2) __syncthreads();
  output[global_index()] = input[global_index()];
}

__global__ void exit_before_barrier(const int* input, int* output) {
  output[global_index()] = input[global_index()];
  if (threadIdx.x == 3) return;
  __syncthreads();
}

__global__ void barriers_that_differ(const int* input, int* output) {
  int value = input[global_index()];
  if (threadIdx.x == 0) {
    value += __syncthreads_count(1);
  } else {
    value += __syncthreads_or(1);
  }
  output[global_index()] = value;
}

__global__ void read_past_the_end(const int* input, int* output) {
  output[global_index()] = input[global_index() + 1];
}

__global__ void write_past_the_end(const int* input, int* output) {
  output[global_index()] = 0;
  if (global_index() == static_cast<int>(gridDim.x * blockDim.x) - 1) output[global_index() + 1] = input[0];
}

__global__ void write_before_the_start(const int* input, int* output) {
  output[global_index()] = input[global_index()];
  if (global_index() == 0) output[-1] = 0;
}

__global__ void index_past_shared(const int* input, int* output) {
  __shared__ int values[8];
  if (threadIdx.x < 9) values[threadIdx.x] = input[global_index()];
  __syncthreads();
  output[global_index()] = values[0];
}

__global__ void misaligned_vector(const int* input, int* output) {
  const uint2 pair = *reinterpret_cast<const uint2*>(input + 1);
  output[global_index()] = static_cast<int>(pair.x + pair.y);
}

__global__ void local_of_another_thread(const int*, int* output) {
  __shared__ const int* pointer;
  int own = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) pointer = &own;
  __syncthreads();
  output[global_index()] = *pointer;
}

const int constants[] = {1, 2, 3, 4};

__global__ void write_to_constants(const int* input, int* output) {
  output[global_index()] = constants[input[global_index()] & 3];
  if (threadIdx.x == 0) const_cast<volatile int*>(constants)[input[0] & 3] = 5;
}

__global__ void null_pointer(const int*, int* output) {
  const int* volatile nothing = nullptr;
  output[global_index()] = *nothing;
}

__global__ void overflowing_index(const int* input, int* output) {
  output[global_index()] = input[global_index()] & 0;
  const int64_t offset = (input[global_index()] | 0x10000) * 0x10000;
  if (offset == 1) output[global_index()] = 1;
}

__global__ void shift_too_far(const int* input, int* output) {
  output[global_index()] = 1 << ((input[global_index()] & 1) + 32);
}

__global__ void endless_wait(const int* input, int* output) {
  const volatile int* flag = input;
  while (*flag != -1) {
  }
  output[global_index()] = 1;
}

// A fence orders what one thread does; only a barrier makes another wait.
__global__ void passed_on_behind_a_fence(const int* input, int* output) {
  __shared__ int value, flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    value = input[global_index()];
    __threadfence();
    atomicExch(&flag, 1);
  }
  while (atomicAdd(&flag, 0) == 0) {
  }
  output[global_index()] = value;
}

void on_dynamic(unsigned blocks, unsigned threads, const int* input, int* output) {
  emulation::launch(more_dynamic_shared_than_asked, emulation::Config{blocks, threads, threads * sizeof(int)},
                    input, output);
}

void on_short_block(unsigned blocks, unsigned, const int* input, int* output) {
  emulation::launch(shuffle_in_partial_warp, blocks, 40, cudaStream_t{}, input, output);
}

struct Large {
  char bytes[32760];
};
__global__ void large_parameters(Large, const int*, int*) {}

void on_large(unsigned blocks, unsigned threads, const int* input, int* output) {
  emulation::launch(large_parameters, blocks, threads, cudaStream_t{}, Large{}, input, output);
}

__global__ void nothing(const int*, int*) {}

template <unsigned kGridX, unsigned kGridY, unsigned kBlockX, unsigned kBlockZ, size_t kShared>
void configured(unsigned, unsigned, const int* input, int* output) {
  emulation::launch(nothing, emulation::Config{{kGridX, kGridY}, {kBlockX, 1, kBlockZ}, kShared}, input,
                    output);
}

__global__ void nothing_either(const int*, int*) {}

void too_much_opted_in(unsigned, unsigned, const int* input, int* output) {
  cudaFuncSetAttribute(nothing_either, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000);
  emulation::launch(nothing_either, emulation::Config{1, 32, 50001}, input, output);
}

void memset_past_the_end(unsigned blocks, unsigned threads, const int*, int* output) {
  cudaMemsetAsync(output, 0, sizeof(int) * (blocks * threads + 1));
}

}  // namespace

#define FAULT(kernel) {#kernel, on<kernel>}

const std::vector<Case> faults = {
    FAULT(missing_barrier),
    FAULT(missing_second_barrier),
    FAULT(missing_syncwarp),
    FAULT(half_a_syncwarp),
    FAULT(unordered_counter),
    FAULT(half_atomic_counter),
    FAULT(race_between_blocks),
    FAULT(unwritten_shared),
    FAULT(unwritten_global),
    FAULT(skipped_tail),
    FAULT(divergent_shuffle),
    {"shuffle_in_partial_warp", on_short_block},
    FAULT(shuffle_with_exited_lanes),
    FAULT(caller_outside_mask),
    FAULT(masks_that_differ),
    FAULT(operations_that_differ),
    FAULT(wrong_width),
    FAULT(divergent_barrier),
    FAULT(exit_before_barrier),
    FAULT(barriers_that_differ),
    FAULT(read_past_the_end),
    FAULT(write_past_the_end),
    FAULT(write_before_the_start),
    FAULT(index_past_shared),
    {"more_dynamic_shared_than_asked", on_dynamic},
    FAULT(misaligned_vector),
    FAULT(local_of_another_thread),
    FAULT(write_to_constants),
    FAULT(null_pointer),
    FAULT(overflowing_index),
    FAULT(shift_too_far),
    FAULT(endless_wait),
    FAULT(passed_on_behind_a_fence),
    {"large_parameters", on_large},
    {"empty_grid", configured<0, 1, 32, 1, 0>},
    {"empty_block", configured<1, 1, 0, 1, 0>},
    {"block_too_large", configured<1, 1, 1025, 1, 0>},
    {"block_too_deep", configured<1, 1, 1, 65, 0>},
    {"grid_too_large", configured<0x80000000u, 1, 1, 1, 0>},
    {"grid_too_tall", configured<1, 65536, 1, 1, 0>},
    {"too_much_dynamic_shared", configured<1, 1, 32, 1, 48 * 1024 + 1>},
    {"too_much_opted_in", too_much_opted_in},
    {"memset_past_the_end", memset_past_the_end},
};

}  // namespace planted
