// One small kernel for each primitive that device code may use.
#include "planted.h"

namespace planted {
namespace {

template <int (*kValue)(int)>
__global__ void each(const int* input, int* output) {
  output[global_index()] = kValue(input[global_index()]);
}

// ---- warps

__device__ int lane() {
  return static_cast<int>(threadIdx.x % 32);
}

// What a lane that does not exist would bring is undefined.
__device__ int unless_missing(int from, int value, int own) {
  return lanes_here() >> from & 1 ? value : own;
}

__device__ int shfl(int x) {
  return unless_missing(lane() / 8 * 8 + (lane() + 1) % 8, __shfl_sync(lanes_here(), x, lane() + 9, 8), x);
}
__device__ int shfl_up(int x) {
  return __shfl_up_sync(lanes_here(), x, 3, 16);
}
__device__ int shfl_down(int x) {
  const int from = lane() % 16 + 3 < 16 ? lane() + 3 : lane();
  return unless_missing(from, __shfl_down_sync(lanes_here(), x, 3, 16), x);
}
__device__ int shfl_xor(int x) {
  return unless_missing(lane() ^ 5, __shfl_xor_sync(lanes_here(), x, 5), x);
}
__device__ int shfl_xor_of_segments(int x) {
  const int from = lane() % 16 < 8 ? lane() : lane() ^ 8;
  return unless_missing(from, __shfl_xor_sync(lanes_here(), x, 8, 8), x);
}
__device__ int shfl_of_64_bits(int x) {
  const long long moved = __shfl_up_sync(lanes_here(), x * 0x100000001LL, 1);
  return moved % 0x100000000LL == moved / 0x100000000LL ? static_cast<int>(moved / 0x100000000LL) : -1;
}
__device__ int ballot(int x) {
  return static_cast<int>(__ballot_sync(lanes_here(), x & 6));
}
__device__ int any(int x) {
  return __any_sync(lanes_here(), x % 64 == 0);
}
__device__ int all(int x) {
  return __all_sync(lanes_here(), x % 64 != 0);
}
__device__ int match_any(int x) {
  return static_cast<int>(__match_any_sync(lanes_here(), x & 3));
}
__device__ int match_any_of_64_bits(int x) {
  return static_cast<int>(__match_any_sync(lanes_here(), static_cast<unsigned long long>(x & 3) << 40));
}
// Lanes of the last warp agree, those of others do not.
__device__ int match_all(int) {
  int agree = -1;
  const unsigned equal = __match_all_sync(lanes_here(), threadIdx.x + 32 < blockDim.x ? lane() : 7, &agree);
  return static_cast<int>(agree ? equal : ~equal);
}
__device__ int reduce_add(int x) {
  return static_cast<int>(__reduce_add_sync(lanes_here(), static_cast<unsigned>(x)));
}
__device__ int syncwarp(int x) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = x;
  __syncwarp(lanes_here());
  return values[threadIdx.x / 32 * 32];
}
__device__ int activemask(int) {
  return static_cast<int>(__activemask() >> lane() & 1);
}

// ---- blocks

__device__ int syncthreads_count(int x) {
  return __syncthreads_count(x & 6);
}
__device__ int syncthreads_and(int x) {
  return __syncthreads_and(x & 63);
}
__device__ int syncthreads_or(int x) {
  return __syncthreads_or(x % 64 == 0 ? 8 : 0);
}

// Threads are numbered along x, then y, then z, and lanes in that order.
__global__ void places(const int*, int* output) {
  const int rank = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int threads = blockDim.x * blockDim.y * blockDim.z, left = threads - rank / 32 * 32;
  const int before = __shfl_up_sync(left >= 32 ? kAllLanes : (1u << left) - 1, rank, 1);
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  output[block * threads + rank] = before;
}

void on_places(unsigned blocks, unsigned threads, const int* input, int* output) {
  const unsigned x = threads % 2 == 0 ? 2 : 1, z = threads % 4 == 0 ? 2 : 1;
  emulation::launch(places, dim3(1, blocks, 1), dim3(x, threads / x / z, z), cudaStream_t{}, input, output);
}

// ---- atomics

template <class T>
__device__ T operand(int x) {
  return static_cast<T>(static_cast<T>(x - 500) * static_cast<T>(sizeof(T) == 8 ? 1LL << 33 : 1));
}
// The upper half of what has 64 bits.
template <class T>
__device__ int folded(T value) {
  return static_cast<int>(static_cast<int64_t>(value) >> (sizeof(T) == 8 ? 33 : 0));
}

// What all threads of a block make of one value.
template <class T, T (*kApply)(T*, T)>
__global__ void together(const int* input, int* output) {
  __shared__ T cell;
  if (threadIdx.x == 0) cell = T(7);
  __syncthreads();
  kApply(&cell, operand<T>(input[global_index()]));
  __syncthreads();
  output[global_index()] = folded(cell);
}

template <class T>
__device__ T add(T* cell, T x) {
  return atomicAdd(cell, x);
}
template <class T>
__device__ T least(T* cell, T x) {
  return atomicMin(cell, x);
}
template <class T>
__device__ T most(T* cell, T x) {
  return atomicMax(cell, x);
}
template <class T>
__device__ T united(T* cell, T x) {
  return atomicOr(cell, x);
}

// Every thread of a block draws a number of its own.
template <class T, T (*kDraw)(T*)>
__global__ void tickets(const int*, int* output) {
  __shared__ T next;
  if (threadIdx.x == 0) next = T(0);
  __syncthreads();
  const auto ticket = static_cast<int>(kDraw(&next));
  output[blockIdx.x * blockDim.x + ticket] = ticket;
}

template <class T>
__device__ T draw(T* next) {
  return atomicAdd(next, T(1));
}
template <class T>
__device__ T draw_by_comparing(T* next) {
  T seen = atomicCAS(next, T(0), T(0));
  for (T expected = seen + T(1); seen != expected;) {
    expected = seen;
    seen = atomicCAS(next, expected, expected + T(1));
  }
  return seen;
}

// A counter that starts anew after 4.
__global__ void around(const int*, int* output) {
  __shared__ unsigned cell;
  if (threadIdx.x == 0) cell = 0;
  __syncthreads();
  atomicInc(&cell, 4u);
  __syncthreads();
  output[global_index()] = static_cast<int>(cell);
}

// Threads put themselves in front of a list; each is in it once.
__global__ void exchange(const int*, int* output) {
  __shared__ int first, next[kMaxThreads];
  if (threadIdx.x == 0) first = -1;
  __syncthreads();
  next[threadIdx.x] = atomicExch(&first, static_cast<int>(threadIdx.x));
  __syncthreads();
  if (threadIdx.x != 0) return;
  int at = first;
  for (unsigned i = 0; i < blockDim.x; ++i, at = next[at]) output[blockIdx.x * blockDim.x + at] = at;
}

__global__ void count_values(const int* input, int* output) {
  atomicAdd(&output[input[global_index()] % (gridDim.x * blockDim.x)], 1);
}

void on_counts(unsigned blocks, unsigned threads, const int* input, int* output) {
  cudaMemsetAsync(output, 0, sizeof(int) * blocks * threads);
  emulation::launch(count_values, blocks, threads, cudaStream_t{}, input, output);
}

// ---- memory

__global__ void cached(const int* input, int* output) {
  __stcg(output + global_index(), __ldg(input + global_index()));
}

__device__ int fences(int x) {
  __shared__ int values[kMaxThreads];
  values[threadIdx.x] = x;
  __threadfence_block();
  __threadfence();
  __threadfence_system();
  return values[threadIdx.x];
}

// ---- bits

// 0 for some, and others up to 2^30.
__device__ int word(int x) {
  return x % 4 == 0 ? 0 : x << 20;
}
__device__ long long wide_word(int x) {
  return static_cast<long long>(word(x)) << 20;
}
__device__ int popc(int x) {
  return __popc(static_cast<unsigned>(x - 500));
}
__device__ int byte_perm(int x) {
  return static_cast<int>(__byte_perm(static_cast<unsigned>(x), 0x44332211u, 0x6150u));
}
__device__ int popcll(int x) {
  return __popcll(static_cast<unsigned long long>(x - 500LL));
}
__device__ int clz(int x) {
  return __clz(word(x));
}
__device__ int clzll(int x) {
  return __clzll(wide_word(x));
}
__device__ int ffs(int x) {
  return __ffs(word(x));
}
__device__ int ffsll(int x) {
  return __ffsll(wide_word(x));
}

// ---- rounding

template <class T>
__device__ T left_operand(int x) {
  return T(1) + static_cast<T>(x) * (sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52));
}
template <class T>
__device__ T right_operand(int x) {
  return T(1) + static_cast<T>(999 - x) * (sizeof(T) == 4 ? T(0x1p-22) : T(0x1p-51));
}

