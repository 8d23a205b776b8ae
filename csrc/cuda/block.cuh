// Block scores straight from weights and gradients.
//
// A block is cut into parts, so that few large ones still occupy the device; the totals of parts meet in
// scratch memory, in a fixed order. The 8 warps of a thread block share the rows of a part, or of the parts
// of several rows of blocks where these have fewer than 8; each lane adds up kVector neighbouring columns
// over its rows. The sums of lanes and warps meet in shared memory, again in a fixed order; blocks of few
// rows that lie within the columns of a lane, such as 4x1 and 1x4, are finished there.
#pragma once

#include "block_scan.cuh"
#include "update.cuh"

namespace pruneops::cuda {

constexpr int64_t kSpan = kWarp * kVector;  // columns that a warp covers at a time
static_assert(kSpan == kThreads, "a thread for each column");

constexpr int64_t kPartRows = 128;                   // of a part at most,
constexpr int64_t kPartEntries = kPartRows * kSpan;  // so that its columns are as many as a tile should read
constexpr int32_t kWarpRows = 4;  // that a warp should have before another shares a part of a span,
constexpr int32_t kLaneRows = 8;  // and where it finishes blocks by itself

// How a tensor is cut: its blocks into parts, and all parts into tiles of neighbours. Found on the host, as
// its divisions would take a thread longer than the entries that it reads.
struct BlockCut {
  int32_t part_rows;
  int32_t part_cols;
  int32_t parts_down;  // of a block
  int32_t parts_across;
  int32_t per_span;   // neighbouring blocks of a tile; one where a block is wider than the span
  int32_t warps;      // that share a row of parts: a power of two, so that they divide the block's warps
  int32_t lane_rows;  // of blocks that are whole within the columns of a lane, for each warp; else 0
  int64_t tiles_across;

  explicit BlockCut(const BlockTensor& t)
      : part_rows(static_cast<int32_t>(min64(t.block.n, kPartRows))),
        part_cols(kSpan),
        per_span(1),
        warps(1),
        lane_rows(0) {
    const int32_t least = t.block.m <= kSpan ? kWarpRows : 1;
    while (warps < kWarps && warps * 2 * least <= part_rows) warps *= 2;
    if (warps == 1 && kVector % t.block.m == 0) lane_rows = kLaneRows / part_rows;
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

  // Rows of parts.
  PRUNEOPS_HD int rows_of_tile() const { return lane_rows > 0 ? kWarps * lane_rows : kWarps / warps; }
  PRUNEOPS_HD int64_t parts() const { return static_cast<int64_t>(parts_down) * parts_across; }
};

// A tensor of a list, with room for the totals of its parts, those of a block side by side; null where every
// block is one part.
struct BlockTask {
  BlockTensor tensor;
  BlockCut cut;
  void* totals;
};

inline int64_t block_tiles(const BlockTask& task) {
  const int64_t rows = task.tensor.grid_rows() * task.cut.parts_down;
  return ceil_div(rows, task.cut.rows_of_tile()) * task.cut.tiles_across;
}

// Bytes for the totals of a tensor's parts.
inline int64_t total_bytes(const BlockTensor& t) {
  const int64_t parts = BlockCut(t).parts();
  const int64_t bytes = t.wide() ? sizeof(double) : sizeof(float);
  return parts == 1 ? 0 : ceil_div(t.grid_rows() * t.grid_cols() * parts * bytes, 16) * 16;
}

// Rows to be added up by a lane: `count` from `row` on, `apart` from each other, at n columns from `col` on.
struct LaneRows {
  int64_t row;
  int64_t col;
  int count;
  int apart;
  int n;
};

// ---- rows whose vectors are whole, aligned and of one dtype

// Neighbouring columns of rows that lie `step` bytes apart.
template <class E>
struct RowStream {
  const char* next;
  int64_t step;

  __device__ __forceinline__ RowStream(const void* data, const Strides& strides, const LaneRows& rows)
      : next(static_cast<const char*>(data) + (rows.row * strides.row + rows.col) * kSize),
        step(rows.apart * strides.row * kSize) {}
  __device__ __forceinline__ void load(RawVector<E>& to) {
    to.load(next, 0);
    next += step;
  }

