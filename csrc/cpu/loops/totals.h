// The values of the entries of blocks, combined: over rows for each column, then along the columns.
#pragma once

#include "entry.h"
#include "vector.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// So many rows of a block are read side by side: a total is loaded and stored once for all of them. Short
// rows are read one after the other, as they lie: side by side they would be several runs in a page or two of
// memory, of which the processor sees none coming.
constexpr int64_t kRows = 4;

// Rows of a block that are read by one task at most.
constexpr int64_t kPartRows = 256;

bool reads_side_by_side(const BlockTensor& t) {
  return t.block.n >= kRows && t.matrix.cols >= 2 * kChunk;
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

// Whole blocks over so many columns are a stripe, so that each row is read in a long run; a block wider than
// kChunk is one by itself.
constexpr int64_t kSpan = 8 * kChunk;

// From the totals of a stripe to those of another that is read beside it: by no power of two, lest both take
// the same places of a cache.
constexpr int64_t kTotals = kSpan + 64;

// What the metric reads of kTogether rows from one column on, stored as E; null where it reads nothing.
template <int64_t kTogether, class E>
struct Rows {
  const typename E::type* w[kTogether];
  const typename E::type* g[kTogether];

  // Those that lie so many entries further on.
  PRUNEOPS_HD void move(int64_t in_w, int64_t in_g) {
    for (int64_t r = 0; r < kTogether; ++r) {
      w[r] = w[r] == nullptr ? nullptr : w[r] + in_w;
      g[r] = g[r] == nullptr ? nullptr : g[r] + in_g;
    }
  }
};

// Whether what is read lies side by side, and its scale has an inverse.
bool lies_in_rows(const BlockTensor& t, const UpdateRule& rule) {
  return t.matrix.inner == t.matrix.cols && exact_inverse<float>(rule.grad_scale) != 0 &&
         (!reads_weight(rule.metric) || t.weight_strides.inner == 1) &&
         (!reads_grad(rule.metric) || t.grad_strides.inner == 1);
}

template <int64_t kTogether, class E>
Rows<kTogether, E> rows_in_place(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t apart,
                                 int64_t col) {
  Rows<kTogether, E> rows{};
  for (int64_t r = 0; r < kTogether; ++r) {
    const int64_t at = row + r * apart;
    if (reads_weight(rule.metric)) {
      rows.w[r] = entries_of<E>(t.weight, t.matrix.offset(t.weight_strides, at, col));
    }
    if (reads_grad(rule.metric)) {
      rows.g[r] = entries_of<E>(t.grad, t.matrix.offset(t.grad_strides, at, col));
    }
  }
  return rows;
}

template <int64_t kCount>
struct Count {
  static constexpr int64_t value = kCount;
};

// The values of rows, and how they are combined: what is not finite is dropped here, but in a signed sum,
// which is dropped whole.
template <class Entry, Reduce kReduce>
struct RowRule {
  static constexpr Reduce reduce = kReduce;
  Entry entry;

  template <int64_t kTogether, class E>
  PRUNEOPS_HD auto value(const Rows<kTogether, E>& rows, int64_t r, int64_t i) const {
    return entry.template value<E>(rows.w[r], rows.g[r], i);
  }

  // The value of a column over so many rows, from row `first` on.
  template <int64_t kCount, int64_t kTogether, class E>
  PRUNEOPS_HD auto total(const Rows<kTogether, E>& rows, int64_t first, int64_t i) const {
    auto total = value(rows, first, i);
#pragma GCC unroll 4
    for (int64_t r = 1; r < kCount; ++r) total = combine(kReduce, total, value(rows, first + r, i));
    return total;
  }

  // The values of neighbouring columns. Unrolled, the loop would be taken for single entries.
  template <class T, class E>
  PRUNEOPS_HD Vector<T> values(const Rows<1, E>& row, int64_t i) const {
    T values[kEntries<T>];
#pragma GCC unroll 1
    for (int64_t j = 0; j < kEntries<T>; ++j) values[j] = value(row, 0, i + j);
    return load_vector(values);
  }
};

template <class T, class F>
void visit_row_rule(const UpdateRule& rule, const F& f) {
  const bool drops = rule.skip_nonfinite && rule.metric != Metric::product;
  visit_entry_rule<T>(rule, drops, [&](auto entry) {
    using Entry = decltype(entry);
    rule.reduce == Reduce::max ? f(RowRule<Entry, Reduce::max>{entry})
                               : f(RowRule<Entry, Reduce::sum>{entry});
  });
}

// f(RowRule, Rows, done, some) for runs [col + done, col + done + some) of the columns [col, col + n) of
// kTogether rows. All are one run where they are read in place. Half types are, and are converted as they are
// combined, since several rows of weights and gradients that are converted first fill the first-level cache;
// but not those that are combined in vectors, kInVectors, which would be half as wide.
template <int64_t kTogether, bool kInVectors, class T, class F>
void read_rows(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t col, int64_t n,
               const F& f) {
  const auto run = [&](const UpdateRule& of, const auto& rows, int64_t done, int64_t some) {
    visit_row_rule<T>(of, [&](auto values) { f(values, rows, done, some); });
  };
  bool in_place = false;
  const auto run_in_place = [&](auto element) {
    using E = decltype(element);
    if constexpr (!kInVectors || IsSame<typename E::type, T>::value) {
      in_place = true;
      run(rule, rows_in_place<kTogether, E>(t, rule, row, 1, col), 0, n);
    }
  };
  if (lies_in_rows(t, rule)) visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, run_in_place);
  if (in_place) return;
  T weights[kTogether][kChunk], grads[kTogether][kChunk];
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t some = min64(kChunk, n - done), from = col + done;
    Rows<kTogether, Element<own_dtype<T>()>> rows{};
    for (int64_t r = 0; r < kTogether; ++r) {
      if (reads_weight(rule.metric)) {
        rows.w[r] =
            load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row + r, from, some, weights[r]);
      }
      if (reads_grad(rule.metric)) {
        const T* g = load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row + r, from, some, grads[r]);
        rows.g[r] = unscale_chunk(g, rule.grad_scale, some, grads[r]);
      }
    }
    run(unscaled(rule), rows, done, some);
  }
}

