// Block scores straight from weights and gradients: no value of an entry leaves the cache.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// A stripe is the part of one row of blocks that a task takes: whole blocks, about kChunk columns of them, or
// a part of kChunk columns at a time of one block where a block is wider.
int64_t stripe_blocks(const Block& block) {
  return block.m >= kChunk ? 1 : kChunk / block.m;
}

// Entries [col, col + n) of a row as T, in place or in `buffer`; a run ends where a kernel position does.
template <class T>
const T* load_row(const void* data, Dtype dtype, const Matrix& matrix, const Strides& strides, int64_t row,
                  int64_t col, int64_t n, T* buffer) {
  if (matrix.inner == matrix.cols) {
    return load_chunk(data, dtype, matrix.offset(strides, row, col), n, buffer, strides.inner);
  }
  for (int64_t done = 0; done < n;) {
    const int64_t run = min64(n - done, matrix.inner - (col + done) % matrix.inner);
    const int64_t offset = matrix.offset(strides, row, col + done);
    const T* part = load_chunk(data, dtype, offset, run, buffer + done, strides.inner);
    if (part != buffer + done) memcpy(buffer + done, part, static_cast<size_t>(run) * sizeof(T));
    done += run;
  }
  return buffer;
}

template <class T>
void row_values(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t col, int64_t n,
                T* values) {
  T weights[kChunk], grads[kChunk];
  const T* w = nullptr;
  const T* g = nullptr;
  if (reads_weight(rule.metric)) {
    w = load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row, col, n, weights);
  }
  if (reads_grad(rule.metric)) {
    g = load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row, col, n, grads);
    g = unscale_chunk(g, rule.grad_scale, n, grads);
  }
  values_of<T>(rule.metric, w, g, nullptr, n, values);
  const bool per_entry = rule.metric != Metric::product;
  if (rule.skip_nonfinite && per_entry) drop_nonfinite(values, n);
}

template <class T>
void combine_into(Reduce reduce, const T* values, int64_t n, T* totals) {
  if (reduce == Reduce::max) {
    for (int64_t i = 0; i < n; ++i) totals[i] = max_or_nan(totals[i], values[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) totals[i] += values[i];
  }
}

// The column totals of a stripe are combined within each block: pairs, then pairs of pairs, while the block
// is an even number of columns wide, then one by one.
template <class T>
void combine_columns(Reduce reduce, T* totals, int64_t blocks, int64_t width) {
  int64_t left = width;
  while (left % 2 == 0 && left > 1) {
    left /= 2;
    for (int64_t i = 0; i < blocks * left; ++i) totals[i] = combine(reduce, totals[2 * i], totals[2 * i + 1]);
  }
  if (left == 1) return;
  for (int64_t b = 0; b < blocks; ++b) {
    T total = totals[b * left];
    for (int64_t i = 1; i < left; ++i) total = combine(reduce, total, totals[b * left + i]);
    totals[b] = total;
  }
}

// Totals of `blocks` neighbouring blocks over `width` of their columns, from column `col` on, into
// totals[0..blocks).
template <class T>
void stripe_totals(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t col,
                   int64_t blocks, int64_t width, T* totals) {
  T values[kChunk];
  const int64_t n = blocks * width;
  for (int64_t i = 0; i < n; ++i) totals[i] = reduce_identity<T>(rule.reduce);
  for (int64_t r = 0; r < t.block.n; ++r) {
    row_values<T>(t, rule, block_row * t.block.n + r, col, n, values);
    combine_into(rule.reduce, values, n, totals);
  }
  combine_columns(rule.reduce, totals, blocks, width);
}

template <class T>
void update_stripe(const BlockTensor& t, const UpdateRule& rule, int64_t stripe) {
  const int64_t per_row = ceil_div(t.grid_cols(), stripe_blocks(t.block));
  const int64_t block_row = stripe / per_row, first = stripe % per_row * stripe_blocks(t.block);
  const int64_t blocks = min64(stripe_blocks(t.block), t.grid_cols() - first);
  T totals[kChunk], part[kChunk];
  if (t.block.m < kChunk) {
    stripe_totals<T>(t, rule, block_row, first * t.block.m, blocks, t.block.m, totals);
  } else {
    totals[0] = reduce_identity<T>(rule.reduce);
    for (int64_t done = 0; done < t.block.m; done += kChunk) {
      const int64_t width = min64(kChunk, t.block.m - done);
      stripe_totals<T>(t, rule, block_row, first * t.block.m + done, 1, width, part);
      totals[0] = combine(rule.reduce, totals[0], part[0]);
    }
  }
  for (int64_t i = 0; i < blocks; ++i) totals[i] = finish_block(rule.reduce, totals[i], t.block.entries());
  if (rule.skip_nonfinite && rule.metric == Metric::product) drop_nonfinite(totals, blocks);
  blend_into(t.score, t.score_dtype, block_row * t.grid_cols() + first, blocks, rule, totals, part);
}

void update_block_scores(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                         const Pool& pool) {
  if (rule.found_inf != nullptr && *rule.found_inf != 0.0f) return;
  TileTable stripes(tensors, count, [](const BlockTensor& t) {
    return t.grid_rows() * ceil_div(t.grid_cols(), stripe_blocks(t.block));
  });
  parallel(pool, stripes.tiles(), [&](int64_t begin, int64_t end) {
    stripes.for_range(begin, end, [&](int64_t i, int64_t stripe, int64_t) {
      const BlockTensor& t = tensors[i];
      t.wide() ? update_stripe<double>(t, rule, stripe) : update_stripe<float>(t, rule, stripe);
    });
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
