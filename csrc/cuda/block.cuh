// Block scores straight from weights and gradients.
//
// A block is cut into parts, so that few large ones still occupy the device; the totals of parts meet in
// scratch memory, in a fixed order. The 8 warps of a thread block share the rows of a part, or of the parts
// of several rows of blocks where these have fewer than 8; each lane adds up kVector neighbouring columns
// over its rows. The sums of lanes and warps meet in shared memory, again in a fixed order.
#pragma once

#include "block_scan.cuh"
#include "update.cuh"

namespace pruneops::cuda {

constexpr int64_t kSpan = kWarp * kVector;  // columns that a warp covers at a time
static_assert(kSpan == kThreads, "a thread for each column");

constexpr int64_t kPartRows = 64;          // of a part at most,
constexpr int64_t kPartEntries = 1 << 15;  // so that its columns are as many as a tile should read

// How a tensor is cut: its blocks into parts, and all parts into tiles of neighbours. Found on the host, as
// its divisions would take a thread longer than the entries that it reads.
struct BlockCut {
  int32_t part_rows;
  int32_t part_cols;
  int32_t parts_down;  // of a block
  int32_t parts_across;
  int32_t per_span;  // neighbouring blocks of a tile; one where a block is wider than the span
  int32_t warps;     // that share a row of parts: a power of two, so that they divide the block's warps
  int64_t tiles_across;

  explicit BlockCut(const BlockTensor& t)
      : part_rows(static_cast<int32_t>(min64(t.block.n, kPartRows))),
        part_cols(kSpan),
        per_span(1),
        warps(1) {
    while (warps < kWarps && warps * 2 <= part_rows) warps *= 2;
    if (t.block.m <= kSpan) {
      part_cols = static_cast<int32_t>(t.block.m);
      per_span = static_cast<int32_t>(kSpan / t.block.m);
    } else {
      const int64_t spans = kPartEntries / (part_rows * rows_of_tile() * kSpan);
      part_cols = static_cast<int32_t>(min64(t.block.m, (spans < 1 ? 1 : spans) * kSpan));
    }
    parts_down = static_cast<int32_t>(ceil_div(t.block.n, part_rows));
    parts_across = static_cast<int32_t>(ceil_div(t.block.m, part_cols));
    tiles_across = ceil_div(t.grid_cols(), per_span) * parts_across;
  }
  BlockCut() = default;

  PRUNEOPS_HD int rows_of_tile() const { return kWarps / warps; }  // rows of parts
  PRUNEOPS_HD int64_t parts() const { return static_cast<int64_t>(parts_down) * parts_across; }
};

// A tensor of a list, with room for the totals of its parts; null where every block is one part.
struct BlockTask {
  BlockTensor tensor;
  BlockCut cut;
  void* totals;

  BlockTask() = default;
  explicit BlockTask(const BlockTensor& t) : tensor(t), cut(t), totals(nullptr) {}
  PRUNEOPS_HD int64_t part_count() const { return cut.parts(); }
};

inline int64_t block_tiles(const BlockTask& task) {
  const int64_t rows = task.tensor.grid_rows() * task.cut.parts_down;
  return ceil_div(rows, task.cut.rows_of_tile()) * task.cut.tiles_across;
}

// Bytes for the totals of a tensor's parts.
inline int64_t total_bytes(const BlockTensor& t) {
  const int64_t parts = BlockCut(t).parts();
  const int64_t bytes = t.wide() ? sizeof(double) : sizeof(float);
  return parts == 1 ? 0 : ceil_div(t.blocks() * parts * bytes, 16) * 16;
}

// Where the total of a part stands: beside those of the neighbouring blocks, which are written together.
PRUNEOPS_HD int64_t total_place(int64_t blocks, int64_t place, int64_t part) {
  return part * blocks + place;
}

// Entries [col, col + n) of a row as T.
template <class T>
__device__ __forceinline__ void load_row(const void* data, Dtype dtype, const Matrix& matrix,
                                         const Strides& strides, int64_t row, int64_t col, int n,
                                         T (&out)[kVector]) {
  if (strides.inner == 1 && matrix.inner == matrix.cols) {
    return load_entries(data, dtype, matrix.offset(strides, row, col), n, out);
  }
  ColumnWalk walk(matrix, strides, row, col);
  visit_dtype_of<T>(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* source = static_cast<const typename E::type*>(data);
#pragma unroll
    for (int i = 0; i < kVector; ++i, walk.next()) {
      out[i] = i < n ? E::template load<T>(source[walk.offset]) : T(0);
    }
  });
}

