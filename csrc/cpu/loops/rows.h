// Rows of a matrix read side by side as they lie, and the values of their columns combined.
#pragma once

#include "entry.h"
#include "vector.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// So many rows of a block are read side by side: a total is loaded and stored once for all of them.
constexpr int64_t kRows = 4;

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

// Rows of a matrix from one column on: entries, how far below each other rows lie, and how much further on
// memory is asked for, 0 where it is not.
template <class X>
struct Run {
  const X* entries;
  int64_t pitch;
  int64_t ahead;

  template <int64_t kTogether>
  PRUNEOPS_HD void ask_ahead(int64_t i, int64_t n) const {
    if (ahead == 0) return;
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTogether; ++r) ask_for_lines(entries + r * pitch + i + ahead, n);
  }
};

// What the metric reads of kTogether rows, stored as E; null where it reads nothing.
template <int64_t kTogether, class E>
struct Rows {
  Run<typename E::type> w;
  Run<typename E::type> g;

  // Those so many rows below.
  PRUNEOPS_HD void move(int64_t n) {
    w.entries += n * w.pitch;
    g.entries += n * g.pitch;
  }
  template <int64_t kSome>
  Rows<kSome, E> first() const {
    return {w, g};
  }
};

// Whether what is read lies side by side, and its scale has an inverse.
bool lies_in_rows(const BlockTensor& t, const UpdateRule& rule) {
  return t.matrix.inner == t.matrix.cols && exact_inverse<float>(rule.grad_scale) != 0 &&
         (!reads_weight(rule.metric) || t.weight_strides.inner == 1) &&
         (!reads_grad(rule.metric) || t.grad_strides.inner == 1);
}

// Rows as they lie. Asked for are those that are read next, if they are far enough to arrive in time and near
// enough to be still there then.
template <int64_t kTogether, class E>
Run<typename E::type> run_in_place(const void* data, const Matrix& matrix, const Strides& strides,
                                   int64_t row, int64_t col) {
  constexpr int64_t kSize = sizeof(typename E::type), kLeast = (1 << 13) / kSize, kMost = (1 << 17) / kSize;
  const int64_t next = kTogether * strides.row;
  return {entries_of<E>(data, matrix.offset(strides, row, col)), strides.row,
          next > kLeast && next <= kMost ? next : kLeast};
}
template <int64_t kTogether, class E>
Rows<kTogether, E> rows_in_place(const BlockTensor& t, const UpdateRule& rule, int64_t row, int64_t col) {
  Rows<kTogether, E> rows{};
  if (reads_weight(rule.metric)) {
    rows.w = run_in_place<kTogether, E>(t.weight, t.matrix, t.weight_strides, row, col);
  }
  if (reads_grad(rule.metric)) {
    rows.g = run_in_place<kTogether, E>(t.grad, t.matrix, t.grad_strides, row, col);
  }
  return rows;
}

