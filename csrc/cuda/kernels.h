// The CUDA launchers: raw pointers, 64-bit sizes, a stream. They return the first error and never
// synchronise, allocate, print or exit; scratch memory is asked for by size and passed in.
#pragma once

#include "../math/group.h"
#include "../math/tensors.h"

#if defined(PRUNEOPS_CUDA)
#include <cuda_runtime.h>
#else  // only declared, so that what may call them compiles without the CUDA toolkit
using cudaError_t = int;
using cudaStream_t = void*;
#endif

namespace pruneops::cuda {

cudaError_t update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule,
                          cudaStream_t stream);
// Bytes of device scratch for the parts of large blocks: for each block of n rows one value for 64 rows, or
// for 32,768 entries of a wide one; none for blocks of up to 64 rows and 256 columns.
int64_t block_scratch_bytes(const BlockTensor* tensors, int64_t count);
cudaError_t update_block_scores(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                                void* scratch, cudaStream_t stream);

// Bytes of device scratch for a selection over these tensors: less than 3 % of their scores' bytes, or 5 %
// where half types are ranked with doubles, and 4 MiB; strict, less than 4 MiB.
int64_t select_scratch_bytes(const SelectTensor* tensors, int64_t count, bool strict = false);
cudaError_t kth_value(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value,
                      Dtype dtype, void* scratch, cudaStream_t stream);
cudaError_t topk_mask(const SelectTensor* tensors, int64_t count, const SelectRule& rule, void* scratch,
                      cudaStream_t stream);
// update_scores and then topk_mask of the scores, in one pass where there are many.
// tensors[i] is the score of updates[i].
cudaError_t update_topk_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                             const UpdateRule& update, const SelectRule& select, void* scratch,
                             cudaStream_t stream);
// How many keys of each tensor share the digits of `prefix` before `round` and have each digit next:
// WideRadix::kBins counts for each tensor. Keys are those of doubles where `wide`; prefix and counts are on
// the device.
cudaError_t count_digits(const SelectTensor* tensors, int64_t count, Metric metric, const int64_t* prefix,
                         int round, bool wide, int64_t* counts, cudaStream_t stream);
// Prunes the k lowest of each row. Bytes of device scratch: that of a selection over one row where rows are
// few and long, otherwise none.
int64_t row_scratch_bytes(const SelectTensor& tensor, int64_t row);
cudaError_t row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, void* scratch,
                          cudaStream_t stream);
cudaError_t nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, cudaStream_t stream);

cudaError_t apply_masks(const MaskTensor* tensors, int64_t count, cudaStream_t stream);
cudaError_t apply_block_masks(const BlockMaskTensor* tensors, int64_t count, cudaStream_t stream);
cudaError_t expand_block_mask(const BlockMaskTensor& tensor, cudaStream_t stream);
cudaError_t pack_mask(const bool* mask, uint8_t* packed, int64_t numel, cudaStream_t stream);
cudaError_t unpack_mask(const uint8_t* packed, bool* mask, int64_t numel, cudaStream_t stream);

// Bytes of device scratch to order so many instances.
int64_t gather_scratch_bytes(int64_t instances);
cudaError_t gather_slabs(const SlabTensor& tensor, const void* importance, Dtype dtype, bool original_order,
                         void* scratch, cudaStream_t stream);

}  // namespace pruneops::cuda