template <class T>
__device__ __forceinline__ void add_row(const BlockTensor& t, const UpdateRule& rule, T scale, int64_t row,
                                        int64_t col, int n, T (&sums)[kVector]) {
  T w[kVector] = {}, g[kVector] = {}, v[kVector];
  if (reads_weight(rule.metric))
    load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row, col, n, w);
  if (reads_grad(rule.metric)) load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row, col, n, g);
  updated_values(rule, scale, w, g, v);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < n) sums[i] = combine(rule.reduce, sums[i], v[i]);
  }
}

// One thread finishes a block from the sums of its warps and columns, and blends it into its score.
template <class T>
__device__ __forceinline__ void finish_score(const BlockTensor& t, const UpdateRule& rule, int64_t place,
                                             T total) {
  const T value = block_value(rule, total, t.block.entries());
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  visit_dtype_of<T>(t.score_dtype, [&](auto element) {
    using E = decltype(element);
    auto* score = static_cast<typename E::type*>(t.score) + place;
    const T old = rule.reads_score() ? E::template load<T>(*score) : T(0);
    *score = E::template store<T>(blend(rule.reads_score(), alpha, old, beta, value));
  });
}

// The total of what the lanes of a warp hold, in every lane: the same operands meet in the same order.
template <class T>
__device__ __forceinline__ T combine_lanes(Reduce reduce, T total) {
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    total = combine(reduce, total, __shfl_xor_sync(kAllLanes, total, lanes));
  }
  return total;
}

// Where a tile lies in a tensor.
struct BlockTile {
  int64_t first_row;    // of the rows of parts of all rows of blocks
  int64_t first_block;  // of a row of blocks
  int64_t begin;        // columns
  int64_t end;
  int rows;
  int blocks;
  int part_across;

  __device__ BlockTile(const BlockTensor& t, const BlockCut& cut, int64_t tile) {
    const int64_t down = divide(tile, cut.tiles_across), across = tile - down * cut.tiles_across;
    const int64_t span = cut.parts_across == 1 ? across : divide(across, cut.parts_across);
    part_across = static_cast<int>(across - span * cut.parts_across);
    first_row = down * cut.rows_of_tile();
    first_block = span * cut.per_span;
    rows = static_cast<int>(min64(cut.rows_of_tile(), t.grid_rows() * cut.parts_down - first_row));
    blocks = static_cast<int>(min64(cut.per_span, t.grid_cols() - first_block));
    begin = first_block * t.block.m + static_cast<int64_t>(part_across) * cut.part_cols;
    end = min64(begin + static_cast<int64_t>(blocks) * cut.part_cols, (first_block + blocks) * t.block.m);
  }
};

// A row of parts as a row of blocks and the part of it.
struct PartRow {
  int64_t block_row;
  int part;

  __device__ PartRow(const BlockCut& cut, int64_t row)
      : block_row(cut.parts_down == 1 ? row : divide(row, cut.parts_down)),
        part(static_cast<int>(row - block_row * cut.parts_down)) {}
};

