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

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const bool is_shared = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  *value = is_shared ? emulation::kOptInShared : emulation::kMultiprocessors;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute, int bytes) {
  const bool fits = emulation::let_have_shared(reinterpret_cast<const void*>(kernel), bytes);
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* begin, int value, size_t bytes, cudaStream_t = nullptr) {
  emulation::fill(begin, value, bytes);
  return cudaSuccess;
}
