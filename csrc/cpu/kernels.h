// The CPU kernels: one table of functions for each vector instruction set, chosen once at run time.
// Results do not depend on the table or on the number of threads.
#pragma once

#include "../math/group.h"
#include "../math/tensors.h"
#include "pool.h"

namespace pruneops::cpu {

struct Kernels {
  void (*update_scores)(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule, const Pool& pool);
  void (*update_block_scores)(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                              const Pool& pool);

  // update_scores and then topk_mask of the scores, in one pass; tensors[i] is the score of updates[i].
  void (*update_topk_mask)(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                           const UpdateRule& update, const SelectRule& select, const Pool& pool);

  // k from 1; the score is written to `value` as a `dtype`.
  void (*kth_value)(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value,
                    Dtype dtype, const Pool& pool);
  void (*topk_mask)(const SelectTensor* tensors, int64_t count, const SelectRule& rule, const Pool& pool);
  // How many keys of each tensor share the digits of `prefix` before `round` and have each digit next:
  // WideRadix::kBins counts for each tensor. Keys are those of doubles where `wide`.
  void (*count_digits)(const SelectTensor* tensors, int64_t count, Metric metric, const int64_t* prefix,
                       int round, bool wide, int64_t* counts, const Pool& pool);
  // Prunes the k lowest of each row of `row` entries of one tensor.
  void (*row_topk_mask)(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool);
  // Keeps n of each m consecutive entries; m at most kMaxGroup.
  void (*nm_mask)(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool);

  void (*apply_masks)(const MaskTensor* tensors, int64_t count, const Pool& pool);
  void (*apply_block_masks)(const BlockMaskTensor* tensors, int64_t count, const Pool& pool);
  // `data` receives the mask as bytes.
  void (*expand_block_mask)(const BlockMaskTensor& tensor, const Pool& pool);
  void (*pack_mask)(const bool* mask, uint8_t* packed, int64_t numel, const Pool& pool);
  void (*unpack_mask)(const uint8_t* packed, bool* mask, int64_t numel, const Pool& pool);

  const char* isa;
};

const Kernels& kernels();

}  // namespace pruneops::cpu
