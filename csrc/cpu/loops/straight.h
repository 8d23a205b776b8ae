// Means of blocks that go straight into their scores: no total is stored and read again but for the last row,
// and scores are read as evenly as all else. Here those of few rows and columns, in columns.h those of one
// column.
#pragma once

#include "columns.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

template <class T>
bool are_blended_means(const BlockTensor& t, const UpdateRule& rule) {
  return rule.reduce == Reduce::mean && rule.metric != Metric::product && rule.reads_score() &&
         t.score_dtype == own_dtype<T>();
}

// Blocks of kRun columns, 2 or 4, of kTogether rows.
template <int64_t kRun, class Rule, int64_t kTogether, class E>
[[gnu::noinline]] void update_runs(const Rule rule, const Rows<kTogether, E> rows, int64_t n, float alpha,
                                   float beta, float* scores) {
  for_each_run<kRun>(rule, rows, n, [=](int64_t i, const float* sums, auto count) {
#pragma GCC unroll 1
    for (int64_t j = 0; j < decltype(count)::value; ++j) {
      const float mean = finish_block(Reduce::mean, sums[j], kTogether * kRun);
      scores[i + j] = blend(true, alpha, scores[i + j], beta, mean);
    }
  });
}
template <int64_t kRun, int64_t kTogether>
void update_runs(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t first,
                 int64_t across) {
  float* const scores = static_cast<float*>(t.score) + block_row * t.grid_cols() + first;
  read_summed<kTogether, true, float>(t, rule, block_row * kTogether, kRun * first, kRun * across,
                                      [&](auto values, const auto& rows, int64_t done, int64_t some) {
                                        update_runs<kRun>(
                                            values, rows, some / kRun, static_cast<float>(rule.alpha),
                                            static_cast<float>(rule.beta), scores + done / kRun);
                                      });
}

// Updates the scores of the blocks [first, first + across) of `down` rows of blocks; false where they do not
// go straight.
template <class T>
bool update_straight(const BlockTensor& t, const UpdateRule& rule, int64_t block_row, int64_t down,
                     int64_t first, int64_t across) {
  if (!are_blended_means<T>(t, rule)) return false;
  if (t.block.m == 2 || t.block.m == 4) {
    return visit_few_rows<T>(t, rule, [&](auto together) {
      constexpr int64_t kTogether = decltype(together)::value;
      for (int64_t row = block_row; row < block_row + down; ++row) {
        t.block.m == 2 ? update_runs<2, kTogether>(t, rule, row, first, across)
                       : update_runs<4, kTogether>(t, rule, row, first, across);
      }
    });
  }
  if (t.block.m != 1 || t.block.n == 1 || t.block.n > kPartRows) return false;
  return t.block.n >= kRows ? update_columns<kRows, T>(t, rule, block_row, down, first, across)
                            : update_columns<2, T>(t, rule, block_row, down, first, across);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
