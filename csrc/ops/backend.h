// Where an op runs: on the threads of torch's pool, or on the current stream of a tensor's device.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../cpu/gather.h"
#include "../cpu/kernels.h"
#include "../cuda/kernels.h"
#include "tensors.h"

#if defined(PRUNEOPS_CUDA)
#include <dlfcn.h>
#endif

namespace pruneops::ops {

inline cpu::Pool torch_pool() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t tasks, cpu::Pool::Range range, void* context) {
            torch::stable::parallel_for(0, tasks, 1,
                                        [=](int64_t begin, int64_t end) { range(context, begin, end); });
          }};
}

#if defined(PRUNEOPS_CUDA)
// Which stream is current, from torch's CUDA library; null where torch has none. It is looked up and not
// linked, since this library also loads beside a torch without CUDA, and torch loads its own where no weak
// symbol sees them.
using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);
inline CurrentStream current_stream() {
  static const CurrentStream found = [] {
    void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const function =
        torch_cuda == nullptr ? nullptr : dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<CurrentStream>(function);
  }();
  return found;
}

// Runs f(stream) with the tensor's device current, and raises the CUDA error that it returns.
template <class F>
void on_stream(const char* op, const Tensor& tensor, const F& f) {
  STD_TORCH_CHECK(current_stream() != nullptr, op, ": this torch has no CUDA");
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(current_stream()(device, &stream));
  const cudaError_t error = f(static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}
#endif

// Device memory that lasts as long as an op; torch's allocator keeps it for the stream.
inline Tensor scratch_like(const Tensor& tensor, int64_t bytes) {
  return new_tensor(tensor, Ints{bytes}, torch::headeronly::ScalarType::Byte);
}

// Runs cpu(kernels, pool) or cuda(stream), by the device of `tensor`. `cuda` is a generic lambda, so that a
// build without CUDA does not compile its body.
template <class OnCpu, class OnCuda>
void run_on(const char* op, const Tensor& tensor, const OnCpu& on_cpu,
            [[maybe_unused]] const OnCuda& on_cuda) {
#if defined(PRUNEOPS_CUDA)
  if (tensor.is_cuda()) return on_stream(op, tensor, on_cuda);
#endif
  STD_TORCH_CHECK(tensor.is_cpu(), op,
                  ": tensors must be on the CPU or a CUDA device that the library was built for");
  on_cpu(cpu::kernels(), torch_pool());
}

}  // namespace pruneops::ops