// Rows as T, in place or in `buffer`.
template <int64_t kTogether, class T>
Run<T> load_run(const void* data, Dtype dtype, const Matrix& matrix, const Strides& strides, int64_t row,
                int64_t col, int64_t n, T (*buffer)[kChunk]) {
  const T* first = load_row(data, dtype, matrix, strides, row, col, n, buffer[0]);
  for (int64_t r = 1; r < kTogether; ++r) {
    load_row(data, dtype, matrix, strides, row + r, col, n, buffer[r]);
  }
  return {first, first == buffer[0] ? kChunk : strides.row, 0};
}
template <int64_t kTogether, class T>
Rows<kTogether, Element<own_dtype<T>()>> load_rows(const BlockTensor& t, const UpdateRule& rule, int64_t row,
                                                   int64_t col, int64_t n, T (*weights)[kChunk],
                                                   T (*grads)[kChunk]) {
  Rows<kTogether, Element<own_dtype<T>()>> rows{};
  if (reads_weight(rule.metric)) {
    rows.w = load_run<kTogether>(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row, col, n, weights);
  }
  if (!reads_grad(rule.metric)) return rows;
  rows.g = load_run<kTogether>(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row, col, n, grads);
  if (rule.grad_scale == nullptr) return rows;
  for (int64_t r = 0; r < kTogether; ++r) {
    unscale_chunk(rows.g.entries + r * rows.g.pitch, rule.grad_scale, n, grads[r]);
  }
  rows.g = {grads[0], kChunk, 0};
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
    return entry.template value<E>(rows.w.entries + r * rows.w.pitch, rows.g.entries + r * rows.g.pitch, i);
  }

  // Asks for what lies ahead of the columns [i, i + n). A processor sees one run of memory coming by itself,
  // and several within a page or two not.
  template <int64_t kTogether, class E>
  PRUNEOPS_HD void ask_ahead(const Rows<kTogether, E>& rows, int64_t i, int64_t n) const {
    if (kTogether == 1) return;
    if (reads_weight(Entry::metric)) rows.w.template ask_ahead<kTogether>(i, n);
    if (reads_grad(Entry::metric)) rows.g.template ask_ahead<kTogether>(i, n);
  }

  // The value of a column over all rows.
  template <int64_t kTogether, class E>
  PRUNEOPS_HD auto total(const Rows<kTogether, E>& rows, int64_t i) const {
    auto total = value(rows, 0, i);
#pragma GCC unroll 4
    for (int64_t r = 1; r < kTogether; ++r) total = combine(kReduce, total, value(rows, r, i));
    return total;
  }

  // The same for neighbouring columns. Unrolled, the loop would be taken for single entries.
  template <class T, int64_t kTogether, class E>
  PRUNEOPS_HD Vector<T> totals(const Rows<kTogether, E>& rows, int64_t i) const {
    T totals[kEntries<T>];
#pragma GCC unroll 1
    for (int64_t j = 0; j < kEntries<T>; ++j) totals[j] = total(rows, i + j);
    return load_vector(totals);
  }
};

template <Reduce kReduce, class T, class F>
void visit_rule_of(const UpdateRule& rule, const F& f) {
  const bool drops = rule.skip_nonfinite && rule.metric != Metric::product;
  visit_entry_rule<T>(rule, drops, [&](auto entry) { f(RowRule<decltype(entry), kReduce>{entry}); });
}
template <class T, class F>
void visit_row_rule(const UpdateRule& rule, const F& f) {
  rule.reduce == Reduce::max ? visit_rule_of<Reduce::max, T>(rule, f)
                             : visit_rule_of<Reduce::sum, T>(rule, f);
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
  const auto run_as_they_lie = [&](auto element) {
    using E = decltype(element);
    if constexpr (!kInVectors || IsSame<typename E::type, T>::value) {
      in_place = true;
      run(rule, rows_in_place<kTogether, E>(t, rule, row, col), 0, n);
    }
  };
  if (lies_in_rows(t, rule)) visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, run_as_they_lie);
  if (in_place) return;
  T weights[kTogether][kChunk], grads[kTogether][kChunk];
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t some = min64(kChunk, n - done);
    run(unscaled(rule), load_rows<kTogether, T>(t, rule, row, col + done, some, weights, grads), done, some);
  }
}

// f(i, n) for pieces [i, i + n) of n columns, before which what lies ahead of them is asked for.
template <class Rule, int64_t kTogether, class E, class F>
PRUNEOPS_HD void for_pieces(const Rule& rule, const Rows<kTogether, E>& rows, int64_t n, const F& f) {
  if (kTogether == 1) return f(int64_t(0), n);
  constexpr int64_t kPiece = 16;
  int64_t i = 0;
  for (; i + kPiece <= n; i += kPiece) {
    rule.ask_ahead(rows, i, kPiece);
    f(i, kPiece);
  }
  for (; i < n; ++i) {
    asm volatile("");  // else these few would be a second loop over vectors
    f(i, 1);
  }
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
