#include "rows.cuh"

#include "kernels.h"

namespace pruneops::cuda {
namespace {

// Rows that are so many times as long as there are rows are selected one after another, each by the whole
// device: below, its launches take longer than blocks that read a row each. Reasoned, not measured: 25 us for
// the launches, and 60 GB/s for a block that reads 16 bytes an entry.
#ifndef PRUNEOPS_LONG_ROW
#define PRUNEOPS_LONG_ROW (int64_t(1) << 17)
#endif
constexpr int64_t kLongRow = PRUNEOPS_LONG_ROW;

bool is_long(const SelectTensor& t, int64_t row) {
  return t.numel > 0 && row / (t.numel / row) >= kLongRow;
}

const void* advance(const void* data, Dtype dtype, int64_t entries) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + entries * entry_bytes(dtype);
}

// A row as a tensor of its own.
SelectTensor row_of(const SelectTensor& t, int64_t row, int64_t r) {
  const int64_t begin = r * row;
  SelectTensor own = t;
  own.numel = row;
  own.weight = advance(t.weight, t.weight_dtype, begin);
  own.grad = advance(t.grad, t.grad_dtype, begin);
  own.norm = static_cast<const float*>(advance(t.norm, Dtype::f32, begin % t.cols));
  own.mask = t.mask + (t.packed ? begin / 8 : begin);
  return own;
}

cudaError_t select_each_row(const SelectTensor& t, Metric metric, int64_t row, int64_t k, void* scratch,
                            cudaStream_t stream) {
  const SelectRule rule{metric, k, false, false};
  for (int64_t r = 0; r < t.numel / row; ++r) {
    const SelectTensor own = row_of(t, row, r);
    PRUNEOPS_RETURN_IF_ERROR(topk_mask(&own, 1, rule, scratch, stream));
  }
  return cudaSuccess;
}

template <class Held>
cudaError_t select_by_warps(const SelectTensor& t, Metric metric, int row, int k, cudaStream_t stream) {
  const int64_t blocks = ceil_div(t.numel / row, kWarpRows);
  return launch_threads(warp_rows_kernel<Held>, blocks, kWarpRows * kWarp, stream, t, metric, row, k);
}

template <class Held>
cudaError_t select_by_blocks(const SelectTensor& t, Metric metric, int row, int k, cudaStream_t stream) {
  const int64_t warps = ceil_div(row, Held::kPerThread * kWarp);
  return launch_threads(block_rows_kernel<Held>, t.numel / row, warps * kWarp, stream, t, metric, row, k);
}

template <class T>
cudaError_t select_rows(const SelectTensor& t, Metric metric, int row, int k, cudaStream_t stream) {
  constexpr int kLanes = kWarp * kVector;
  if (row > 4 * kLanes && row <= kRowWarps * kPairVectors * kLanes && are_pairs(t, metric, row)) {
    if (row <= 8 * kLanes) return select_by_warps<HeldPairs<WarpThreads, 8>>(t, metric, row, k, stream);
    if (row <= 16 * kLanes) return select_by_warps<HeldPairs<WarpThreads, 16>>(t, metric, row, k, stream);
    return select_by_blocks<HeldPairs<BlockThreads, kPairVectors>>(t, metric, row, k, stream);
  }
  if (row <= kLanes) return select_by_warps<HeldScores<T, WarpThreads, 1>>(t, metric, row, k, stream);
  if (row <= 4 * kLanes) return select_by_warps<HeldScores<T, WarpThreads, 4>>(t, metric, row, k, stream);
  if (row <= kRowWarps * kRowVectors<T> * kLanes) {
    return select_by_blocks<HeldScores<T, BlockThreads, kRowVectors<T>>>(t, metric, row, k, stream);
  }
  return launch(memory_rows_kernel<T>, t.numel / row, stream, t, metric, row, k);
}

}  // namespace

int64_t row_scratch_bytes(const SelectTensor& t, int64_t row) {
  if (!is_long(t, row)) return 0;
  const SelectTensor first = row_of(t, row, 0);
  return select_scratch_bytes(&first, 1);
}

cudaError_t row_topk_mask(const SelectTensor& t, Metric metric, int64_t row, int64_t k, void* scratch,
                          cudaStream_t stream) {
  if (t.numel == 0) return cudaSuccess;
  if (k == 0 || k == row) {
    return topk_mask(&t, 1, {metric, k == 0 ? 0 : t.numel, false, false}, nullptr, stream);
  }
  if (is_long(t, row)) return select_each_row(t, metric, row, k, scratch, stream);
  const int own_row = static_cast<int>(row), own_k = static_cast<int>(k);
  return t.wide() ? select_rows<double>(t, metric, own_row, own_k, stream)
                  : select_rows<float>(t, metric, own_row, own_k, stream);
}

}  // namespace pruneops::cuda
