// The values of the entries of blocks, combined: over rows for each column, then along the columns.
#pragma once

#include "rows.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Rows of a block that are read by one task at most.
constexpr int64_t kPartRows = 256;

// Whole blocks over so many columns are a stripe, so that each row is read in a long run; a block wider than
// kChunk is one by itself.
constexpr int64_t kSpan = 8 * kChunk;

// totals = the values of the rows combined, and with the totals so far but where these are the first rows.
template <bool kFirst, class Rule, int64_t kTogether, class E, class T>
[[gnu::noinline]] void combine_rows(const Rule rule, const Rows<kTogether, E> rows, int64_t n,
                                    T* __restrict totals) {
  for_pieces(rule, rows, n, [=](int64_t from, int64_t some) {
#pragma GCC ivdep
    for (int64_t i = from; i < from + some; ++i) {
      const T total = rule.total(rows, i);
      totals[i] = kFirst ? total : combine(Rule::reduce, totals[i], total);
    }
  });
}
template <class Rule, int64_t kTogether, class E, class T>
void combine_rows(bool first, const Rule& rule, const Rows<kTogether, E>& rows, int64_t n, T* totals) {
  first ? combine_rows<true>(rule, rows, n, totals) : combine_rows<false>(rule, rows, n, totals);
}

// f(i, sums of runs from i on, constant of how many) for n runs of kRun columns, 2 or 4.
template <int64_t kRun, class Rule, int64_t kTogether, class E, class F>
void for_each_run(const Rule rule, const Rows<kTogether, E>& rows, int64_t n, const F f) {
  constexpr int64_t kStep = kEntries<float>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const auto vector = [&](int64_t j) __attribute__((always_inline)) {
      const int64_t column = kRun * i + j * kStep;
      rule.ask_ahead(rows, column, kStep);
      return rule.template totals<float>(rows, column);
    };
    float sums[kStep];
    store_vector(sums_of_runs<kRun>(vector), sums);
    f(i, sums, Count<kStep>{});
  }
  for (; i < n; ++i) {
    asm volatile("");  // else these few would be a second loop over vectors
    float sum = rule.total(rows, kRun * i) + rule.total(rows, kRun * i + 1);
    if (kRun == 4) sum += rule.total(rows, kRun * i + 2) + rule.total(rows, kRun * i + 3);
    f(i, &sum, Count<1>{});
  }
}

template <class Rule, int64_t kTogether, class E>
void sum_fours(const Rule rule, const Rows<kTogether, E>& rows, int64_t n, float* __restrict sums) {
  for_each_run<4>(rule, rows, n, [=](int64_t i, const float* some, auto count) {
    memcpy(sums + i, some, decltype(count)::value * sizeof(float));
  });
}

// Each `run` neighbouring totals become one; the usual lengths are loops that vectorise.
template <Reduce kReduce, class T>
void combine_runs(int64_t run, const T* __restrict totals, int64_t runs, T* __restrict combined) {
  if (run == 4) {
    if constexpr (IsSame<T, float>::value && kReduce == Reduce::sum) {
      const Rows<1, Element<own_dtype<T>()>> row{{totals, 0, 0}, {}};
      return sum_fours(RowRule<EntryRule<Metric::stored, false, T>, kReduce>{}, row, runs, combined);
    }
    for (int64_t i = 0; i < runs; ++i) {
      combined[i] = combine(kReduce, combine(kReduce, totals[4 * i], totals[4 * i + 1]),
                            combine(kReduce, totals[4 * i + 2], totals[4 * i + 3]));
    }
    return;
  }
  if (run == 2) {
    for (int64_t i = 0; i < runs; ++i) combined[i] = combine(kReduce, totals[2 * i], totals[2 * i + 1]);
    return;
  }
  if (run == 3) {
    for (int64_t i = 0; i < runs; ++i) {
      const T pair = combine(kReduce, totals[3 * i], totals[3 * i + 1]);
      combined[i] = combine(kReduce, pair, totals[3 * i + 2]);
    }
    return;
  }
  for (int64_t i = 0; i < runs; ++i) {
    T total = totals[i * run];
    for (int64_t j = 1; j < run; ++j) total = combine(kReduce, total, totals[i * run + j]);
    combined[i] = total;
  }
}

// The column totals of neighbouring blocks are combined within each block: four at a time, two, three, then
// what is left. Uses both arrays and returns the one with the result.
template <class T>
T* combine_columns(Reduce reduce, T* totals, int64_t blocks, int64_t width, T* spare) {
  while (width > 1) {
    const int64_t run = width % 4 == 0 ? 4 : width % 2 == 0 ? 2 : width % 3 == 0 ? 3 : width;
    width /= run;
    reduce == Reduce::max ? combine_runs<Reduce::max>(run, totals, blocks * width, spare)
                          : combine_runs<Reduce::sum>(run, totals, blocks * width, spare);
    T* const combined = spare;
    spare = totals;
    totals = combined;
  }
  return totals;
}

// Blocks so wide are combined along their columns as they are read, each by itself.
bool is_wide(const Block& block) {
  return block.m >= kChunk / 2;
}

// The columns of a row go in turn to so many totals, whatever the instruction set: sums do not depend on it.
constexpr int64_t kLanes = 32;

