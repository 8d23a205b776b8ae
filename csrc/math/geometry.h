// A weight as a matrix of rows x cols whatever its memory order: (R, C) of any strides, and conv weights
// (O, I, k) seen as (O, k * I), column c being input channel c % I at kernel position c / I.
#pragma once

#include "portable.h"

namespace pruneops {

struct Strides {
  int64_t row;
  int64_t inner;  // between neighbouring columns of one kernel position
  int64_t outer;  // between kernel positions
};

struct Matrix {
  int64_t rows;
  int64_t cols;
  int64_t inner;  // columns of one kernel position: I, or cols where there is no kernel

  PRUNEOPS_HD int64_t offset(const Strides& strides, int64_t row, int64_t col) const {
    const int64_t position = inner == cols ? 0 : divide(col, inner);
    return row * strides.row + position * strides.outer + (col - position * inner) * strides.inner;
  }
};

// The offsets of neighbouring columns of a row, with one division for the first.
struct ColumnWalk {
  int64_t inner;
  Strides strides;
  int64_t within;  // column within the kernel position
  int64_t offset;

  PRUNEOPS_HD ColumnWalk(const Matrix& matrix, const Strides& s, int64_t row, int64_t col)
      : inner(matrix.inner),
        strides(s),
        within(matrix.inner == matrix.cols ? col : col - divide(col, matrix.inner) * matrix.inner),
        offset(matrix.offset(s, row, col)) {}

  PRUNEOPS_HD void next() {
    offset += strides.inner;
    if (++within == inner) {
      within = 0;
      offset += strides.outer - inner * strides.inner;
    }
  }
};

struct Block {
  int64_t n;
  int64_t m;

  PRUNEOPS_HD int64_t entries() const { return n * m; }
};

}  // namespace pruneops
