// Means of blocks that go straight into their scores: no total is stored and read again but for the last row,
// and scores are read as evenly as all else.
#pragma once

#include "totals.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

template <class T>
bool are_blended_means(const BlockTensor& t, const UpdateRule& rule) {
  return rule.reduce == Reduce::mean && rule.metric != Metric::product && rule.reads_score() &&
         t.score_dtype == own_dtype<T>();
}

// Blocks of four columns of one row.
template <class Rule, class E, class T>
[[gnu::noinline]] void update_fours(const Rule rule, const Rows<1, E> row, int64_t n, T alpha, T beta,
                                    T* scores) {
  for_each_fours<T>(rule, row, n, [=](int64_t i, const T* totals, auto count) {
#pragma GCC unroll 1
    for (int64_t j = 0; j < decltype(count)::value; ++j) {
      scores[i + j] = blend(true, alpha, scores[i + j], beta, finish_block(Reduce::mean, totals[j], 4));
    }
  });
}
template <class T>
void update_fours(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t first, int64_t across) {
  T* const scores = static_cast<T*>(t.score) + row * t.grid_cols() + first;
  read_rows<1, true, T>(t, rule, row, 4 * first, 4 * across,
                        [&](auto values, const auto& run, int64_t done, int64_t some) {
                          if constexpr (decltype(values)::reduce == Reduce::sum) {  // a mean's
                            update_fours(values, run, some / 4, static_cast<T>(rule.alpha),
                                         static_cast<T>(rule.beta), scores + done / 4);
                          }
                        });
}

// Blocks of one column: neighbours in rows of blocks that lie below each other, from one place on, or from
// several.
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
  void move_down() {
    if (--down == 0) return;
    move_rows();
    for (T*& own : scores) own += to_next_scores;
  }
};

// The blocks of `rows`, which begin with block `first` of a row of blocks, so many `down` at each place.
template <int64_t kPlaces, class T, int64_t kAll, class E>
Columns<kPlaces, kAll / kPlaces, E, T> columns_of(const BlockTensor& t, const Rows<kAll, E>& rows,
                                                  int64_t block_row, int64_t down, int64_t first,
                                                  int64_t across) {
  Columns<kPlaces, kAll / kPlaces, E, T> blocks{
      rows, {}, t.weight_strides.row, t.grad_strides.row, t.grid_cols(), t.block.n, down, across};
  for (int64_t p = 0; p < kPlaces; ++p) {
    blocks.scores[p] = static_cast<T*>(t.score) + (block_row + p * down) * t.grid_cols() + first;
  }
  return blocks;
}

// All that the loops read is their own: what a lambda holds a write to a score could change.
template <class Rule, int64_t kPlaces, int64_t kTogether, class E, class T>
[[gnu::noinline]] void update_columns(const Rule rule, Columns<kPlaces, kTogether, E, T> blocks, T alpha,
                                      T beta) {
  T totals[kPlaces * kTotals];
  for (; blocks.down > 0; blocks.move_down()) {
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
  }
}

template <class T>
void update_side_by_side(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t first,
                         int64_t across) {
  read_rows<kRows, false, T>(t, rule, block_row * kRows, first, across,
                             [&](auto values, const auto& rows, int64_t done, int64_t some) {
                               if constexpr (decltype(values)::reduce == Reduce::sum) {  // a mean's
                                 update_columns(values,
                                                columns_of<1, T>(t, rows, block_row, 1, first + done, some),
                                                static_cast<T>(rule.alpha), static_cast<T>(rule.beta));
                               }
                             });
}

// Rows are read one after the other, as they lie; false where there are no loops that do.
template <int64_t kPlaces, class T>
bool update_one_by_one(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                       int64_t first, int64_t across) {
  return visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, [&](auto element) {
    const auto rows =
        rows_in_place<kPlaces, decltype(element)>(t, rule, block_row * t.block.n, down * t.block.n, first);
    visit_row_rule<T>(rule, [&](auto values) {
      if constexpr (decltype(values)::reduce == Reduce::sum) {  // a mean's
        update_columns(values, columns_of<kPlaces, T>(t, rows, block_row, down, first, across),
                       static_cast<T>(rule.alpha), static_cast<T>(rule.beta));
      }
    });
  });
}

// Updates the scores of the blocks [first, first + across) of `down` rows of blocks; false where they do not
// go straight.
template <class T>
bool update_straight(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  if (!are_blended_means<T>(t, rule)) return false;
  const bool are_fours = t.block.n == 1 && t.block.m == 4, are_columns = t.block.n > 1 && t.block.m == 1;
  if (are_fours || (are_columns && t.block.n == kRows && reads_side_by_side(t))) {
    for (int64_t row = block_row; row < block_row + down; ++row) {
      are_fours ? update_fours<T>(t, rule, row, first, across)
                : update_side_by_side<T>(t, rule, row, first, across);
    }
    return true;
  }
  if (!are_columns || t.block.n > kPartRows || reads_side_by_side(t) || !lies_in_rows(t, rule)) return false;
  // Half of the rows of blocks beside the other: one run of memory for each input does not take all that the
  // memory gives.
  const int64_t half = down / 2, rest = down % 2;
  return update_one_by_one<2, T>(t, rule, block_row, half, first, across) &&
         update_one_by_one<1, T>(t, rule, block_row + 2 * half, rest, first, across);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
