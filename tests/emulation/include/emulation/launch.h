// What stands in for kernel<<<grid, block, shared, stream>>>(args...).
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

namespace emulation {

// One for each module that holds kernels; it shares their thread-local segment, which is the shared memory.
inline thread_local char shared_marker;

template <class... Params>
struct Call {
  void (*kernel)(Params...);
  std::tuple<std::remove_cv_t<Params>...> arguments;

  // Parameters are copied by the device, not by the thread, so their reads are no memory accesses of the
  // kernel.
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) void operator()(std::index_sequence<I...>) const {
    kernel(std::get<I>(arguments)...);
  }
  __attribute__((no_sanitize("thread"))) static void invoke(const void* call) {
    (*static_cast<const Call*>(call))(std::index_sequence_for<Params...>{});
  }
};

template <class... Params>
constexpr size_t parameter_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Params) - 1) / alignof(Params) * alignof(Params) + sizeof(Params)), ...);
  return bytes;
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const Config& config, Args&&... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...), "kernel parameters are copied as bytes");
  const Call<Params...> call{kernel, {std::forward<Args>(args)...}};
  run(config, Kernel{reinterpret_cast<const void*>(kernel), parameter_bytes<Params...>(),
                     &Call<Params...>::invoke, &call, &shared_marker});
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const Config& config, cudaStream_t, Args&&... args) {
  launch(kernel, config, std::forward<Args>(args)...);
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, Args&&... args) {
  return launch(kernel, Config{grid, block}, stream, std::forward<Args>(args)...);
}

}  // namespace emulation
