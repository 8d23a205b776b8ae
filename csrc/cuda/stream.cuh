// Block scores at the speed of memory, for blocks that a warp sums and finishes without any other: blocks of
// a power of two columns, up to the span of a warp, and rows cut into parts. Their vectors are whole, aligned
// and of one dtype; block.cuh takes all others.
#pragma once

#include "block.cuh"

namespace pruneops::cuda {

// That a warp reads of a tensor at least, where blocks have fewer rows.
constexpr int64_t kStreamBytes = 1 << 14;

// How a tensor is cut for warps: a task is part_rows rows, or several rows of blocks where these have fewer,
// of the columns of a span; for blocks of one long row, the spans of a part.
struct StreamTask {
  BlockTensor tensor;
  void* totals;  // as in BlockTask
  int32_t parts;
  int32_t part_rows;   // or spans
  int32_t block_rows;  // of a task
  float inverse;       // of the entries of a block where that is exact, else 0
  int64_t spans;       // tasks side by side

  StreamTask() = default;
  explicit StreamTask(const BlockTensor& t)
      : tensor(t),
        totals(nullptr),
        inverse(is_power_of_two(t.block.entries()) ? 1.0f / static_cast<float>(t.block.entries()) : 0.0f) {
    const BlockCut cut(t);
    parts = static_cast<int32_t>(cut.parts());
    part_rows = is_long() ? static_cast<int32_t>(cut.part_cols / kSpan) : cut.part_rows;
    const Dtype dtype = t.weight != nullptr ? t.weight_dtype : t.grad_dtype;
    const int64_t rows = kStreamBytes / (kSpan * entry_bytes(dtype));
    block_rows = static_cast<int32_t>(is_long() || t.block.n > rows ? 1 : rows / t.block.n);
    spans = is_long() ? t.grid_cols() * parts : ceil_div(t.matrix.cols, kSpan);
  }

  // Blocks of one row that is longer than a span.
  PRUNEOPS_HD bool is_long() const { return tensor.block.m > kSpan; }
  PRUNEOPS_HD int64_t down() const {
    return is_long() ? tensor.grid_rows() : divide(tensor.grid_rows() + block_rows - 1, block_rows) * parts;
  }
  PRUNEOPS_HD int64_t part_count() const { return parts; }
  PRUNEOPS_HD float mean(float total) const {
    return inverse != 0.0f ? total * inverse : finish_block(Reduce::mean, total, tensor.block.entries());
  }
};

// A tile has a task for each warp, neighbours in the same rows.
inline int64_t stream_tiles(const StreamTask& task) {
  return ceil_div(task.down() * task.spans, kWarps);
}

inline bool lies_in_vectors(const void* data, const Strides& strides, int64_t size) {
  return data == nullptr ||
         (reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides.inner == 1 && strides.row * size % 16 == 0);
}

// Whether a tensor can be streamed as entries of a dtype, and values are added up as they are.
inline bool can_stream(const BlockTensor& t, const UpdateRule& rule, Dtype dtype) {
  const bool drops = rule.skip_nonfinite && rule.metric != Metric::product;
  if (t.wide() || rule.grad_scale != nullptr || rule.reduce == Reduce::max || drops) return false;
  if (t.weight != nullptr && t.weight_dtype != dtype) return false;
  if (t.grad != nullptr && t.grad_dtype != dtype) return false;
  const int64_t size = dtype == Dtype::f32 ? 4 : 2;
  if (!lies_in_vectors(t.weight, t.weight_strides, size) || !lies_in_vectors(t.grad, t.grad_strides, size)) {
    return false;
  }
  if (t.matrix.inner != t.matrix.cols || t.matrix.cols % kVector != 0) return false;
  if (t.block.m > kSpan) return t.block.n == 1 && t.block.m % kSpan == 0;
  return is_power_of_two(t.block.m) && (is_power_of_two(t.block.n) || t.block.n > kPartRows);
}

// Vectors of a lane that lie `step` bytes apart.
template <class E>
struct Stream {
  const char* next;
  int64_t step;

  Stream() = default;
  __device__ __forceinline__ Stream(const void* data, int64_t at, int64_t entries_apart)
      : next(static_cast<const char*>(data) + at * kSize), step(entries_apart * kSize) {}
  __device__ __forceinline__ void load(RawVector<E>& to) {
    to.load(next, 0);
    next += step;
  }

