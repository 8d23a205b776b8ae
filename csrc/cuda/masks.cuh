// Applying, expanding and packing masks.
#pragma once

#include "scores.cuh"

namespace pruneops::cuda {

// Zeroes the words [at, at + n) that `keep` does not hold: all bits, whatever the dtype.
template <class Word>
__device__ __forceinline__ void zero_words(void* data, int64_t at, int n, const Vector<bool>& keep) {
  Word* words = static_cast<Word*>(data) + at;
  Vector<Word> v = load_words(words, n);
#pragma unroll
  for (int i = 0; i < kVector; ++i) v.words[i] = keep.words[i] ? v.words[i] : Word(0);
  store_words(words, n, v);
}

__device__ __forceinline__ void zero_entry(void* data, int32_t element_size, int64_t at) {
  char* bytes = static_cast<char*>(data) + at * element_size;
  for (int b = 0; b < element_size; ++b) bytes[b] = 0;
}

__device__ __forceinline__ void zero_pruned(void* data, int32_t element_size, int64_t at, int n,
                                            const Vector<bool>& keep) {
  switch (element_size) {
    case 1:
      return zero_words<uint8_t>(data, at, n, keep);
    case 2:
      return zero_words<uint16_t>(data, at, n, keep);
    case 4:
      return zero_words<uint32_t>(data, at, n, keep);
    case 8:
      return zero_words<unsigned long long>(data, at, n, keep);
    default:
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (i < n && !keep.words[i]) zero_entry(data, element_size, at + i);
      }
  }
}

// The bytes [0, n) of a mask: any but 0 keeps. They are not read as bool, whose other values are undefined.
__device__ __forceinline__ Vector<bool> load_mask(const uint8_t* mask, int n) {
  const auto bytes = load_words(mask, n);
  Vector<bool> keep;
#pragma unroll
  for (int i = 0; i < kVector; ++i) keep.words[i] = bytes.words[i] != 0;
  return keep;
}

// The same of the bits of a packed mask.
__device__ __forceinline__ Vector<bool> unpack_byte(uint8_t byte) {
  Vector<bool> keep;
#pragma unroll
  for (int i = 0; i < kVector; ++i) keep.words[i] = (byte >> i) & 1;
  return keep;
}

// kVector words of one or two bytes as they lie in memory, four bytes to a register.
template <class Word>
struct WordVector {
  static constexpr int kBytes = static_cast<int>(sizeof(Word));
  static constexpr uint32_t kAll = static_cast<Word>(~Word(0));
  Vector<uint32_t, kVector * kBytes / 4> raw;

  // Zeroes the words whose byte of the mask is 0.
  __device__ __forceinline__ void zero_pruned(const MaskWords& mask) {
#pragma unroll
    for (int w = 0; w < kVector * kBytes / 4; ++w) {
      uint32_t kept = 0;
#pragma unroll
      for (int b = 0; b < 4; b += kBytes) kept |= mask.byte((4 * w + b) / kBytes) != 0 ? kAll << (8 * b) : 0;
      raw.words[w] &= kept;
    }
  }
};

// A whole tile of small words, with as many vectors of a thread under way as fill up to 64 bytes.
template <class Word>
__device__ __forceinline__ void zero_tile(void* data, const uint8_t* mask, int64_t begin) {
  using Tile = Vectors<kTileVectors, true>;
  constexpr int kBytes = WordVector<Word>::kBytes;
  const Tile tile{begin, begin + kTile};
  auto* words = static_cast<uint32_t*>(data);
  WordVector<Word> v[Tile::kSize];
  MaskWords keep[Tile::kSize];
#pragma unroll
  for (int u = 0; u < Tile::kSize; ++u) {
    keep[u] = MaskWords::load(mask + tile.at(u));
    v[u].raw.load(words + tile.at(u) * kBytes / 4);
  }
#pragma unroll
  for (int u = 0; u < Tile::kSize; ++u) {
    v[u].zero_pruned(keep[u]);
    v[u].raw.store(words + tile.at(u) * kBytes / 4);
  }
}

// Whether it was one that is done so.
__device__ __forceinline__ bool zero_whole_tile(const MaskTensor& t, int64_t begin, int64_t end) {
  const bool whole = end - begin == kTile && is_aligned(t.mask, kVector) && is_aligned(t.data, 16);
  if (!whole || t.packed || t.element_size > 2) return false;
  t.element_size == 1 ? zero_tile<uint8_t>(t.data, t.mask, begin)
                      : zero_tile<uint16_t>(t.data, t.mask, begin);
  return true;
}