// The values of whole groups of kLanes columns summed, and added to the totals; returns how many columns.
template <class Rule, class E, class T>
int64_t add_to_lanes(const Rule& rule, const Rows<1, E>& row, int64_t from, int64_t n, T* lanes) {
  constexpr int64_t kStep = kEntries<T>, kVectors = kLanes / kStep;
  Vector<T> sums[kVectors]{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) sums[v] += rule.template totals<T>(row, from + i + v * kStep);
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    store_vector<T>(load_vector(lanes + v * kStep) + sums[v], lanes + v * kStep);
  }
  return i;
}

// The values of a row combined with its totals. kChunk of them are summed first, so that long sums are sums
// of short ones.
template <class Rule, class E, class T>
void combine_lanes(const Rule rule, const Rows<1, E>& row, int64_t n, T* __restrict lanes) {
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t some = min64(kChunk, n - done);
    int64_t i = Rule::reduce == Reduce::max ? 0 : add_to_lanes(rule, row, done, some, lanes);
    for (; i < some; i += kLanes) {
      const int64_t few = min64(kLanes, some - i);
      for (int64_t j = 0; j < few; ++j) {
        lanes[j] = combine(Rule::reduce, lanes[j], rule.value(row, 0, done + i + j));
      }
    }
  }
}

// The total of a wide block over `rows` of its rows.
template <class T>
T wide_total(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t rows, int64_t block) {
  T lanes[kLanes], spare[kLanes];
  for (T& lane : lanes) lane = reduce_identity<T>(rule.reduce);
  for (int64_t r = 0; r < rows; ++r) {
    read_rows<1, true, T>(t, rule, row + r, block * t.block.m, t.block.m,
                          [&](auto values, const auto& run, int64_t, int64_t some) {
                            combine_lanes(values, run, some, lanes);
                          });
  }
  return *combine_columns(rule.reduce, lanes, 1, kLanes, spare);
}

// The columns [col, col + n) of kTogether rows, n at most kSpan, combined with their totals.
template <int64_t kTogether, class T>
void column_totals(const BlockTensor& t, const UpdateRule& rule, bool first, int64_t row, int64_t col,
                   int64_t n, T* totals) {
  read_rows<kTogether, false, T>(t, rule, row, col, n,
                                 [&](auto values, const auto& rows, int64_t done, int64_t some) {
                                   combine_rows(first, values, rows, some, totals + done);
                                 });
}

// f(constant of the rows of a block) where its columns are summed in vectors as they are read; false
// elsewhere. Several rows are only where they lie as float, since what goes through buffers is best combined
// row by row.
template <class T, class F>
bool visit_few_rows(const BlockTensor& t, const UpdateRule& rule, const F& f) {
  if constexpr (IsSame<T, float>::value) {
    if (rule.reduce == Reduce::max) return false;
    if (t.block.n == 1) return f(Count<1>{}), true;
    const bool are_floats = (!reads_weight(rule.metric) || t.weight_dtype == Dtype::f32) &&
                            (!reads_grad(rule.metric) || t.grad_dtype == Dtype::f32);
    if (!are_floats || !lies_in_rows(t, rule)) return false;
    if (t.block.n == 2) return f(Count<2>{}), true;
    if (t.block.n == 4) return f(Count<4>{}), true;
  }
  return false;
}

// f(rule of a sum, Rows, done, some) as from read_rows.
template <int64_t kTogether, bool kInVectors, class T, class F>
void read_summed(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t col, int64_t n,
                 const F& f) {
  const auto summed = [&](auto values, const auto& rows, int64_t done, int64_t some) {
    if constexpr (decltype(values)::reduce == Reduce::sum) f(values, rows, done, some);
  };
  read_rows<kTogether, kInVectors, T>(t, rule, row, col, n, summed);
}

// Columns [col, col + n) of the rows of blocks summed in fours; false where they are not.
template <class T>
bool sum_few_rows(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t col, int64_t n,
                  T* sums) {
  const auto sum = [&](auto together) {
    read_summed<decltype(together)::value, true, float>(
        t, rule, row, col, n, [&](auto values, const auto& rows, int64_t done, int64_t some) {
          sum_fours(values, rows, some / 4, sums + done / 4);
        });
  };
  return t.block.m % 4 == 0 && visit_few_rows<T>(t, rule, sum);
}

// The totals of neighbouring blocks over `rows` of their rows, in one of the two arrays of kSpan entries.
template <class T>
T* block_totals(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t rows, int64_t first,
                int64_t blocks, T* one, T* other) {
  if (is_wide(t.block)) {
    for (int64_t b = 0; b < blocks; ++b) one[b] = wide_total<T>(t, rule, row, rows, first + b);
    return one;
  }
  const int64_t col = first * t.block.m, n = blocks * t.block.m;
  if (sum_few_rows(t, rule, row, col, n, one)) {
    return combine_columns(rule.reduce, one, blocks, t.block.m / 4, other);
  }
  for (int64_t r = 0; r < rows;) {
    const int64_t together = rows - r >= kRows ? kRows : 1;
    together == 1 ? column_totals<1>(t, rule, r == 0, row + r, col, n, one)
                  : column_totals<kRows>(t, rule, r == 0, row + r, col, n, one);
    r += together;
  }
  return combine_columns(rule.reduce, one, blocks, t.block.m, other);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