 private:
  static constexpr int64_t kSize = sizeof(typename E::type);
};

// What an update reads of a row.
template <class E>
struct StreamedRow {
  RawVector<E> weight;
  RawVector<E> grad;

  __device__ __forceinline__ void load(RowStream<E>& weights, RowStream<E>& grads) {
    weights.load(weight);
    grads.load(grad);
  }
  template <class T>
  __device__ __forceinline__ void add_to(T (&sums)[kVector], Metric metric) const {
    T w[kVector], g[kVector], norm[kVector] = {}, v[kVector];
    weight.convert(w);
    grad.convert(g);
    values_of(metric, w, g, norm, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] = combine(Reduce::sum, sums[i], v[i]);
  }
};

// Adds up values as they are.
template <class E>
struct StreamedRows {
  static constexpr int kBlocks = 2;  // that shall fit a multiprocessor

  // done() after each row. Two rows change places: while one is added, the other is on its way. What the
  // metric does not read is read like the other, from the nearest cache.
  template <class T, class F>
  static __device__ __forceinline__ void add(const BlockTensor& t, const LaneRows& rows,
                                             const UpdateRule& rule, T, T (&sums)[kVector], F& done) {
    const bool reads_w = reads_weight(rule.metric), reads_g = reads_grad(rule.metric);
    RowStream<E> weights(reads_w ? t.weight : t.grad, reads_w ? t.weight_strides : t.grad_strides, rows);
    RowStream<E> grads(reads_g ? t.grad : t.weight, reads_g ? t.grad_strides : t.weight_strides, rows);
    StreamedRow<E> one, other;
    if (rows.count <= 0) return;
    one.load(weights, grads);
    for (int left = rows.count;;) {
      if (left > 1) other.load(weights, grads);
      one.add_to(sums, rule.metric);
      done();
      if (--left == 0) return;
      if (left > 1) one.load(weights, grads);
      other.add_to(sums, rule.metric);
      done();
      if (--left == 0) return;
    }
  }
};

inline bool lies_in_vectors(const void* data, const Strides& strides, int64_t size) {
  return data == nullptr ||
         (reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.inner == 1 && strides.row * size % 16 == 0);
}

// Whether StreamedRows of a dtype may read a tensor.
inline bool can_stream(const BlockTensor& t, const BlockCut& cut, const UpdateRule& rule, Dtype dtype) {
  const bool drops = rule.skip_nonfinite && rule.metric != Metric::product;
  if (rule.grad_scale != nullptr || rule.reduce == Reduce::max || drops) return false;
  if (t.weight != nullptr && t.weight_dtype != dtype) return false;
  if (t.grad != nullptr && t.grad_dtype != dtype) return false;
  const int64_t size = dtype == Dtype::f32 ? 4 : 2,
                tile_cols = t.block.m <= kSpan ? cut.per_span * t.block.m : t.block.m;
  return t.matrix.inner == t.matrix.cols && t.matrix.cols % kVector == 0 && tile_cols % kVector == 0 &&
         lies_in_vectors(t.weight, t.weight_strides, size) && lies_in_vectors(t.grad, t.grad_strides, size);
}

// ---- rows of any kind

// Adds the values of n columns of a row.
template <class T>
__device__ __forceinline__ void add_values(const UpdateRule& rule, T scale, const T (&w)[kVector],
                                           T (&g)[kVector], int n, T (&sums)[kVector]) {
  if (rule.grad_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) g[i] = g[i] / scale;
  }
  T norm[kVector] = {}, v[kVector];
  values_of(rule.metric, w, g, norm, v);
  const bool drop = rule.skip_nonfinite && rule.metric != Metric::product;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < n) sums[i] = combine(rule.reduce, sums[i], drop ? finite_or_zero(v[i]) : v[i]);
  }
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

struct AnyRows {
  static constexpr int kBlocks = 1;