template <int64_t kMost>
__global__ void __launch_bounds__(kThreads)
    apply_masks_kernel(const __grid_constant__ Table<MaskTensor, kMost> table) {
  for_each_flat_tile(table, [&](const MaskTensor& t, int64_t begin, int64_t end, int64_t) {
    if (zero_whole_tile(t, begin, end)) return;
    for_each_vector(begin, end, [&](int64_t at, int n) {
      // Compared here, so that the mask is there before the words are asked for: with both under way at once
      // the memory gives a fifth less (H200).
      const auto keep = t.packed ? unpack_byte(t.mask[at / kVector]) : load_mask(t.mask + at, n);
      zero_pruned(t.data, t.element_size, at, n, keep);
    });
  });
}

// Neighbouring rows that a thread has of its columns, where it applies a mask and where it expands one: rows
// of one block share the mask, and all of them what is found out about the place.
constexpr int kMaskRows = 4, kExpandRows = 16;

// Vectors of columns in a row of a block-masked matrix, and the tiles of all that threads have.
PRUNEOPS_HD int64_t row_vectors(const BlockMaskTensor& t) {
  return ceil_div(t.matrix.cols, kVector);
}
template <int kRows = kMaskRows>
PRUNEOPS_HD int64_t block_mask_tiles(const BlockMaskTensor& t) {
  return ceil_div(ceil_div(t.matrix.rows, kRows) * row_vectors(t), kThreads);
}

// The mask of n columns, row by row; columns behind them are not kept.
class BlockMaskRows {
 public:
  __device__ __forceinline__ BlockMaskRows(const BlockMaskTensor& t, int64_t row, int64_t col, int n)
      : block_(t.block), cols_(t.grid_cols()), n_(n) {
    const int64_t down = divide(row, t.block.n), across = divide(col, t.block.m);
    kept_ = reinterpret_cast<const uint8_t*>(t.mask) + down * cols_ + across;
    rows_left_ = (down + 1) * t.block.n - row;
    cols_left_ = (across + 1) * t.block.m - col;
    read();
  }
  __device__ __forceinline__ const MaskWords& mask() const { return mask_; }
  __device__ __forceinline__ void next() {
    if (--rows_left_ > 0) return;
    rows_left_ = block_.n;
    kept_ += cols_;
    read();
  }

 private:
  const Block& block_;
  const uint8_t* kept_;  // of the first column
  int64_t cols_;
  int64_t rows_left_;  // of the present row of blocks,
  int64_t cols_left_;  // and of the block of the first column
  int n_;
  MaskWords mask_;

  __device__ __forceinline__ void read() {
    if (block_.m == 1) {
      mask_ = MaskWords::load(kept_, n_).ones();
      return;
    }
    if (n_ == kVector && cols_left_ >= kVector) {
      mask_ = MaskWords::all(*kept_ != 0);
      return;
    }
    const uint8_t* kept = kept_;
    int64_t left = cols_left_;
    bool present = *kept != 0;
    mask_ = mask_where([&](int i) {
      if (i > 0 && i < n_ && --left == 0) {
        left = block_.m;
        present = *++kept != 0;
      }
      return i < n_ && present;
    });
  }
};

// f(first row, rows, first column, columns) for what this thread has of a tile.
template <int kRows = kMaskRows, class F>
__device__ __forceinline__ void for_mask_rows(const BlockMaskTensor& t, int64_t tile, const F& f) {
  const int64_t task = tile * kThreads + threadIdx.x, vectors = row_vectors(t);
  const int64_t group = divide(task, vectors), row = group * kRows;
  const int64_t col = (task - group * vectors) * kVector;
  if (row >= t.matrix.rows) return;
  f(row, static_cast<int>(min64(kRows, t.matrix.rows - row)), col,
    static_cast<int>(min64(kVector, t.matrix.cols - col)));
}

// Whether the columns of a row lie side by side in memory.
PRUNEOPS_HD bool has_flat_rows(const BlockMaskTensor& t) {
  return t.strides.inner == 1 && t.matrix.inner == t.matrix.cols;
}

// Zeroes what is pruned of n columns: what is kept whole is left alone, and what is pruned whole is not read.
template <class Word>
__device__ __forceinline__ void zero_rows(const BlockMaskTensor& t, int64_t row, int rows, int64_t col,
                                          int n) {
  constexpr int kAtOnce = sizeof(Word) < 2 ? kMaskRows : 8 / sizeof(Word);
  BlockMaskRows block_rows(t, row, col, n);
  Word* words = static_cast<Word*>(t.data) + row * t.strides.row + col;
#pragma unroll 1
  for (int first = 0; first < rows; first += kAtOnce, words += kAtOnce * t.strides.row) {
    Vector<Word> v[kAtOnce];
    MaskWords masks[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u >= rows) continue;
      if (first + u > 0) block_rows.next();
      masks[u] = block_rows.mask();
      const int kept = masks[u].count();
      if (kept > 0 && kept < kVector) v[u] = load_words(words + u * t.strides.row, n);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + u >= rows || masks[u].count() == kVector) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) v[u].words[i] = masks[u].byte(i) ? v[u].words[i] : Word(0);
      store_words(words + u * t.strides.row, n, v[u]);
    }
  }
}

