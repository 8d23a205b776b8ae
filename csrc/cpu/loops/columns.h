// Means of blocks of one column, straight into their scores: as straight.h.
#pragma once

#include "totals.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Blocks of one column: neighbours in rows of blocks that lie below each other.
template <int64_t kLast, class E, class T>
struct Columns {
  Rows<kLast, E> rows;  // the first ones that have not been read
  T* scores;
  int64_t pitch;     // of scores
  int64_t of_block;  // rows
  int64_t down;
  int64_t across;

  // Moves from the last rows of blocks to the blocks below.
  void move_down() {
    rows.move(kLast);
    scores += pitch;
  }
};

// Those that begin with block `first` of a row of blocks.
template <class T, int64_t kLast, class E>
Columns<kLast, E, T> columns_of(const BlockTensor& t, const Rows<kLast, E>& rows, int64_t block_row,
                                int64_t down, int64_t first, int64_t across) {
  T* const scores = static_cast<T*>(t.score) + block_row * t.grid_cols() + first;
  return {rows, scores, t.grid_cols(), t.block.n, down, across};
}

// Scores from the last rows of their blocks and, where there are others, the totals of those.
template <bool kOnly, class Rule, int64_t kLast, class E, class T>
PRUNEOPS_HD void blend_last(const Rule& rule, const Columns<kLast, E, T>& blocks, T alpha, T beta,
                            const T* totals) {
  const auto rows = blocks.rows;
  const int64_t entries = blocks.of_block;
  T* const scores = blocks.scores;
  for_pieces(rule, rows, blocks.across, [=](int64_t from, int64_t some) {
#pragma GCC ivdep
    for (int64_t i = from; i < from + some; ++i) {
      T total = rule.total(rows, i);
      if (!kOnly) total = combine(Rule::reduce, totals[i], total);
      scores[i] = blend(true, alpha, scores[i], beta, finish_block(Reduce::mean, total, entries));
    }
  });
}

// All that the loops read is their own: what a lambda holds a write to a score could change.
template <class Rule, int64_t kLast, class E, class T>
[[gnu::noinline]] void update_columns(const Rule rule, Columns<kLast, E, T> blocks, T alpha, T beta) {
  T totals[kSpan];
  for (; blocks.down > 0; --blocks.down) {
    int64_t above = blocks.of_block - kLast;
    for (bool first = true; above > 0; first = false) {
      const int64_t some = above % kRows == 0 ? kRows : 1;
      some == 1 ? combine_rows(first, rule, blocks.rows.template first<1>(), blocks.across, totals)
                : combine_rows(first, rule, blocks.rows.template first<kRows>(), blocks.across, totals);
      blocks.rows.move(some);
      above -= some;
    }
    blocks.of_block == kLast ? blend_last<true>(rule, blocks, alpha, beta, totals)
                             : blend_last<false>(rule, blocks, alpha, beta, totals);
    blocks.move_down();
  }
}

// Rows of fewer bytes are read one after the other as they lie, those of two places in turn: the runs of
// several rows side by side would be in a page or two of memory, and one run does not take all that the
// memory gives.
constexpr int64_t kShortRow = 3 << 10;

// From the totals of a place to those of the other, of half types at the most: by no power of two, lest both
// take the same places of a cache.
constexpr int64_t kShortTotals = kShortRow / 2 + 64;

template <bool kFirst, class Rule, class E, class T>
PRUNEOPS_HD void combine_places(const Rule& rule, const Rows<1, E>& one, const Rows<1, E>& other, int64_t n,
                                T* totals) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T& above = totals[i];
    T& below = totals[kShortTotals + i];
    above = kFirst ? rule.total(one, i) : combine(Rule::reduce, above, rule.total(one, i));
    below = kFirst ? rule.total(other, i) : combine(Rule::reduce, below, rule.total(other, i));
  }
}
template <class Rule, class E, class T>
PRUNEOPS_HD void blend_places(const Rule& rule, const Columns<1, E, T>& one, const Columns<1, E, T>& other,
                              T alpha, T beta, const T* totals) {
  const auto one_row = one.rows, other_row = other.rows;
  const int64_t n = one.across, entries = one.of_block;
  T* const above = one.scores;
  T* const below = other.scores;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T first = combine(Rule::reduce, totals[i], rule.total(one_row, i));
    const T second = combine(Rule::reduce, totals[kShortTotals + i], rule.total(other_row, i));
    above[i] = blend(true, alpha, above[i], beta, finish_block(Reduce::mean, first, entries));
    below[i] = blend(true, alpha, below[i], beta, finish_block(Reduce::mean, second, entries));
  }
}
template <class Rule, class E, class T>
[[gnu::noinline]] void update_places(const Rule rule, Columns<1, E, T> one, Columns<1, E, T> other, T alpha,
                                     T beta) {
  T totals[2 * kShortTotals];
  for (; one.down > 0; --one.down) {
    combine_places<true>(rule, one.rows, other.rows, one.across, totals);
    for (int64_t r = 2; r < one.of_block; ++r) {
      one.rows.move(1);
      other.rows.move(1);
      combine_places<false>(rule, one.rows, other.rows, one.across, totals);
    }
    one.rows.move(1);
    other.rows.move(1);
    blend_places(rule, one, other, alpha, beta, totals);
    one.move_down();
    other.move_down();
  }
}

// The blocks [first, first + across) of `down` rows of blocks as they lie, with loops that are chosen once.
template <int64_t kLast, class E, class T>
void update_in_place(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  const auto columns = [&](auto last, int64_t row, int64_t of_them) {
    const auto rows = rows_in_place<decltype(last)::value, E>(t, rule, row * t.block.n, first);
    return columns_of<T>(t, rows, row, of_them, first, across);
  };
  visit_rule_of<Reduce::sum, T>(rule, [&](auto values) {  // a mean's
    if (t.matrix.cols * static_cast<int64_t>(sizeof(typename E::type)) < kShortRow) {
      const int64_t half = down / 2;
      update_places(values, columns(Count<1>{}, block_row, half), columns(Count<1>{}, block_row + half, half),
                    alpha, beta);
      block_row += 2 * half;
      down -= 2 * half;
    }
    update_columns(values, columns(Count<kLast>{}, block_row, down), alpha, beta);
  });
}

// Rows of blocks, all rows of a block together: through buffers too.
template <int64_t kLast, class T>
void update_together(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  for (int64_t row = block_row; row < block_row + down; ++row) {
    const auto update = [&](auto values, const auto& rows, int64_t done, int64_t some) {
      update_columns(values, columns_of<T>(t, rows, row, 1, first + done, some), static_cast<T>(rule.alpha),
                     static_cast<T>(rule.beta));
    };
    read_summed<kLast, false, T>(t, rule, row * kLast, first, across, update);
  }
}

// Blocks of one column: false where they neither lie as they are needed nor have kLast rows.
template <int64_t kLast, class T>
bool update_columns(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                    int64_t first, int64_t across) {
  const auto in_place = [&](auto element) {
    update_in_place<kLast, decltype(element), T>(t, rule, block_row, down, first, across);
  };
  const bool lies = lies_in_rows(t, rule);
  if (lies && visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, in_place)) return true;
  if (t.block.n != kLast) return false;
  update_together<kLast, T>(t, rule, block_row, down, first, across);
  return true;
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
