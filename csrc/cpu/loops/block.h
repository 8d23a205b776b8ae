// Block scores straight from weights and gradients: no value of an entry leaves the cache.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// A stripe is the part of one row of blocks that a task takes: whole blocks over kSpan columns, so that each
// row is read in a long run. A block wider than kChunk is one stripe.
constexpr int64_t kSpan = 8 * kChunk;

// Within it, so many rows are read side by side, kChunk of their columns at a time: a total is loaded and
// stored once for all these rows. Shorter rows are read one after the other, as they lie: side by side they
// would be several runs in one page of memory, of which the processor sees none coming.
constexpr int64_t kRows = 4;

// Blocks of one long row, of which so many are read side by side: the processor foresees two runs of memory
// for each of weights and gradients better than one. Shorter blocks gain nothing: their scores are runs as
// well.
constexpr int64_t kLines = 2;

bool are_lines(const BlockTensor& t) {
  return t.block.n == 1 && t.block.m >= kChunk;
}

int64_t stripe_blocks(const Block& block) {
  return block.m > kChunk ? 1 : kSpan / block.m;
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

// What the metric reads of kTogether rows from one column on, stored as E; null where it reads nothing.
template <int64_t kTogether, class E>
struct Rows {
  const typename E::type* w[kTogether];
  const typename E::type* g[kTogether];
};

// The value of an entry of a block: what is not finite is dropped here, but in a signed sum, which is dropped
// whole.
template <Metric kMetric, bool kDrop, class T, class E>
PRUNEOPS_HD T block_entry(const typename E::type* w, const typename E::type* g, int64_t i) {
  const T weight = reads_weight(kMetric) ? E::template load<T>(w[i]) : T(0);
  const T grad = reads_grad(kMetric) ? E::template load<T>(g[i]) : T(0);
  const T value = element_value<T>(kMetric, weight, grad, T(0));
  return kDrop && kMetric != Metric::product ? finite_or_zero(value) : value;
}

// totals = the values of the rows combined, and with the totals so far but where these are the first rows.
// The rows are shared among kTotals totals for each column, kChunk apart.
template <Metric kMetric, bool kDrop, bool kFirst, Reduce kReduce, int64_t kTotals, int64_t kTogether,
          class E, class T>
void combine_entries(const Rows<kTogether, E>& rows, int64_t n, T* __restrict totals) {
  constexpr int64_t kShare = kTogether / kTotals;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int64_t a = 0; a < kTotals; ++a) {
      T total = block_entry<kMetric, kDrop, T, E>(rows.w[a * kShare], rows.g[a * kShare], i);
      if (!kFirst) total = combine(kReduce, totals[a * kChunk + i], total);
#pragma GCC unroll 4
      for (int64_t r = a * kShare + 1; r < (a + 1) * kShare; ++r) {
        total = combine(kReduce, total, block_entry<kMetric, kDrop, T, E>(rows.w[r], rows.g[r], i));
      }
      totals[a * kChunk + i] = total;
    }
  }
}

template <bool kDrop, int64_t kTotals, int64_t kTogether, class E, class T>
void combine_rows_as(const UpdateRule& rule, bool first, const Rows<kTogether, E>& rows, int64_t n,
                     T* totals) {
  visit_metric(rule.metric, [&](auto constant) {
    constexpr Metric kMetric = decltype(constant)::value;
    if (rule.reduce == Reduce::max) {
      first ? combine_entries<kMetric, kDrop, true, Reduce::max, kTotals>(rows, n, totals)
            : combine_entries<kMetric, kDrop, false, Reduce::max, kTotals>(rows, n, totals);
    } else {
      first ? combine_entries<kMetric, kDrop, true, Reduce::sum, kTotals>(rows, n, totals)
            : combine_entries<kMetric, kDrop, false, Reduce::sum, kTotals>(rows, n, totals);
    }
  });
}
template <int64_t kTotals, int64_t kTogether, class E, class T>
void combine_rows(const UpdateRule& rule, bool first, const Rows<kTogether, E>& rows, int64_t n, T* totals) {
  rule.skip_nonfinite ? combine_rows_as<true, kTotals>(rule, first, rows, n, totals)
                      : combine_rows_as<false, kTotals>(rule, first, rows, n, totals);
}