__device__ __forceinline__ void zero_scattered_rows(const BlockMaskTensor& t, int64_t row, int rows,
                                                    int64_t col, int n) {
  BlockMaskRows block_rows(t, row, col, n);
  for (int u = 0; u < rows; ++u) {
    if (u > 0) block_rows.next();
    ColumnWalk walk(t.matrix, t.strides, row + u, col);
#pragma unroll
    for (int i = 0; i < kVector; ++i, walk.next()) {
      if (i < n && !block_rows.mask().byte(i)) zero_entry(t.data, t.element_size, walk.offset);
    }
  }
}

// Words of any size whose rows are flat,
template <class Word>
__global__ void __launch_bounds__(kThreads, 3)
    apply_flat_block_masks_kernel(const __grid_constant__ Table<BlockMaskTensor> table) {
  for_each_tile(table, [](const BlockMaskTensor& t, int64_t tile, int64_t) {
    for_mask_rows(t, tile,
                  [&](int64_t row, int rows, int64_t col, int n) { zero_rows<Word>(t, row, rows, col, n); });
  });
}

// and all others.
__global__ void __launch_bounds__(kThreads)
    apply_block_masks_kernel(const __grid_constant__ Table<BlockMaskTensor> table) {
  for_each_tile(table, [](const BlockMaskTensor& t, int64_t tile, int64_t) {
    for_mask_rows(t, tile, [&](int64_t row, int rows, int64_t col, int n) {
      zero_scattered_rows(t, row, rows, col, n);
    });
  });
}

__device__ __forceinline__ void store_scattered_row(const BlockMaskTensor& t, int64_t row, int64_t col, int n,
                                                    const MaskWords& mask) {
  auto* target = static_cast<uint8_t*>(t.data);
  ColumnWalk walk(t.matrix, t.strides, row, col);
#pragma unroll
  for (int i = 0; i < kVector; ++i, walk.next()) {
    if (i < n) target[walk.offset] = mask.byte(i);
  }
}

__global__ void __launch_bounds__(kThreads) expand_block_mask_kernel(const BlockMaskTensor t) {
  const bool flat = has_flat_rows(t);
  for (int64_t tile = blockIdx.x; tile < block_mask_tiles<kExpandRows>(t); tile += gridDim.x) {
    for_mask_rows<kExpandRows>(t, tile, [&](int64_t row, int rows, int64_t col, int n) {
      BlockMaskRows block_rows(t, row, col, n);
      auto* target = static_cast<uint8_t*>(t.data) + row * t.strides.row + col;
#pragma unroll 1
      for (int u = 0; u < rows; ++u, target += t.strides.row) {
        if (u > 0) block_rows.next();
        if (flat) {
          block_rows.mask().store(target, n);
        } else {
          store_scattered_row(t, row + u, col, n, block_rows.mask());
        }
      }
    });
  }
}

// load(at, n) for all vectors that this thread has of a tile of a mask, and then store(at, n, what was
// loaded).
template <class Load, class Store>
__device__ __forceinline__ void for_each_mask_vector(int64_t numel, const Load& load, const Store& store) {
  for (int64_t begin = blockIdx.x * kTile; begin < numel; begin += gridDim.x * kTile) {
    const Vectors<kTileVectors> tile{begin, min64(begin + kTile, numel)};
    decltype(load(0, 0)) held[tile.kSize];
#pragma unroll
    for (int v = 0; v < tile.kSize; ++v) {
      if (tile.size(v) > 0) held[v] = load(tile.at(v), tile.size(v));
    }
#pragma unroll
    for (int v = 0; v < tile.kSize; ++v) {
      if (tile.size(v) > 0) store(tile.at(v), tile.size(v), held[v]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_mask_kernel(const uint8_t* mask, uint8_t* packed, const int64_t numel) {
  for_each_mask_vector(
      numel, [&](int64_t at, int n) { return MaskWords::load(mask + at, n); },
      [&](int64_t at, int n, const MaskWords& keep) {
        packed[at / kVector] = static_cast<uint8_t>(keep.ones().bits(n));
      });
}

__global__ void __launch_bounds__(kThreads)
    unpack_mask_kernel(const uint8_t* packed, uint8_t* mask, const int64_t numel) {
  for_each_mask_vector(
      numel, [&](int64_t at, int) { return packed[at / kVector]; },
      [&](int64_t at, int n, uint8_t bits) { MaskWords::of_bits(bits).store(mask + at, n); });
}

}  // namespace pruneops::cuda