// The columns of a tile summed by each warp over its rows: into shared[warp].
template <class T>
__device__ __forceinline__ void sum_rows(const BlockTensor& t, const UpdateRule& rule, T scale,
                                         const BlockCut& cut, const BlockTile& tile,
                                         T (&shared)[kWarps][kSpan]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  T sums[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[i] = reduce_identity<T>(rule.reduce);
  if (warp / cut.warps < tile.rows) {
    const PartRow row(cut, tile.first_row + warp / cut.warps);
    const int64_t first = static_cast<int64_t>(row.part) * cut.part_rows;
    const int64_t from = row.block_row * t.block.n + first, rows = min64(cut.part_rows, t.block.n - first);
    for (int64_t span = tile.begin; span < tile.end; span += kSpan) {
      const int64_t col = span + lane * kVector;
      if (col >= tile.end) continue;
      const int n = static_cast<int>(min64(kVector, tile.end - col));
      for (int64_t r = warp % cut.warps; r < rows; r += cut.warps) {
        add_row(t, rule, scale, from + r, col, n, sums);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) shared[warp][lane * kVector + i] = sums[i];
}

// The columns of each row of parts summed over its warps: into shared[the first of them].
template <class T>
__device__ __forceinline__ void combine_warps(Reduce reduce, const BlockCut& cut,
                                              T (&shared)[kWarps][kSpan]) {
  for (int first = 0; first < kWarps; first += cut.warps) {
    T total = shared[first][threadIdx.x];
    for (int w = 1; w < cut.warps; ++w) total = combine(reduce, total, shared[first + w][threadIdx.x]);
    shared[first][threadIdx.x] = total;
  }
}

// f(row of parts, block, total) for the parts of a tile, in one thread for each.
template <class T, class F>
__device__ __forceinline__ void for_each_total(const BlockTensor& t, Reduce reduce, const BlockCut& cut,
                                               const BlockTile& tile, const T (&shared)[kWarps][kSpan],
                                               const F& f) {
  const int width = static_cast<int>(min64(t.block.m, kSpan)), tasks = tile.rows * tile.blocks;
  if (width < kWarp) {
    for (int task = threadIdx.x; task < tasks; task += kThreads) {
      const int row = task / tile.blocks, block = task - row * tile.blocks;
      T total = reduce_identity<T>(reduce);
      for (int c = block * width; c < (block + 1) * width; ++c) {
        total = combine(reduce, total, shared[row * cut.warps][c]);
      }
      f(row, block, total);
    }
    return;
  }
  const int lane = threadIdx.x % kWarp;
  for (int task = threadIdx.x / kWarp; task < tasks; task += kWarps) {
    const int row = task / tile.blocks, block = task - row * tile.blocks;
    T total = reduce_identity<T>(reduce);
    for (int c = lane; c < width; c += kWarp) {
      total = combine(reduce, total, shared[row * cut.warps][block * width + c]);
    }
    total = combine_lanes(reduce, total);
    if (lane == 0) f(row, block, total);
  }
}

template <class T>
__device__ __forceinline__ void update_block_tile(const BlockTask& task, const UpdateRule& rule, T scale,
                                                  int64_t number, T (&shared)[kWarps][kSpan]) {
  const BlockTensor& t = task.tensor;
  const BlockCut& cut = task.cut;
  const BlockTile tile(t, cut, number);
  sum_rows(t, rule, scale, cut, tile, shared);
  __syncthreads();
  if (cut.warps > 1) {
    combine_warps(rule.reduce, cut, shared);
    __syncthreads();
  }
  for_each_total(t, rule.reduce, cut, tile, shared, [&](int row, int block, T total) {
    const PartRow at(cut, tile.first_row + row);
    const int64_t place = at.block_row * t.grid_cols() + tile.first_block + block;
    if (task.totals == nullptr) return finish_score(t, rule, place, total);
    const int64_t part = static_cast<int64_t>(at.part) * cut.parts_across + tile.part_across;
    static_cast<T*>(task.totals)[total_place(t.blocks(), place, part)] = total;
  });
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    update_block_scores_kernel(const __grid_constant__ Table<BlockTask> table, const UpdateRule rule) {
  __shared__ T shared[kWarps][kSpan];
  if (rule.overflowed()) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_tile(table, [&](const BlockTask& task, int64_t tile, int64_t) {
    update_block_tile(task, rule, scale, tile, shared);
  });
}

// Combines the totals of the parts of each block. The threads of a block are so many columns of blocks that
// lie side by side, and share the parts of these.
template <class T, class Task>
__global__ void __launch_bounds__(kThreads)
    combine_parts_kernel(const __grid_constant__ Table<Task> table, const UpdateRule rule) {
  __shared__ T shared[kThreads];
  if (rule.overflowed()) return;
  for (int64_t i = 0; i < table.count; ++i) {
    const Task& task = table.tensors[i];
    if (task.totals == nullptr) continue;
    const BlockTensor& t = task.tensor;
    const int64_t blocks = t.blocks();
    int width = kWarp;
    while (width / 2 >= blocks) width /= 2;
    const int across = threadIdx.x % width, down = threadIdx.x / width, rows = kThreads / width;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * width; first < blocks;
         first += static_cast<int64_t>(gridDim.x) * width) {
      const int64_t place = first + across;
      T total = reduce_identity<T>(rule.reduce);
      if (place < blocks) {
#pragma unroll 4
        for (int64_t part = down; part < task.part_count(); part += rows) {
          total = combine(rule.reduce, total,
                          static_cast<const T*>(task.totals)[total_place(blocks, place, part)]);
        }
      }
      shared[threadIdx.x] = total;
      __syncthreads();
      for (int half = rows / 2; half > 0; half /= 2) {
        if (down < half) {
          shared[threadIdx.x] = combine(rule.reduce, shared[threadIdx.x], shared[threadIdx.x + half * width]);
        }
        __syncthreads();
      }
      if (down == 0 && place < blocks) finish_score(t, rule, place, shared[threadIdx.x]);
    }
  }
}

}  // namespace pruneops::cuda
