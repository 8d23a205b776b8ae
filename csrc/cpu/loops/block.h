// Block scores straight from weights and gradients: no value of an entry leaves the cache.
#pragma once

#include "totals.h"

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
constexpr int64_t kPartRows = 256;

int64_t parts_of(const BlockTensor& t) {
  return ceil_div(t.block.n, kPartRows);
}
int64_t stripes_in_row(const BlockTensor& t) {
  return ceil_div(t.grid_cols(), stripe_blocks(t.block));
}

// Whether blocks are one column of rows, whose means go straight into their scores with the last of their
// rows: so scores are read as evenly as all else.
template <class T>
bool goes_straight(const BlockTensor& t, const UpdateRule& rule) {
  const bool fits = reads_side_by_side(t) ? t.block.n == kRows : t.block.n > 1 && t.block.n <= kPartRows;
  return fits && t.block.m == 1 && rule.reduce == Reduce::mean && rule.metric != Metric::product &&
         rule.reads_score() && t.score_dtype == own_dtype<T>() && lies_in_rows(t, rule);
}

// Such blocks: neighbours in rows of blocks that lie below each other, from one place on, or from several.
template <int64_t kPlaces, int64_t kTogether, class E, class T>
struct Columns {
  Rows<kPlaces * kTogether, E> rows;  // the first kTogether ones of each place
  T* scores[kPlaces];
  int64_t to_next_w;  // from one row to the next
  int64_t to_next_g;
  int64_t to_next_scores;
  int64_t of_block;  // rows
  int64_t down;
  int64_t across;

  void move_rows() { rows.move(kTogether * to_next_w, kTogether * to_next_g); }
};

// All that the loops read is their own: what a lambda holds a write to a score could change.
template <class Rule, int64_t kPlaces, int64_t kTogether, class E, class T>
[[gnu::noinline]] void update_columns(const Rule rule, Columns<kPlaces, kTogether, E, T> blocks, T alpha,
                                      T beta) {
  T totals[kPlaces * kTotals];
  for (; blocks.down > 0; --blocks.down) {
    const int64_t n = blocks.across, entries = blocks.of_block;
    if constexpr (kTogether == 1) {
      for (int64_t r = 1; r < entries; ++r, blocks.move_rows()) {
        r == 1 ? combine_rows<true, kPlaces>(rule, blocks.rows, n, totals)
               : combine_rows<false, kPlaces>(rule, blocks.rows, n, totals);
      }
    }
    const auto last = blocks;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 2
      for (int64_t p = 0; p < kPlaces; ++p) {
        T total = rule.template total<kTogether>(last.rows, p * kTogether, i);
        if (kTogether == 1) total = combine(Rule::reduce, totals[p * kTotals + i], total);
        T& score = last.scores[p][i];
        score = blend(true, alpha, score, beta, finish_block(Reduce::mean, total, entries));
      }
    }
    blocks.move_rows();
    for (T*& scores : blocks.scores) scores += blocks.to_next_scores;
  }
}

// The blocks [first, first + across) of rows of blocks that go straight, so many `down` at each place; false
// where there are no loops that read what lies in memory.
template <int64_t kPlaces, int64_t kTogether, class T>
bool update_straight(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  return visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, [&](auto element) {
    using E = decltype(element);
    const int64_t row = block_row * t.block.n, apart = kPlaces == 1 ? 1 : down * t.block.n;
    Columns<kPlaces, kTogether, E, T> blocks{
        rows_in_place<kPlaces * kTogether, E>(t, rule, row, apart, first),
        {},
        t.weight_strides.row,
        t.grad_strides.row,
        t.grid_cols(),
        t.block.n,
        down,
        across,
    };
    for (int64_t p = 0; p < kPlaces; ++p) {
      blocks.scores[p] = static_cast<T*>(t.score) + (block_row + p * down) * t.grid_cols() + first;
    }
    visit_row_rule<T>(rule, [&](auto values) {
      if constexpr (decltype(values)::reduce == Reduce::sum) {  // a mean's
        update_columns(values, blocks, static_cast<T>(rule.alpha), static_cast<T>(rule.beta));
      }
    });
  });
}

// The same for any number of rows of blocks. Where rows are read one after the other, half of these beside
// the other: one run of memory for each input does not take all that the memory gives.
template <class T>
bool update_straight(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  if (!goes_straight<T>(t, rule)) return false;
  if (reads_side_by_side(t)) return update_straight<1, kRows, T>(t, rule, block_row, down, first, across);
  const int64_t half = down / 2, rest = down % 2;
  return update_straight<2, 1, T>(t, rule, block_row, half, first, across) &&
         update_straight<1, 1, T>(t, rule, block_row + 2 * half, rest, first, across);
}

// Neighbouring blocks of a part of a row of blocks, from block `first` on.
template <class T>
void update_part(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t block_row, int64_t part,
                 int64_t first, int64_t blocks, void* part_totals) {
  const int64_t row = block_row * t.block.n + part * kPartRows;
  const int64_t rows = min64(kPartRows, t.block.n - part * kPartRows);
  // Blocks whose rows are all read side by side are finished while their totals are in the cache.
  const int64_t columns = is_of_fours(t.block) ? 2 * kChunk : kChunk;
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
