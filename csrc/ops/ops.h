// The operators as torch calls them; their schemas are in pruneops/_library.py.
#pragma once

#include "tensors.h"

namespace pruneops::ops {

void update_scores_(Tensors scores, Tensors weights, Tensors grads, Word metric, double alpha, double beta,
                    std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, bool skip_nonfinite);
void update_block_scores_(Tensors scores, Tensors weights, Tensors grads, Ints block, Word metric,
                          Word reduce, double alpha, double beta, std::optional<Tensor> grad_scale,
                          std::optional<Tensor> found_inf, bool skip_nonfinite);
void update_topk_mask_(Tensors scores, Tensors weights, Tensors grads, Word metric, double alpha, double beta,
                       std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, bool skip_nonfinite,
                       Tensors out, int64_t keep, Word ties);
Tensor block_reduce(Tensor score, Ints block, Word reduce);
void block_reduce_out(Tensor score, Ints block, Word reduce, Tensor out);

Tensor kth_value(Tensors scores, int64_t k, std::optional<Word> metric, Tensors grads, Tensors input_norms);
Tensor count_digits(Tensors scores, Tensor prefix, int64_t round, std::optional<Word> metric, Tensors grads,
                    Tensors input_norms);
void topk_mask(Tensors scores, Tensors out, int64_t keep, Word ties, bool strict, std::optional<Word> metric,
               Tensors grads, Tensors input_norms);
void row_topk_mask(Tensor score, Tensor out, int64_t keep, std::optional<Word> metric,
                   std::optional<Tensor> grad, std::optional<Tensor> input_norm);
void nm_mask(Tensor score, Tensor out, int64_t n, int64_t m, std::optional<Word> metric,
             std::optional<Tensor> grad, std::optional<Tensor> input_norm);

void apply_masks_(Tensors tensors, Tensors masks, std::optional<Ints> block);
Tensors empty_masks(Tensors scores, bool packed);
Tensor expand_block_mask(Tensor mask, Ints block, Ints shape);
Tensor pack_mask(Tensor mask);
Tensor unpack_mask(Tensor packed, Ints shape);

Tensor prune_by_importance(Tensor tensor, Tensor importance, int64_t num_instances, int64_t stride,
                           int64_t dim, Word order);

}  // namespace pruneops::ops