 private:
  static constexpr int64_t kSize = sizeof(typename E::type);
};

// What an update reads of a vector: the weights and the gradients, or the only ones of them that it needs.
template <class E, int kInputs>
struct StreamedVector {
  RawVector<E> raw[kInputs];

  __device__ __forceinline__ void load(Stream<E> (&streams)[kInputs]) {
#pragma unroll
    for (int i = 0; i < kInputs; ++i) streams[i].load(raw[i]);
  }
  __device__ __forceinline__ void add_to(float (&sums)[kVector], Metric metric) const {
    float w[kVector], g[kVector], norm[kVector] = {}, v[kVector];
    raw[0].convert(w);
    raw[kInputs - 1].convert(g);
    values_of(metric, w, g, norm, v);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] = combine(Reduce::sum, sums[i], v[i]);
  }
};

// Blocks that shall fit a multiprocessor: the two inputs of float32, and a float16's conversion, take
// registers.
template <class E, int kInputs>
constexpr int kStreamBlocks = kInputs == 1 || std::is_same_v<E, Element<Dtype::bf16>> ? 3 : 2;
// Vectors that are under way before the first is added: fewer blocks have more.
template <class E, int kInputs>
constexpr int kStreamVectors = kStreamBlocks<E, kInputs> == 3 ? 2 : 4;

// Adds `count` vectors to the sums, with done() after each. None is asked for while another is added: the
// compiler would wait for both.
template <class E, int kInputs, class F>
__device__ __forceinline__ void add_stream(Stream<E> (&streams)[kInputs], int count, Metric metric,
                                           float (&sums)[kVector], F& done) {
  constexpr int kHeld = kStreamVectors<E, kInputs>;
  for (int left = count; left > 0; left -= kHeld) {
    StreamedVector<E, kInputs> held[kHeld];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (h < left) held[h].load(streams);
    }
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (h >= left) return;
      held[h].add_to(sums, metric);
      done();
    }
  }
}

// Finishes the blocks of a lane's columns, or the parts of them, after the last of their vectors.
struct StreamFinish {
  const StreamTask& task;
  const UpdateRule& rule;
  float (&sums)[kVector];
  bool writes;    // whether this lane has a score, or the first of several
  int left;       // vectors of the present block,
  int rows_left;  // and rows of blocks with it
  int64_t place;  // of the score
  int32_t part;
  float old[kVector];

  // The old scores, so that they are there when the sums are.
  __device__ __forceinline__ void read_old() {
    if (!writes || !rule.reads_score() || task.totals != nullptr) return;
    visit_scores([&](auto count) {
      constexpr int kCount = decltype(count)::value;
      float scores[kCount];
      load_few(task.tensor.score, task.tensor.score_dtype, place, kCount, scores);
#pragma unroll
      for (int i = 0; i < kCount; ++i) old[i] = scores[i];
    });
  }
  __device__ __forceinline__ void operator()() {
    if (--left > 0) return;
    combine_columns();
    if (writes) {
      visit_scores([&](auto count) { write<decltype(count)::value>(); });
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] = 0.0f;
    if (--rows_left == 0) return;
    place += task.tensor.grid_cols();
    left = static_cast<int>(task.tensor.block.n);
    read_old();
  }

