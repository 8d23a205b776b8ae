// The one place that launches a kernel.
#pragma once

#include <cuda_runtime.h>

#include "../math/portable.h"

namespace pruneops::cuda {

constexpr int kThreads = 256;

// The bytes of dynamic shared memory that the current device lets a kernel have beside so many static ones,
// if it asks for them.
inline cudaError_t most_dynamic_shared(int64_t fixed, int64_t& bytes) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  bytes = most - ceil_div(fixed, 1024) * 1024;
  return error;
}

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

// Launches on `stream` with kThreads threads a block and `shared` bytes of dynamic shared memory, at most
// `most`; kernels loop where there are more tiles than blocks. What a kernel may have is set to the same for
// every launch, as another thread may launch it at the same time.
template <class... Params, class... Args>
cudaError_t launch_sharing(void (*kernel)(Params...), int64_t blocks, int64_t shared, int64_t most,
                           cudaStream_t stream, const Args&... args) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  const auto grid = static_cast<unsigned>(min64(blocks, kMaxBlocks));
  const auto bytes = static_cast<unsigned>(shared);
  if (grid == 0) return cudaSuccess;
  if (bytes > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most));
    if (error != cudaSuccess) return error;
  }
#if defined(PRUNEOPS_EMULATE)
  return emulation::launch(kernel, emulation::Config{grid, kThreads, bytes}, stream, args...);
#else
  // clang-format off
  kernel<<<grid, kThreads, bytes, stream>>>(args...);
  // clang-format on
  return cudaGetLastError();
#endif
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, cudaStream_t stream, const Args&... args) {
  return launch_sharing(kernel, blocks, 0, 0, stream, args...);
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
