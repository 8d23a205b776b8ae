// The one place that launches a kernel.
#pragma once

#include <cuda_runtime.h>

#include "../math/portable.h"

namespace pruneops::cuda {

constexpr int kThreads = 256;

// Launches on `stream` with kThreads threads a block; kernels loop where there are more tiles than blocks.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, cudaStream_t stream, const Args&... args) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  const auto grid = static_cast<unsigned>(min64(blocks, kMaxBlocks));
  if (grid == 0) return cudaSuccess;
#if defined(PRUNEOPS_EMULATE)
  return emulation::launch(kernel, grid, kThreads, stream, args...);
#else
  // clang-format off
  kernel<<<grid, kThreads, 0, stream>>>(args...);
  // clang-format on
  return cudaGetLastError();
#endif
}

}  // namespace pruneops::cuda

#define PRUNEOPS_RETURN_IF_ERROR(call)      \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (0)
