#include "gather.cuh"

#include "kernels.h"

namespace pruneops::cuda {
namespace {

template <class Word>
bool fits(const SlabTensor& t) {
  const auto bits = reinterpret_cast<uintptr_t>(t.source) | reinterpret_cast<uintptr_t>(t.target) |
                    static_cast<uintptr_t>(t.slab_bytes);
  return bits % sizeof(Word) == 0;
}

template <class Word>
cudaError_t copy_slabs(const SlabTensor& t, const int64_t* order, cudaStream_t stream) {
  const int64_t words = t.outer * t.kept * (t.slab_bytes / static_cast<int64_t>(sizeof(Word)));
  return launch(copy_slabs_kernel<Word>, ceil_div(words, kThreads), stream, t, order);
}

}  // namespace

// Keys, ranks and order: 8 bytes each for an instance.
int64_t gather_scratch_bytes(int64_t instances) {
  return 3 * 8 * instances;
}

cudaError_t gather_slabs(const SlabTensor& t, const void* importance, Dtype dtype, bool original_order,
                         void* scratch, cudaStream_t stream) {
  if (t.kept == 0 || t.outer == 0 || t.slab_bytes == 0) return cudaSuccess;
  auto* keys = static_cast<unsigned long long*>(scratch);
  auto* ranks = reinterpret_cast<int64_t*>(keys + t.instances);
  int64_t* order = ranks + t.instances;
  PRUNEOPS_RETURN_IF_ERROR(launch(importance_keys_kernel, ceil_div(t.instances, kThreads), stream, importance,
                                  dtype, keys, t.instances));
  PRUNEOPS_RETURN_IF_ERROR(launch(rank_instances_kernel, t.instances, stream,
                                  static_cast<const unsigned long long*>(keys), t.instances, ranks));
  PRUNEOPS_RETURN_IF_ERROR(launch(place_instances_kernel, t.instances, stream,
                                  static_cast<const int64_t*>(ranks), t.instances, t.kept, original_order,
                                  order));
  if (fits<uint4>(t)) return copy_slabs<uint4>(t, order, stream);
  if (fits<uint32_t>(t)) return copy_slabs<uint32_t>(t, order, stream);
  return copy_slabs<uint8_t>(t, order, stream);
}

}  // namespace pruneops::cuda
