// Scores of blocks of one row that lie within a thread's vector (1x2, 1x4, 1x8), of tensors whose rows lie
// side by side: entries are read as those of a flat tensor, and each thread finishes its own blocks.
#pragma once

#include "update.cuh"

namespace pruneops::cuda {

struct LineTask {
  BlockTensor tensor;

  LineTask() = default;
  explicit LineTask(const BlockTensor& t) : tensor(t) {}
  PRUNEOPS_HD int64_t size() const { return tensor.matrix.rows * tensor.matrix.cols; }
};

inline bool lies_flat(const void* data, const Strides& strides, const Matrix& matrix) {
  return data == nullptr || (strides.inner == 1 && matrix.inner == matrix.cols && strides.row == matrix.cols);
}

inline bool is_line(const BlockTensor& t) {
  const bool fits = t.block.n == 1 && (t.block.m == 2 || t.block.m == 4 || t.block.m == 8);
  return fits && lies_flat(t.weight, t.weight_strides, t.matrix) &&
         lies_flat(t.grad, t.grad_strides, t.matrix);
}

// Updates the scores of the blocks of kBlock entries that lie in a vector.
template <int kBlock, class T>
__device__ __forceinline__ void update_line(const BlockTensor& t, const UpdateRule& rule, T scale, int64_t at,
                                            int n, const UpdateInputs<T, BlockTensor>& inputs) {
  constexpr int kScores = kVector / kBlock;
  const int64_t place = at / kBlock;
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  T scores[kScores] = {};
  if (rule.reads_score()) load_few(t.score, t.score_dtype, place, n / kBlock, scores);
  T v[kVector];
  inputs.values(rule, scale, v);
#pragma unroll
  for (int s = 0; s < kScores; ++s) {
    T sums[kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i) sums[i] = v[s * kBlock + i];
    // As neighbouring lanes meet.
#pragma unroll
    for (int width = kBlock / 2; width > 0; width /= 2) {
#pragma unroll
      for (int i = 0; i < width; ++i) sums[i] = combine(rule.reduce, sums[2 * i], sums[2 * i + 1]);
    }
    const T value = block_value(rule, sums[0], kBlock);
    scores[s] = blend(rule.reads_score(), alpha, scores[s], beta, value);
  }
  store_entries(t.score, t.score_dtype, place, n / kBlock, scores);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    update_line_scores_kernel(const __grid_constant__ Table<LineTask> table, const UpdateRule rule) {
  if (rule.overflowed()) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_flat_tile(table, [&](const LineTask& task, int64_t begin, int64_t end, int64_t) {
    const BlockTensor& t = task.tensor;
    for_each_vector(begin, end, [&](int64_t at, int n) {
      const UpdateInputs<T, BlockTensor> inputs(t, rule.metric, at, n);
      switch (t.block.m) {
        case 2:
          return update_line<2>(t, rule, scale, at, n, inputs);
        case 4:
          return update_line<4>(t, rule, scale, at, n, inputs);
        default:
          return update_line<8>(t, rule, scale, at, n, inputs);
      }
    });
  });
}

}  // namespace pruneops::cuda