  template <class T, class F>
  static __device__ __forceinline__ void add(const BlockTensor& t, const LaneRows& rows,
                                             const UpdateRule& rule, T scale, T (&sums)[kVector], F& done) {
    for (int r = 0; r < rows.count; ++r) {
      const int64_t row = rows.row + static_cast<int64_t>(r) * rows.apart;
      T w[kVector] = {}, g[kVector] = {};
      if (reads_weight(rule.metric)) {
        load_row(t.weight, t.weight_dtype, t.matrix, t.weight_strides, row, rows.col, rows.n, w);
      }
      if (reads_grad(rule.metric)) {
        load_row(t.grad, t.grad_dtype, t.matrix, t.grad_strides, row, rows.col, rows.n, g);
      }
      add_values(rule, scale, w, g, rows.n, sums);
      done();
    }
  }
};

// ---- scores of blocks

// The score of a block from the sum of its entries and the old score.
template <class T>
__device__ __forceinline__ T updated_score(const BlockTensor& t, const UpdateRule& rule, T total, T old) {
  T value = finish_block(rule.reduce, total, t.block.entries());
  if (rule.skip_nonfinite && rule.metric == Metric::product) value = finite_or_zero(value);
  return blend(rule.reads_score(), static_cast<T>(rule.alpha), old, static_cast<T>(rule.beta), value);
}

template <class T>
__device__ __forceinline__ void finish_score(const BlockTensor& t, const UpdateRule& rule, int64_t place,
                                             T total) {
  visit_dtype_of<T>(t.score_dtype, [&](auto element) {
    using E = decltype(element);
    auto* score = static_cast<typename E::type*>(t.score) + place;
    const T old = rule.reads_score() ? E::template load<T>(*score) : T(0);
    *score = E::template store<T>(updated_score(t, rule, total, old));
  });
}

// The scores of n columns in blocks of kWidth, the first of which is at `place`.
template <int kWidth, class T>
__device__ __forceinline__ void finish_blocks(const BlockTensor& t, const UpdateRule& rule, int64_t place,
                                              int n, const T (&sums)[kVector]) {
  T scores[kVector] = {};
  if (rule.reads_score()) load_entries(t.score, t.score_dtype, place, n / kWidth, scores);
#pragma unroll
  for (int i = 0; i < kVector / kWidth; ++i) {
    T total = sums[i * kWidth];
#pragma unroll
    for (int c = 1; c < kWidth; ++c) total = combine(rule.reduce, total, sums[i * kWidth + c]);
    scores[i] = updated_score(t, rule, total, scores[i]);
  }
  store_entries(t.score, t.score_dtype, place, n / kWidth, scores);
}