// The lowest bits, where roundings differ.
template <class T>
__device__ int bits_of(T value) {
  int bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <class T, T (*kValue)(T, T)>
__global__ void rounded(const int* input, int* output) {
  const int x = input[global_index()];
  output[global_index()] = bits_of(kValue(left_operand<T>(x), right_operand<T>(x)));
}

__device__ float square_root(float a, float) {
  return __fsqrt_rn(a);
}
__device__ float fused(float a, float b) {
  return __fmaf_rn(a, b, -1.0f);
}

}  // namespace

#define EACH(function) {#function, on<each<function>>}

using Wide = unsigned long long;

const std::vector<Case> primitives = {
    EACH(shfl),
    EACH(shfl_up),
    EACH(shfl_down),
    EACH(shfl_xor),
    EACH(shfl_xor_of_segments),
    EACH(shfl_of_64_bits),
    EACH(ballot),
    EACH(any),
    EACH(all),
    EACH(match_any),
    EACH(match_any_of_64_bits),
    EACH(match_all),
    EACH(reduce_add),
    EACH(syncwarp),
    EACH(activemask),
    EACH(syncthreads_count),
    EACH(syncthreads_and),
    EACH(syncthreads_or),
    {"places", on_places},
    {"add_int32", on<together<int, add>>},
    {"add_uint32", on<together<unsigned, add>>},
    {"add_uint64", on<together<Wide, add>>},
    {"add_float32", on<together<float, add>>},
    {"min_int32", on<together<int, least>>},
    {"min_uint32", on<together<unsigned, least>>},
    {"min_int64", on<together<long long, least>>},
    {"min_uint64", on<together<Wide, least>>},
    {"max_int32", on<together<int, most>>},
    {"max_uint32", on<together<unsigned, most>>},
    {"max_int64", on<together<long long, most>>},
    {"max_uint64", on<together<Wide, most>>},
    {"or_uint32", on<together<unsigned, united>>},
    {"or_uint64", on<together<Wide, united>>},
    {"tickets", on<tickets<unsigned, draw>>},
    {"tickets_by_comparing", on<tickets<unsigned, draw_by_comparing>>},
    {"tickets_by_comparing_64_bits", on<tickets<Wide, draw_by_comparing>>},
    {"around", on<around>},
    {"exchange", on<exchange>},
    {"count_values", on_counts},
    {"cached", on<cached>},
    EACH(fences),
    EACH(popc),
    EACH(byte_perm),
    EACH(popcll),
    EACH(clz),
    EACH(clzll),
    EACH(ffs),
    EACH(ffsll),
    {"fadd", on<rounded<float, __fadd_rn>>},
    {"fsub", on<rounded<float, __fsub_rn>>},
    {"fmul", on<rounded<float, __fmul_rn>>},
    {"fdiv", on<rounded<float, __fdiv_rn>>},
    {"fsqrt", on<rounded<float, square_root>>},
    {"fmaf", on<rounded<float, fused>>},
    {"dadd", on<rounded<double, __dadd_rn>>},
    {"dsub", on<rounded<double, __dsub_rn>>},
    {"dmul", on<rounded<double, __dmul_rn>>},
    {"ddiv", on<rounded<double, __ddiv_rn>>},
};

}  // namespace planted