// totals = the values of the rows combined, and with the totals so far but where these are the first rows:
// for each of kPlaces places as many rows.
template <bool kFirst, int64_t kPlaces, class Rule, int64_t kAll, class E, class T>
void combine_rows(const Rule rule, const Rows<kAll, E>& rows, int64_t n, T* __restrict totals) {
  constexpr int64_t kTogether = kAll / kPlaces;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 2
    for (int64_t p = 0; p < kPlaces; ++p) {
      T& own = totals[p * kTotals + i];
      const T total = rule.template total<kTogether>(rows, p * kTogether, i);
      own = kFirst ? total : combine(Rule::reduce, own, total);
    }
  }
}

// f(i, totals of blocks from i on, constant of how many) for n blocks of four columns of a row.
template <class T, class Rule, class E, class F>
void for_each_fours(const Rule rule, const Rows<1, E>& row, int64_t n, const F f) {
  int64_t i = 0;
#if defined(PRUNEOPS_SHUFFLES)
  if constexpr (Rule::reduce == Reduce::sum && IsSame<T, float>::value) {
    constexpr int64_t kStep = kEntries<T>;
    const auto values = [&](int64_t at) { return rule.template values<T>(row, 4 * i + at * kStep); };
    for (; i + kStep <= n; i += kStep) {
      T totals[kStep];
      store_vector(sums_of_fours(values(0), values(1), values(2), values(3)), totals);
      f(i, totals, Count<kStep>{});
    }
  }
#endif
  const auto value = [&](int64_t at) { return rule.value(row, 0, 4 * i + at); };
  for (; i < n; ++i) {
    const T total = combine(Rule::reduce, combine(Rule::reduce, value(0), value(1)),
                            combine(Rule::reduce, value(2), value(3)));
    f(i, &total, Count<1>{});
  }
}

template <class Rule, class E, class T>
void combine_fours(const Rule rule, const Rows<1, E>& row, int64_t n, T* __restrict totals) {
  for_each_fours<T>(rule, row, n, [=](int64_t i, const T* some, auto count) {
    memcpy(totals + i, some, decltype(count)::value * sizeof(T));
  });
}

// Each `run` neighbouring totals become one; the usual lengths are loops that vectorise.
template <Reduce kReduce, class T>
void combine_runs(int64_t run, const T* __restrict totals, int64_t runs, T* __restrict combined) {
  if (run == 4) {
    const Rows<1, Element<own_dtype<T>()>> row{{totals}, {nullptr}};
    return combine_fours(RowRule<EntryRule<Metric::stored, false, T>, kReduce>{}, row, runs, combined);
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
    for (int64_t v = 0; v < kVectors; ++v) sums[v] += rule.template values<T>(row, from + i + v * kStep);
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
                                   first ? combine_rows<true, 1>(values, rows, some, totals + done)
                                         : combine_rows<false, 1>(values, rows, some, totals + done);
                                 });
}

// Blocks of one row whose columns are combined in fours as they are read.
bool is_of_fours(const Block& block) {
  return block.n == 1 && block.m % 4 == 0;
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
  if (is_of_fours(t.block)) {
    read_rows<1, true, T>(t, rule, row, col, n,
                          [&](auto values, const auto& run, int64_t done, int64_t some) {
                            combine_fours(values, run, some / 4, one + done / 4);
                          });
    return combine_columns(rule.reduce, one, blocks, t.block.m / 4, other);
  }
  for (int64_t r = 0; r < rows;) {
    const bool together = rows - r >= kRows && reads_side_by_side(t);
    together ? column_totals<kRows>(t, rule, r == 0, row + r, col, n, one)
             : column_totals<1>(t, rule, r == 0, row + r, col, n, one);
    r += together ? kRows : 1;
  }
  return combine_columns(rule.reduce, one, blocks, t.block.m, other);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