template <class T>
__device__ __forceinline__ void finish_lane(const BlockTensor& t, const UpdateRule& rule, int64_t place,
                                            int n, const T (&sums)[kVector]) {
  switch (t.block.m) {
    case 1:
      return finish_blocks<1>(t, rule, place, n, sums);
    case 2:
      return finish_blocks<2>(t, rule, place, n, sums);
    case 4:
      return finish_blocks<4>(t, rule, place, n, sums);
    default:
      return finish_blocks<8>(t, rule, place, n, sums);
  }
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

template <class T>
__device__ __forceinline__ void clear(Reduce reduce, T (&sums)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[i] = reduce_identity<T>(reduce);
}

struct NothingToFinish {
  __device__ __forceinline__ void operator()() const {}
};

// Finishes the blocks of a lane's columns after the last of their rows.
template <class T>
struct LaneFinish {
  const BlockTensor& t;
  const UpdateRule& rule;
  T (&sums)[kVector];
  int n;
  int64_t place;
  int rows_left;

  __device__ __forceinline__ void operator()() {
    if (--rows_left > 0) return;
    finish_lane(t, rule, place, n, sums);
    clear(rule.reduce, sums);
    place += t.grid_cols();
    rows_left = static_cast<int>(t.block.n);
  }
};

// The columns of a lane summed over the rows of its warp.
template <class Rows, class T>
__device__ __forceinline__ void sum_rows(const BlockTensor& t, const UpdateRule& rule, T scale,
                                         const BlockCut& cut, const BlockTile& tile, T (&sums)[kVector]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  clear(rule.reduce, sums);
  if (warp / cut.warps >= tile.rows) return;
  const PartRow part(cut, tile.first_row + warp / cut.warps);
  const int64_t first = static_cast<int64_t>(part.part) * cut.part_rows + warp % cut.warps;
  const int64_t last = min64(static_cast<int64_t>(part.part + 1) * cut.part_rows, t.block.n);
  NothingToFinish nothing;
  for (int64_t span = tile.begin; span < tile.end; span += kSpan) {
    const int64_t col = span + lane * kVector;
    if (col >= tile.end) continue;
    const int n = static_cast<int>(min64(kVector, tile.end - col));
    const int64_t row = part.block_row * t.block.n + first;
    const int count = static_cast<int>(ceil_div(last - first, cut.warps));
    Rows::add(t, LaneRows{row, col, count, cut.warps, n}, rule, scale, sums, nothing);
  }
}

// A warp has neighbouring rows of blocks, and each lane all blocks of its columns.
template <class Rows, class T>
__device__ __forceinline__ void update_in_lanes(const BlockTensor& t, const UpdateRule& rule, T scale,
                                                const BlockCut& cut, const BlockTile& tile) {
  const int warp = threadIdx.x / kWarp, own = warp * cut.lane_rows;
  const int64_t col = tile.begin + threadIdx.x % kWarp * kVector;
  if (own >= tile.rows || col >= tile.end) return;
  const int n = static_cast<int>(min64(kVector, tile.end - col));
  const int64_t block_row = tile.first_row + own, block_rows = min64(cut.lane_rows, tile.rows - own);
  const int64_t place = block_row * t.grid_cols() + divide(col, t.block.m);
  T sums[kVector];
  clear(rule.reduce, sums);
  LaneFinish<T> finish{t, rule, sums, n, place, static_cast<int>(t.block.n)};
  const LaneRows rows{block_row * t.block.n, col, static_cast<int>(block_rows * t.block.n), 1, n};
  Rows::add(t, rows, rule, scale, sums, finish);
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

template <class Rows, class T>
__device__ __forceinline__ void update_block_tile(const BlockTask& task, const UpdateRule& rule, T scale,
                                                  int64_t number, T (&shared)[kWarps][kSpan]) {
  const BlockTensor& t = task.tensor;
  const BlockCut& cut = task.cut;
  const BlockTile tile(t, cut, number);
  if (cut.lane_rows > 0) return update_in_lanes<Rows>(t, rule, scale, cut, tile);
  T sums[kVector];
  sum_rows<Rows>(t, rule, scale, cut, tile, sums);
#pragma unroll
  for (int i = 0; i < kVector; ++i) shared[threadIdx.x / kWarp][threadIdx.x % kWarp * kVector + i] = sums[i];
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
    static_cast<T*>(task.totals)[place * cut.parts() + part] = total;
  });
  __syncthreads();
}

template <class T, class Rows>
__global__ void __launch_bounds__(kThreads, Rows::kBlocks)
    update_block_scores_kernel(const __grid_constant__ Table<BlockTask> table, const UpdateRule rule) {
  __shared__ T shared[kWarps][kSpan];
  if (overflowed(rule)) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_tile(table, [&](const BlockTask& task, int64_t tile, int64_t) {
    update_block_tile<Rows>(task, rule, scale, tile, shared);
  });
}

// Combines the totals of the parts of each block: a warp takes a block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_parts_kernel(const __grid_constant__ Table<BlockTask> table, const UpdateRule rule) {
  if (overflowed(rule)) return;
  const int64_t lane = threadIdx.x % kWarp, step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = 0; i < table.count; ++i) {
    const BlockTask& task = table.tensors[i];
    if (task.totals == nullptr) continue;
    const BlockTensor& t = task.tensor;
    const int64_t parts = task.cut.parts(), blocks = t.grid_rows() * t.grid_cols();
    for (int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; place < blocks;
         place += step) {
      const T* totals = static_cast<const T*>(task.totals) + place * parts;
      T total = reduce_identity<T>(rule.reduce);
      for (int64_t p = lane; p < parts; p += kWarp) total = combine(rule.reduce, total, totals[p]);
      total = combine_lanes(rule.reduce, total);
      if (lane == 0) finish_score(t, rule, place, total);
    }
  }
}

}  // namespace pruneops::cuda