// Whether what is read lies side by side as bfloat16. It is then converted as it is combined: four rows of
// weights and gradients that are converted first fill the first-level cache.
bool lies_as_bfloat16(const BlockTensor& t, const UpdateRule& rule) {
  const auto lies = [&](bool is_read, Dtype dtype, const Strides& strides) {
    return !is_read || (dtype == Dtype::bf16 && strides.inner == 1);
  };
  return t.matrix.inner == t.matrix.cols && rule.grad_scale == nullptr &&
         lies(reads_weight(rule.metric), t.weight_dtype, t.weight_strides) &&
         lies(reads_grad(rule.metric), t.grad_dtype, t.grad_strides);
}

template <int64_t kTogether>
Rows<kTogether, Element<Dtype::bf16>> bfloat16_rows(const BlockTensor& t, const UpdateRule& rule, int64_t row,
                                                    int64_t col) {
  const auto entry = [&](const void* data, const Strides& strides, int64_t r) {
    return static_cast<const uint16_t*>(data) + t.matrix.offset(strides, row + r, col);
  };
  Rows<kTogether, Element<Dtype::bf16>> rows{};
  for (int64_t r = 0; r < kTogether; ++r) {
    if (reads_weight(rule.metric)) rows.w[r] = entry(t.weight, t.weight_strides, r);
    if (reads_grad(rule.metric)) rows.g[r] = entry(t.grad, t.grad_strides, r);
  }
  return rows;
}

// The columns [col, col + n), n at most kChunk, of kTogether rows, into kTotals totals of each.
template <int64_t kTogether, int64_t kTotals, class T>
void read_and_combine(const BlockTensor& t, const UpdateRule& rule, bool first, int64_t row, int64_t col,
                      int64_t n, T* totals) {
  if constexpr (IsSame<T, float>::value) {
    if (lies_as_bfloat16(t, rule)) {
      return combine_rows<kTotals>(rule, first, bfloat16_rows<kTogether>(t, rule, row, col), n, totals);
    }
  }
  T weights[kTogether][kChunk], grads[kTogether][kChunk];
  Rows<kTogether, Element<own_dtype<T>()>> rows{};
  for (int64_t r = 0; r < kTogether; ++r) {
    if (reads_weight(rule.metric)) {
      rows.w[r] = load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row + r, col, n, weights[r]);
    }
    if (reads_grad(rule.metric)) {
      const T* g = load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row + r, col, n, grads[r]);
      rows.g[r] = unscale_chunk(g, rule.grad_scale, n, grads[r]);
    }
  }
  combine_rows<kTotals>(rule, first, rows, n, totals);
}

template <class T>
void combine_pairs(Reduce reduce, const T* __restrict totals, int64_t pairs, T* __restrict combined) {
  if (reduce == Reduce::max) {
    for (int64_t i = 0; i < pairs; ++i) combined[i] = max_or_nan(totals[2 * i], totals[2 * i + 1]);
  } else {
    for (int64_t i = 0; i < pairs; ++i) combined[i] = totals[2 * i] + totals[2 * i + 1];
  }
}

// The column totals of neighbouring blocks are combined within each block: pairs, then pairs of pairs, while
// the block is an even number of columns wide, then one by one. Uses both arrays and returns the one with the
// result.
template <class T>
T* combine_columns(Reduce reduce, T* totals, int64_t blocks, int64_t width, T* spare) {
  while (width % 2 == 0) {
    width /= 2;
    combine_pairs(reduce, totals, blocks * width, spare);
    T* const combined = spare;
    spare = totals;
    totals = combined;
  }
  if (width == 1) return totals;
  for (int64_t b = 0; b < blocks; ++b) {
    T total = totals[b * width];
    for (int64_t i = 1; i < width; ++i) total = combine(reduce, total, totals[b * width + i]);
    spare[b] = total;
  }
  return spare;
}

