// prune_by_importance.
#include "backend.h"
#include "ops.h"

namespace pruneops::ops {

Tensor prune_by_importance(Tensor tensor, Tensor importance, int64_t num_instances, int64_t stride,
                           int64_t dim, Word order) {
  constexpr const char* op = "prune_by_importance";
  check_same_device(op, tensor, importance);
  STD_TORCH_CHECK(dim >= 0 && dim < tensor.dim(), op, ": dim ", dim, " of a tensor of ", tensor.dim(),
                  " dimensions");
  const bool original = is_second_of(op, order, "importance", "original");
  const int64_t instances = importance.numel();
  STD_TORCH_CHECK(stride >= 1 && num_instances >= 0 && num_instances <= instances, op, ": cannot keep ",
                  num_instances, " of ", instances, " instances of stride ", stride);
  STD_TORCH_CHECK(tensor.size(dim) % stride == 0 && tensor.size(dim) / stride == instances, op, ": ",
                  tensor.size(dim), " entries along dim ", dim, " for ", instances, " instances of stride ",
                  stride);
  const Tensor source = as_contiguous(tensor), ranks = as_contiguous(importance);
  Ints shape(tensor.sizes().begin(), tensor.sizes().end());
  SlabTensor slabs{source.data_ptr(), nullptr,      1, stride * static_cast<int64_t>(tensor.element_size()),
                   instances,         num_instances};
  for (int64_t d = 0; d < dim; ++d) slabs.outer *= shape[d];
  for (size_t d = dim + 1; d < shape.size(); ++d) slabs.slab_bytes *= shape[d];
  shape[dim] = num_instances * stride;
  Tensor kept = new_output(tensor, shape);
  slabs.target = kept.data_ptr();
  const Dtype dtype = dtype_of(ranks);
  run_on(
      op, tensor,
      [&](const cpu::Kernels&, const cpu::Pool& pool) {
        cpu::gather_slabs(slabs, ranks.data_ptr(), dtype, original, pool);
      },
      [&](auto stream) {
        const Tensor scratch = scratch_like(kept, cuda::gather_scratch_bytes(instances));
        return cuda::gather_slabs(slabs, ranks.data_ptr(), dtype, original, scratch.data_ptr(), stream);
      });
  return kept;
}

}  // namespace pruneops::ops
