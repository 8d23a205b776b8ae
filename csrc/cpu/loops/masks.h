// Applying, expanding and packing masks.
#pragma once

#include "../../math/tensors.h"
#include "bits.h"
#include "tiles.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

template <class Word>
void zero_words(void* data, int64_t begin, int64_t n, int64_t stride, const uint8_t* keep) {
  Word* words = static_cast<Word*>(data) + begin;
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) words[i] = keep[i] ? words[i] : Word(0);
  } else {
    for (int64_t i = 0; i < n; ++i) words[i * stride] = keep[i] ? words[i * stride] : Word(0);
  }
}

// Zeroes the entries [begin, begin + n), `stride` apart, whose byte in `keep` is 0: all bits, whatever the
// dtype.
void zero_pruned(void* data, int32_t element_size, int64_t begin, int64_t n, int64_t stride,
                 const uint8_t* keep) {
  switch (element_size) {
    case 1:
      return zero_words<uint8_t>(data, begin, n, stride, keep);
    case 2:
      return zero_words<uint16_t>(data, begin, n, stride, keep);
    case 4:
      return zero_words<uint32_t>(data, begin, n, stride, keep);
    case 8:
      return zero_words<uint64_t>(data, begin, n, stride, keep);
    default:
      for (int64_t i = 0; i < n; ++i) {
        if (!keep[i]) memset(static_cast<char*>(data) + (begin + i * stride) * element_size, 0, element_size);
      }
  }
}

void apply_masks(const MaskTensor* tensors, int64_t count, const Pool& pool) {
  FlatTiles<MaskTensor>(tensors, count)
      .for_all(pool, [&](const MaskTensor& t, int64_t begin, int64_t length, int64_t) {
        uint8_t bytes[kChunk];
        for (int64_t done = 0; done < length; done += kChunk) {
          const int64_t at = begin + done, n = min64(kChunk, length - done);
          const uint8_t* keep = t.mask + at;
          if (t.packed) {
            unpack_bits(t.mask, at, n, bytes);
            keep = bytes;
          }
          zero_pruned(t.data, t.element_size, at, n, 1, keep);
        }
      });
}

// The bytes of a row of blocks for the columns [col, col + n): the mask itself where a block is one column
// wide.
const uint8_t* expand_columns(const BlockMaskTensor& t, int64_t block_row, int64_t col, int64_t n,
                              uint8_t* bytes) {
  const auto* row = reinterpret_cast<const uint8_t*>(t.mask) + block_row * t.grid_cols();
  if (t.block.m == 1) return row + col;
  for (int64_t done = 0; done < n;) {
    const int64_t block = (col + done) / t.block.m;
    const int64_t run = min64(n - done, (block + 1) * t.block.m - (col + done));
    for (int64_t i = 0; i < run; ++i) bytes[done + i] = row[block];
    done += run;
  }
  return bytes;
}

// f(row, column, length, kept bytes) for runs of columns of one kernel position, over all rows.
template <class F>
void for_block_rows(const BlockMaskTensor& t, int64_t begin, int64_t end, const F& f) {
  uint8_t bytes[kChunk];
  const int64_t runs = ceil_div(t.matrix.cols, kChunk);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block_row = task / runs, col = task % runs * kChunk;
    const int64_t n = min64(kChunk, t.matrix.cols - col);
    const uint8_t* keep = expand_columns(t, block_row, col, n, bytes);
    for (int64_t r = block_row * t.block.n; r < (block_row + 1) * t.block.n; ++r) {
      for (int64_t done = 0; done < n;) {
        const int64_t run = min64(n - done, t.matrix.inner - (col + done) % t.matrix.inner);
        f(r, col + done, run, keep + done);
        done += run;
      }
    }
  }
}

int64_t block_row_tasks(const BlockMaskTensor& t) {
  return t.grid_rows() * ceil_div(t.matrix.cols, kChunk);
}

void apply_block_masks(const BlockMaskTensor* tensors, int64_t count, const Pool& pool) {
  TileTable table(tensors, count, block_row_tasks);
  parallel(pool, table.tiles(), [&](int64_t begin, int64_t end) {
    table.for_range(begin, end, [&](int64_t i, int64_t task, int64_t) {
      const BlockMaskTensor& t = tensors[i];
      for_block_rows(t, task, task + 1, [&](int64_t row, int64_t col, int64_t n, const uint8_t* keep) {
        zero_pruned(t.data, t.element_size, t.matrix.offset(t.strides, row, col), n, t.strides.inner, keep);
      });
    });
  });
}

void expand_block_mask(const BlockMaskTensor& t, const Pool& pool) {
  parallel(pool, block_row_tasks(t), [&](int64_t begin, int64_t end) {
    for_block_rows(t, begin, end, [&](int64_t row, int64_t col, int64_t n, const uint8_t* keep) {
      bool* target = static_cast<bool*>(t.data) + t.matrix.offset(t.strides, row, col);
      if (t.strides.inner == 1) {  // a loop of its own, which is one of vectors
        for (int64_t i = 0; i < n; ++i) target[i] = keep[i] != 0;
        return;
      }
      for (int64_t i = 0; i < n; ++i) target[i * t.strides.inner] = keep[i] != 0;
    });
  });
}

void pack_mask(const bool* mask, uint8_t* packed, int64_t numel, const Pool& pool) {
  parallel(pool, ceil_div(numel, kTile), [&](int64_t first, int64_t last) {
    const int64_t begin = first * kTile, end = min64(last * kTile, numel);
    pack_bits(reinterpret_cast<const uint8_t*>(mask) + begin, end - begin, packed + begin / 8);
  });
}

void unpack_mask(const uint8_t* packed, bool* mask, int64_t numel, const Pool& pool) {
  parallel(pool, ceil_div(numel, kTile), [&](int64_t first, int64_t last) {
    const int64_t begin = first * kTile;
    unpack_bits(packed, begin, min64(last * kTile, numel) - begin, reinterpret_cast<uint8_t*>(mask + begin));
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