// The totals of the columns [col, col + n) over `rows` rows: one for each of at most kSpan columns, or folded
// into one for each of kChunk.
template <bool kFold, class T>
void column_totals(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t rows, int64_t col,
                   int64_t n, T* totals) {
  for (int64_t r = 0; r < rows;) {
    const bool together = rows - r >= kRows && t.matrix.cols >= kChunk;
    for (int64_t done = 0; done < n; done += kChunk) {
      const int64_t run = min64(kChunk, n - done);
      const bool first = r == 0 && !(kFold && done > 0);
      T* const target = kFold ? totals : totals + done;
      together ? read_and_combine<kRows, 1>(t, rule, first, row + r, col + done, run, target)
               : read_and_combine<1, 1>(t, rule, first, row + r, col + done, run, target);
    }
    r += together ? kRows : 1;
  }
}

// The totals of neighbouring blocks over `rows` of their rows, in one of the two arrays of kSpan entries.
template <class T>
T* block_totals(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t rows, int64_t first,
                int64_t blocks, T* one, T* other) {
  const int64_t col = first * t.block.m;
  if (t.block.m > kChunk) {
    column_totals<true>(t, rule, row, rows, col, t.block.m, one);
    return combine_columns(rule.reduce, one, 1, kChunk, other);
  }
  column_totals<false>(t, rule, row, rows, col, blocks * t.block.m, one);
  return combine_columns(rule.reduce, one, blocks, t.block.m, other);
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

// Neighbouring blocks of kLines rows of blocks, from block `first` of each on.
template <class T>
void update_lines(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t row, int64_t first,
                  int64_t blocks) {
  T totals[kLines * kChunk], spare[kChunk];
  for (int64_t block = first; block < first + blocks; ++block) {
    for (int64_t done = 0; done < t.block.m; done += kChunk) {
      read_and_combine<kLines, kLines>(t, rule, done == 0, row, block * t.block.m + done,
                                       min64(kChunk, t.block.m - done), totals);
    }
    for (int64_t line = 0; line < kLines; ++line) {
      T* const total = combine_columns(rule.reduce, totals + line * kChunk, 1, kChunk, spare);
      finish_scores(t, rule, past, (row + line) * t.grid_cols() + block, 1, total);
    }
  }
}

// Neighbouring blocks of a part of a row of blocks, from block `first` on.
template <class T>
void update_part(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t block_row, int64_t part,
                 int64_t first, int64_t blocks, void* part_totals) {
  const int64_t row = block_row * t.block.n + part * kPartRows;
  const int64_t rows = min64(kPartRows, t.block.n - part * kPartRows);
  // Blocks whose rows are all read side by side are finished as soon as they are read.
  const int64_t side_by_side = t.block.m < kChunk ? kChunk / t.block.m : 1;
  const int64_t step = t.block.n <= kRows ? side_by_side : blocks;
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

int64_t stripes_of(const BlockTensor& t) {
  const int64_t down = are_lines(t) ? ceil_div(t.grid_rows(), kLines) : t.grid_rows() * parts_of(t);
  return down * stripes_in_row(t);
}

template <class T>
void update_stripe(const BlockTensor& t, const UpdateRule& rule, bool past, int64_t stripe,
                   void* part_totals) {
  const int64_t down = stripe / stripes_in_row(t),
                first = stripe % stripes_in_row(t) * stripe_blocks(t.block);
  const int64_t blocks = min64(stripe_blocks(t.block), t.grid_cols() - first);
  if (!are_lines(t)) {
    const int64_t parts = parts_of(t);
    return update_part<T>(t, rule, past, down / parts, down % parts, first, blocks, part_totals);
  }
  const int64_t row = down * kLines, lines = min64(kLines, t.grid_rows() - row);
  if (lines == kLines) return update_lines<T>(t, rule, past, row, first, blocks);
  for (int64_t line = 0; line < lines; ++line) {
    update_part<T>(t, rule, past, row + line, 0, first, blocks, nullptr);
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
  TileTable stripes(tensors, count, stripes_of);
  parallel(pool, stripes.tiles(), [&](int64_t begin, int64_t end) {
    stripes.for_range(begin, end, [&](int64_t i, int64_t stripe, int64_t) {
      double* part = part_totals.data() + offsets[i];
      tensors[i].wide() ? update_stripe<double>(tensors[i], rule, past, stripe, part)
                        : update_stripe<float>(tensors[i], rule, past, stripe, part);
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
