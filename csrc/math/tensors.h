// What the kernels know of tensors: one entry per tensor, plain pointers and sizes. Elementwise entries are
// flat (the caller has made all tensors of an entry agree in memory order); matrix entries carry their
// strides.
#pragma once

#include "dtype.h"
#include "geometry.h"
#include "metric.h"

namespace pruneops {

struct UpdateTensor {
  void* score;
  const void* weight;  // null where the metric does not read it; so is grad
  const void* grad;
  int64_t numel;
  Dtype score_dtype;
  Dtype weight_dtype;
  Dtype grad_dtype;

  PRUNEOPS_HD int64_t size() const { return numel; }
  PRUNEOPS_HD bool wide() const {
    return score_dtype == Dtype::f64 || weight_dtype == Dtype::f64 || grad_dtype == Dtype::f64;
  }
};

struct BlockTensor {
  void* score;  // contiguous, one per block
  const void* weight;
  const void* grad;
  Matrix matrix;
  Strides weight_strides;
  Strides grad_strides;
  Block block;
  Dtype score_dtype;
  Dtype weight_dtype;
  Dtype grad_dtype;

  PRUNEOPS_HD int64_t grid_rows() const { return divide(matrix.rows, block.n); }
  PRUNEOPS_HD int64_t grid_cols() const { return divide(matrix.cols, block.m); }
  PRUNEOPS_HD int64_t blocks() const { return grid_rows() * grid_cols(); }
  PRUNEOPS_HD bool wide() const {
    return score_dtype == Dtype::f64 || weight_dtype == Dtype::f64 || grad_dtype == Dtype::f64;
  }
};

// Scores to select among, stored or made on the fly, and the mask to write.
struct SelectTensor {
  const void* weight;  // the stored score, for Metric::stored
  const void* grad;
  const float* norm;  // one per column
  uint8_t* mask;      // one byte, or one bit, per entry
  int64_t numel;
  int64_t cols;  // length of the last dimension
  Dtype weight_dtype;
  Dtype grad_dtype;
  bool packed;

  PRUNEOPS_HD int64_t size() const { return numel; }
  PRUNEOPS_HD bool wide() const { return weight_dtype == Dtype::f64 || grad_dtype == Dtype::f64; }
};

// The scores of an update as scores to select among, without a mask.
PRUNEOPS_HD SelectTensor stored_scores(const UpdateTensor& t) {
  return {t.score, nullptr, nullptr, nullptr, t.numel, t.numel, t.score_dtype, Dtype::f32, false};
}

// How a selection over a list of tensors ranks, and what it prunes.
struct SelectRule {
  Metric metric;
  int64_t k;        // the k lowest are pruned,
  bool prune_ties;  // or all up to the k-th smallest score
  bool strict;      // extra memory does not grow with the tensors
};

struct MaskTensor {
  void* data;
  const uint8_t* mask;  // one byte, or one bit, per entry
  int64_t numel;
  int32_t element_size;
  bool packed;

  PRUNEOPS_HD int64_t size() const { return numel; }
};

struct BlockMaskTensor {
  void* data;
  const bool* mask;  // contiguous, one per block
  Matrix matrix;
  Strides strides;
  Block block;
  int32_t element_size;

  PRUNEOPS_HD int64_t grid_rows() const { return divide(matrix.rows, block.n); }
  PRUNEOPS_HD int64_t grid_cols() const { return divide(matrix.cols, block.m); }
};

// Slabs of bytes: `outer` times, `slab_bytes` from instance kept[i] of `instances` become instance i of the
// result.
struct SlabTensor {
  const void* source;
  void* target;
  int64_t outer;
  int64_t slab_bytes;
  int64_t instances;
  int64_t kept;
};

}  // namespace pruneops
