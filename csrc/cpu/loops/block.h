// Block scores straight from weights and gradients: no value of an entry leaves the cache.
#pragma once

#include "straight.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

int64_t stripe_blocks(const Block& block) {
  return block.m > kChunk ? 1 : kSpan / block.m;
}

// The values of blocks of so many entries from their totals. The inverse of a power of two is exact, so that
// a product rounds as a division does, which takes several times as long.
template <class T>
void finish_totals(Reduce reduce, int64_t entries, int64_t blocks, T* totals) {
  if (reduce == Reduce::mean && is_power_of_two(entries)) {
    const T inverse = T(1) / static_cast<T>(entries);
    for (int64_t i = 0; i < blocks; ++i) totals[i] *= inverse;
    return;
  }
  visit_reduce(reduce, [&](auto constant) {
    for (int64_t i = 0; i < blocks; ++i) {
      totals[i] = finish_block(decltype(constant)::value, totals[i], entries);
    }
  });
}

// Finishes the totals of neighbouring blocks and blends them into their scores from `place` on, past the
// caches or not.
template <class T>
void finish_scores(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t place, int64_t blocks,
                   T* totals) {
  finish_totals(rule.reduce, t.block.entries(), blocks, totals);
  if (rule.skip_nonfinite && rule.metric == Metric::product) drop_nonfinite(totals, blocks);
  void* scores = advance(t.score, t.score_dtype, place);
  if (past) return blend_past(t.score_dtype, blocks, rule, totals, scores);
  blend_into(scores, t.score_dtype, blocks, rule, totals, scores);
}

// A tall block is cut into parts of kPartRows rows, so that few tall blocks still make many tasks; the totals
// of the parts are kept apart and combined in their order.
int64_t parts_of(const BlockTensor& t) {
  return ceil_div(t.block.n, kPartRows);
}
int64_t stripes_in_row(const BlockTensor& t) {
  return ceil_div(t.grid_cols(), stripe_blocks(t.block));
}

// Neighbouring blocks of a part of a row of blocks, from block `first` on.
template <class T>
void update_part(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t block_row, int64_t part,
                 int64_t first, int64_t blocks, void* part_totals) {
  const int64_t row = block_row * t.block.n + part * kPartRows;
  const int64_t rows = min64(kPartRows, t.block.n - part * kPartRows);
  // Blocks whose rows are all read side by side are finished while their totals are in the cache.
  const int64_t columns = t.block.n == 1 && t.block.m % 4 == 0 ? 2 * kChunk : kChunk;
  const int64_t step = t.block.n <= kRows && t.block.m < columns ? columns / t.block.m : blocks;
  T one[kSpan], other[kSpan];
  for (int64_t done = 0; done < blocks; done += step) {
    const int64_t few = min64(step, blocks - done);
    const int64_t place = block_row * t.grid_cols() + first + done;
    T* totals = block_totals<T>(t, rule, row, rows, first + done, few, one, other);
    if (parts_of(t) == 1) {
      finish_scores(t, rule, past, place, few, totals);
    } else {
      memcpy(static_cast<T*>(part_totals) + part * t.blocks() + place, totals,
             static_cast<size_t>(few) * sizeof(T));
    }
  }
}

// A task has a stripe of one row of blocks, or of several below each other where these are short.
int64_t rows_of_task(const BlockTensor& t) {
  const int64_t rows = kTile / (t.block.n * t.matrix.cols);
  return rows < 1 ? 1 : rows;
}
int64_t tasks_of(const BlockTensor& t) {
  return ceil_div(t.grid_rows(), rows_of_task(t)) * parts_of(t) * stripes_in_row(t);
}

template <class T>
void update_task(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t task, void* part_totals) {
  const int64_t stripe = task % stripes_in_row(t), above = task / stripes_in_row(t);
  const int64_t first = stripe * stripe_blocks(t.block), parts = parts_of(t), part = above % parts;
  const int64_t blocks = min64(stripe_blocks(t.block), t.grid_cols() - first);
  const int64_t row = above / parts * rows_of_task(t), rows = min64(rows_of_task(t), t.grid_rows() - row);
  if (update_straight<T>(t, rule, row, rows, first, blocks)) return;
  for (int64_t r = row; r < row + rows; ++r) {
    update_part<T>(t, rule, past, r, part, first, blocks, part_totals);
  }
}

template <class T>
void combine_parts(const BlockTensor& t, const UpdateRule& rule, bool past, const void* part_totals,
                   int64_t place, int64_t blocks) {
  const T* parts = static_cast<const T*>(part_totals) + place;
  T totals[kChunk];
  for (int64_t i = 0; i < blocks; ++i) totals[i] = parts[i];
  for (int64_t part = 1; part < parts_of(t); ++part) {
    parts += t.blocks();
    for (int64_t i = 0; i < blocks; ++i) totals[i] = combine(rule.reduce, totals[i], parts[i]);
  }
  finish_scores(t, rule, past, place, blocks, totals);
}

void update_block_scores(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                         const Pool& pool) {
  if (rule.overflowed()) return;
  const bool past = writes_past(tensors, count, rule, [](const BlockTensor& t) { return t.blocks(); });
  Buffer<int64_t> offsets(count + 1);  // of a tensor's part totals
  offsets[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool tall = parts_of(tensors[i]) > 1;
    offsets[i + 1] = offsets[i] + (tall ? parts_of(tensors[i]) * tensors[i].blocks() : 0);
  }
  Buffer<double> part_totals(offsets[count]);
  TileTable tasks(tensors, count, tasks_of);
  parallel(pool, tasks.tiles(), [&](int64_t begin, int64_t end) {
    tasks.for_range(begin, end, [&](int64_t i, int64_t task, int64_t) {
      double* part = part_totals.data() + offsets[i];
      tensors[i].wide() ? update_task<double>(tensors[i], rule, past, task, part)
                        : update_task<float>(tensors[i], rule, past, task, part);
    });
  });
  TileTable chunks(tensors, count,
                   [](const BlockTensor& t) { return parts_of(t) > 1 ? ceil_div(t.blocks(), kChunk) : 0; });
  parallel(pool, chunks.tiles(), [&](int64_t begin, int64_t end) {
    chunks.for_range(begin, end, [&](int64_t i, int64_t chunk, int64_t) {
      const double* part = part_totals.data() + offsets[i];
      const int64_t place = chunk * kChunk, blocks = min64(kChunk, tensors[i].blocks() - place);
      tensors[i].wide() ? combine_parts<double>(tensors[i], rule, past, part, place, blocks)
                        : combine_parts<float>(tensors[i], rule, past, part, place, blocks);
    });
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
