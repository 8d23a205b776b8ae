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
  const int64_t bytes = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
  return data == nullptr ? nullptr : static_cast<const char*>(data) + entries * bytes;
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

// Calls f with a zero of the type in which the scores of rows are ranked.
template <class F>
cudaError_t in_row_type(const SelectTensor& t, Metric metric, const F& f) {
  if (t.wide()) return f(0.0);
  const bool is_short =
      t.weight_dtype == Dtype::bf16 && (metric == Metric::stored || metric == Metric::magnitude);
  return is_short ? f(ShortFloat(0)) : f(0.0f);
}

template <class T>
cudaError_t select_rows(const SelectTensor& t, Metric metric, int64_t row, int64_t k, cudaStream_t stream) {
  const int64_t rows = t.numel / row, warp_blocks = ceil_div(rows, kWarps);
  if (row <= HeldKeys<T, kWarp, 1>::kEntries) {
    return launch(warp_rows_kernel<T, 1>, warp_blocks, stream, t, metric, row, k);
  }
  if (row <= HeldKeys<T, kWarp, 4>::kEntries) {
    return launch(warp_rows_kernel<T, 4>, warp_blocks, stream, t, metric, row, k);
  }
  if (row <= kTile) return launch(block_rows_kernel<RegisterRow<T>>, rows, stream, t, metric, row, k);
  int64_t most = 0;
  PRUNEOPS_RETURN_IF_ERROR(most_dynamic_shared(sizeof(RowShared<Key<T>>), most));
  const int64_t bytes = SharedRow<T>::bytes(row);
  if (bytes <= most) {
    return launch_sharing(block_rows_kernel<SharedRow<T>>, rows, bytes, most, stream, t, metric, row, k);
  }
  return launch(block_rows_kernel<MemoryRow<T>>, rows, stream, t, metric, row, k);
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
  return in_row_type(t, metric,
                     [&](auto rank) { return select_rows<decltype(rank)>(t, metric, row, k, stream); });
}

}  // namespace pruneops::cuda