 private:
  // f(constant) with the number of a lane's scores.
  template <class F>
  __device__ __forceinline__ void visit_scores(const F& f) const {
    switch (task.tensor.block.m) {
      case 1:
        return f(std::integral_constant<int, 8>{});
      case 2:
        return f(std::integral_constant<int, 4>{});
      case 4:
        return f(std::integral_constant<int, 2>{});
      default:
        return f(std::integral_constant<int, 1>{});
    }
  }
  // The totals of blocks stand in the first sums then.
  __device__ __forceinline__ void combine_columns() {
    const int m = static_cast<int>(min64(task.tensor.block.m, kSpan));
    if (m == 1) return;
    add_neighbours<2>();
    if (m == 2) return;
    add_neighbours<4>();
    if (m == 4) return;
    add_neighbours<8>();
    for (int lanes = 1; lanes * kVector < m; lanes *= 2) {
      sums[0] += __shfl_xor_sync(kAllLanes, sums[0], lanes);
    }
  }
  // Makes sums of kWidth columns of those of half as many.
  template <int kWidth>
  __device__ __forceinline__ void add_neighbours() {
#pragma unroll
    for (int i = 0; i < kVector / kWidth; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  template <int kCount>
  __device__ __forceinline__ void write() {
    const BlockTensor& t = task.tensor;
    if (task.totals != nullptr) {
      Vector<float, kCount> totals;
#pragma unroll
      for (int i = 0; i < kCount; ++i) totals.words[i] = sums[i];
      return store_words(static_cast<float*>(task.totals) + total_place(t.blocks(), place, part), kCount,
                         totals);
    }
    float scores[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float value = rule.reduce == Reduce::mean ? task.mean(sums[i]) : finish_sum(rule.reduce, sums[i]);
      if (rule.skip_nonfinite) value = finite_or_zero(value);
      scores[i] = blend(rule.reads_score(), static_cast<float>(rule.alpha), old[i],
                        static_cast<float>(rule.beta), value);
    }
    store_entries(t.score, t.score_dtype, place, kCount, scores);
  }
};

template <class E, int kInputs>
__device__ __forceinline__ void update_stream_task(const StreamTask& task, const UpdateRule& rule,
                                                   int64_t down, int64_t across) {
  const BlockTensor& t = task.tensor;
  const int lane = threadIdx.x % kWarp;
  int64_t block_row = down, row = down, col = across * kSpan;
  int count = task.part_rows, of_block = count;
  int32_t part = 0;
  if (task.is_long()) {
    const int64_t block = divide(across, task.parts);
    part = static_cast<int32_t>(across - block * task.parts);
    col = block * t.block.m + int64_t{part} * task.part_rows * kSpan;
    count = of_block = static_cast<int>(min64(count, (t.block.m / kSpan) - int64_t{part} * task.part_rows));
  } else if (task.parts > 1) {
    block_row = divide(down, task.parts);
    part = static_cast<int32_t>(down - block_row * task.parts);
    row = block_row * t.block.n + int64_t{part} * task.part_rows;
    count = of_block = static_cast<int>(min64(count, t.block.n - int64_t{part} * task.part_rows));
  } else {
    block_row = down * task.block_rows;
    row = block_row * t.block.n;
    count = static_cast<int>(min64(task.block_rows, t.grid_rows() - block_row) * t.block.n);
  }
  col += lane * kVector;
  // Lanes behind the last column take part in shuffles.
  const bool inside = col < t.matrix.cols;
  const int64_t read = inside ? col : 0, apart = task.is_long() ? kSpan : 0;
  const auto stream = [&](const void* data, const Strides& strides) {
    return Stream<E>(data, row * strides.row + read, apart > 0 ? apart : strides.row);
  };
  Stream<E> streams[kInputs];
  streams[0] =
      reads_weight(rule.metric) ? stream(t.weight, t.weight_strides) : stream(t.grad, t.grad_strides);
  if constexpr (kInputs > 1) streams[1] = stream(t.grad, t.grad_strides);
  const int64_t block_col = divide(col, t.block.m);
  const bool first = t.block.m <= kVector || (task.is_long() ? lane == 0 : col == block_col * t.block.m);
  float sums[kVector] = {};
  const int64_t place = block_row * t.grid_cols() + block_col;
  StreamFinish finish{task, rule, sums, inside && first, of_block, count / of_block, place, part, {}};
  finish.read_old();
  add_stream(streams, count, rule.metric, sums, finish);
}

template <class E, int kInputs>
__global__ void __launch_bounds__(kThreads, kStreamBlocks<E, kInputs>)
    stream_block_scores_kernel(const __grid_constant__ Table<StreamTask> table, const UpdateRule rule) {
  if (rule.overflowed()) return;
  for_each_tile(table, [&](const StreamTask& task, int64_t tile, int64_t) {
    const int64_t number = tile * kWarps + threadIdx.x / kWarp, down = divide(number, task.spans);
    if (down < task.down()) update_stream_task<E, kInputs>(task, rule, down, number - down * task.spans);
  });
}

}  // namespace pruneops::cuda
