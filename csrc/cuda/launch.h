// The one place that launches a kernel.
#pragma once

#include <cuda_runtime.h>

#include "../math/portable.h"

namespace pruneops::cuda {

constexpr int kThreads = 256;

// How many blocks the current device runs at once, of which so many fit a multiprocessor.
inline cudaError_t resident_blocks(int of_multiprocessor, int64_t& blocks) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  blocks = static_cast<int64_t>(multiprocessors) * of_multiprocessor;
  return error;
}

// Launches on `stream`; kernels loop where there are more tiles than blocks.
template <class... Params, class... Args>
cudaError_t launch_threads(void (*kernel)(Params...), int64_t blocks, int64_t threads, cudaStream_t stream,
                           const Args&... args) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  const auto grid = static_cast<unsigned>(min64(blocks, kMaxBlocks)), block = static_cast<unsigned>(threads);
  if (grid == 0) return cudaSuccess;
#if defined(PRUNEOPS_EMULATE)
  return emulation::launch(kernel, emulation::Config{grid, block}, stream, args...);
#else
  // clang-format off
  kernel<<<grid, block, 0, stream>>>(args...);
  // clang-format on
  return cudaGetLastError();
#endif
}

// The same with kThreads threads a block.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, cudaStream_t stream, const Args&... args) {
  return launch_threads(kernel, blocks, kThreads, stream, args...);
}

// The same with no more blocks than the device runs at once, so many of them on a multiprocessor: each begins
// with a decision that all make for themselves, or ends with sums that are added to those of others.
template <class... Params, class... Args>
cudaError_t launch_resident(void (*kernel)(Params...), int64_t blocks, int of_multiprocessor,
                            cudaStream_t stream, const Args&... args) {
  int64_t most = 0;
  const cudaError_t error = resident_blocks(of_multiprocessor, most);
  if (error != cudaSuccess) return error;
  return launch(kernel, min64(blocks, most), stream, args...);
}

}  // namespace pruneops::cuda

#define PRUNEOPS_RETURN_IF_ERROR(call)      \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (0)
