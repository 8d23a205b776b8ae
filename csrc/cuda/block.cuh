// Block scores straight from weights and gradients.
//
// The 8 warps of a thread block share the rows of one row of blocks, or of several where a block has fewer
// than 8 rows; each lane adds up kVector neighbouring columns over its rows. The sums of lanes and warps meet
// in shared memory, where each block is finished by one thread in a fixed order.
#pragma once

#include "block_scan.cuh"
#include "update.cuh"

namespace pruneops::cuda {

constexpr int64_t kSpan = kWarp * kVector;  // columns that a warp covers at a time

// Warps that share a row of blocks: a power of two, so that they divide the block's warps.
PRUNEOPS_HD int warps_per_block_row(const Block& block) {
  int warps = 1;
  while (warps < kWarps && warps * 2 <= block.n) warps *= 2;
  return warps;
}

// Neighbouring blocks that a thread block works on at a time; one where a block is wider than the span.
PRUNEOPS_HD int64_t blocks_per_span(const Block& block) {
  return block.m > kSpan ? 1 : kSpan / block.m;
}

PRUNEOPS_HD int64_t block_rows_per_tile(const Block& block) {
  return kWarps / warps_per_block_row(block);
}

PRUNEOPS_HD int64_t block_tiles(const BlockTensor& t) {
  return ceil_div(t.grid_rows(), block_rows_per_tile(t.block)) *
         ceil_div(t.grid_cols(), blocks_per_span(t.block));
}

// Entries [col, col + n) of a row as T.
template <class T>
__device__ __forceinline__ void load_row(const void* data, Dtype dtype, const Matrix& matrix,
                                         const Strides& strides, int64_t row, int64_t col, int n,
                                         T (&out)[kVector]) {
  if (strides.inner == 1 && matrix.inner == matrix.cols) {
    return load_entries(data, dtype, matrix.offset(strides, row, col), n, out);
  }
  ColumnWalk walk(matrix, strides, row, col);
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* source = static_cast<const typename E::type*>(data);
#pragma unroll
    for (int i = 0; i < kVector; ++i, walk.next()) {
      out[i] = i < n ? E::template load<T>(source[walk.offset]) : T(0);
    }
  });
}

template <class T>
__device__ __forceinline__ void add_row(const BlockTensor& t, const UpdateRule& rule, T scale, int64_t row,
                                        int64_t col, int n, T (&sums)[kVector]) {
  T w[kVector] = {}, g[kVector] = {}, norm[kVector] = {}, v[kVector];
  if (reads_weight(rule.metric))
    load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row, col, n, w);
  if (reads_grad(rule.metric)) load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row, col, n, g);
  if (rule.grad_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) g[i] = g[i] / scale;
  }
  values_of(rule.metric, w, g, norm, v);
  const bool drop = rule.skip_nonfinite && rule.metric != Metric::product;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < n) sums[i] = combine(rule.reduce, sums[i], drop ? finite_or_zero(v[i]) : v[i]);
  }
}

// One thread finishes a block from the sums of its warps and columns, and blends it into its score.
template <class T>
__device__ __forceinline__ void finish_score(const BlockTensor& t, const UpdateRule& rule, int64_t place,
                                             T total) {
  T value = finish_block(rule.reduce, total, t.block.entries());
  if (rule.skip_nonfinite && rule.metric == Metric::product) value = finite_or_zero(value);
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  visit_dtype(t.score_dtype, [&](auto element) {
    using E = decltype(element);
    auto* score = static_cast<typename E::type*>(t.score) + place;
    const T old = rule.reads_score() ? E::template load<T>(*score) : T(0);
    *score = E::template store<T>(blend(rule.reads_score(), alpha, old, beta, value));
  });
}

template <class T>
__device__ __forceinline__ void update_block_tile(const BlockTensor& t, const UpdateRule& rule, T scale,
                                                  int64_t tile, T (&shared)[kWarps][kSpan]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warps = warps_per_block_row(t.block);
  const int64_t per_span = blocks_per_span(t.block), tiles_in_row = ceil_div(t.grid_cols(), per_span);
  const int64_t first_row = tile / tiles_in_row * block_rows_per_tile(t.block);
  const int64_t first_block = tile % tiles_in_row * per_span;
  const int64_t blocks = min64(per_span, t.grid_cols() - first_block);
  const int64_t begin = first_block * t.block.m, end = begin + blocks * t.block.m;

  T sums[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[i] = reduce_identity<T>(rule.reduce);
  const int64_t block_row = first_row + warp / warps;
  if (block_row < t.grid_rows()) {
    for (int64_t span = begin; span < end; span += kSpan) {
      const int64_t col = span + lane * kVector;
      if (col >= end) continue;
      const int n = static_cast<int>(min64(kVector, end - col));
      for (int64_t r = warp % warps; r < t.block.n; r += warps) {
        add_row(t, rule, scale, block_row * t.block.n + r, col, n, sums);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) shared[warp][lane * kVector + i] = sums[i];
  __syncthreads();

  const int64_t width = min64(t.block.m, kSpan);
  const int64_t rows = min64(block_rows_per_tile(t.block), t.grid_rows() - first_row);
  for (int64_t task = threadIdx.x; task < rows * blocks; task += kThreads) {
    const int64_t row = task / blocks, block = task % blocks;
    T total = reduce_identity<T>(rule.reduce);
    for (int64_t c = block * width; c < (block + 1) * width; ++c) {
      for (int w = 0; w < warps; ++w) total = combine(rule.reduce, total, shared[row * warps + w][c]);
    }
    finish_score(t, rule, (first_row + row) * t.grid_cols() + first_block + block, total);
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    update_block_scores_kernel(const __grid_constant__ Table<BlockTensor> table, const UpdateRule rule) {
  __shared__ T shared[kWarps][kSpan];
  if (overflowed(rule)) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_tile(table, [&](const BlockTensor& t, int64_t tile, int64_t) {
    update_block_tile(t, rule, scale, tile, shared);
  });
}

}  // namespace pruneops::cuda
