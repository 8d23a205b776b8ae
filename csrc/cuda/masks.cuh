// Applying, expanding and packing masks.
#pragma once

#include "table.cuh"
#include "vector.cuh"

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

__device__ __forceinline__ Vector<bool> unpack_byte(uint8_t byte) {
  Vector<bool> keep;
#pragma unroll
  for (int i = 0; i < kVector; ++i) keep.words[i] = (byte >> i) & 1;
  return keep;
}

__global__ void __launch_bounds__(kThreads)
    apply_masks_kernel(const __grid_constant__ Table<MaskTensor> table) {
  for_each_flat_tile(table, [&](const MaskTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) {
      const auto keep = t.packed ? unpack_byte(t.mask[at / kVector]) : load_mask(t.mask + at, n);
      zero_pruned(t.data, t.element_size, at, n, keep);
    });
  });
}

// Vectors of columns in a row of a block-masked matrix, and those that a thread block takes.
PRUNEOPS_HD int64_t row_vectors(const BlockMaskTensor& t) {
  return ceil_div(t.matrix.cols, kVector);
}
PRUNEOPS_HD int64_t block_mask_tiles(const BlockMaskTensor& t) {
  return ceil_div(t.matrix.rows * row_vectors(t), kThreads);
}

// f(row, column, entries, kept) for the vector of columns that this thread has of a tile.
template <class F>
__device__ __forceinline__ void for_block_vector(const BlockMaskTensor& t, int64_t tile, const F& f) {
  const int64_t task = tile * kThreads + threadIdx.x, vectors = row_vectors(t);
  const int64_t row = divide(task, vectors), col = (task - row * vectors) * kVector;
  if (row >= t.matrix.rows) return;
  const int n = static_cast<int>(min64(kVector, t.matrix.cols - col));
  const auto* kept = reinterpret_cast<const uint8_t*>(t.mask) + divide(row, t.block.n) * t.grid_cols();
  Vector<bool> keep;
  int64_t block = divide(col, t.block.m), left = (block + 1) * t.block.m - col;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    keep.words[i] = i < n && kept[block] != 0;
    if (--left == 0) left = t.block.m, ++block;
  }
  f(row, col, n, keep);
}

// Whether the columns of a row lie side by side in memory.
PRUNEOPS_HD bool has_flat_rows(const BlockMaskTensor& t) {
  return t.strides.inner == 1 && t.matrix.inner == t.matrix.cols;
}

__global__ void __launch_bounds__(kThreads)
    apply_block_masks_kernel(const __grid_constant__ Table<BlockMaskTensor> table) {
  for_each_tile(table, [](const BlockMaskTensor& t, int64_t tile, int64_t) {
    for_block_vector(t, tile, [&](int64_t row, int64_t col, int n, const auto& keep) {
      ColumnWalk walk(t.matrix, t.strides, row, col);
      if (has_flat_rows(t)) return zero_pruned(t.data, t.element_size, walk.offset, n, keep);
#pragma unroll
      for (int i = 0; i < kVector; ++i, walk.next()) {
        if (i < n && !keep.words[i]) zero_entry(t.data, t.element_size, walk.offset);
      }
    });
  });
}

__global__ void __launch_bounds__(kThreads) expand_block_mask_kernel(const BlockMaskTensor t) {
  for (int64_t tile = blockIdx.x; tile < block_mask_tiles(t); tile += gridDim.x) {
    for_block_vector(t, tile, [&](int64_t row, int64_t col, int n, const auto& keep) {
      bool* target = static_cast<bool*>(t.data);
      ColumnWalk walk(t.matrix, t.strides, row, col);
      if (has_flat_rows(t)) return store_words(target + walk.offset, n, keep);
#pragma unroll
      for (int i = 0; i < kVector; ++i, walk.next()) {
        if (i < n) target[walk.offset] = keep.words[i];
      }
    });
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_mask_kernel(const uint8_t* mask, uint8_t* packed, const int64_t numel) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t byte = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; byte * kVector < numel;
       byte += step) {
    const int n = static_cast<int>(min64(kVector, numel - byte * kVector));
    packed[byte] = pack_byte(load_mask(mask + byte * kVector, n), n);
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_mask_kernel(const uint8_t* packed, bool* mask, const int64_t numel) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t byte = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; byte * kVector < numel;
       byte += step) {
    const int n = static_cast<int>(min64(kVector, numel - byte * kVector));
    store_words(mask + byte * kVector, n, unpack_byte(packed[byte]));
  }
}

}  // namespace pruneops::cuda
