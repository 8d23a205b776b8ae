// Stands in for the CUDA runtime's header: with it first on the include path, device code and launchers
// compile with a host compiler and run on the emulated grid. Streams are ignored, as everything happens at
// once.
#pragma once

#include "emulation/types.h"

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = struct CUstream_st*;

#include "emulation/device.h"
#include "emulation/launch.h"

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

inline cudaError_t cudaMemsetAsync(void* begin, int value, size_t bytes, cudaStream_t = nullptr) {
  emulation::fill(begin, value, bytes);
  return cudaSuccess;
}
