#include "update.cuh"

#include "block.cuh"
#include "kernels.h"

namespace pruneops::cuda {
namespace {

struct BlockTasks {
  const BlockTensor* tensors;

  BlockTask operator[](int64_t i) const { return {tensors[i], BlockCut(tensors[i]), nullptr}; }
};

// Gives the tensors of a table that need it their share of the scratch memory. Returns how many blocks have
// several parts.
int64_t give_totals(Table<BlockTask>& table, char*& next) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < table.count; ++i) {
    const BlockTensor& t = table.tensors[i].tensor;
    const int64_t bytes = total_bytes(t);
    if (bytes == 0) continue;
    table.tensors[i].totals = next;
    next += bytes;
    blocks += t.grid_rows() * t.grid_cols();
  }
  return blocks;
}

}  // namespace

cudaError_t update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule,
                          cudaStream_t stream) {
  return for_each_width([&](auto width, const auto& chosen) {
    return for_each_table(tensors, count, flat_tiles<UpdateTensor>, chosen, [&](const auto& table) {
      return launch(update_scores_kernel<decltype(width)>, table.tiles(), stream, table, rule);
    });
  });
}

int64_t block_scratch_bytes(const BlockTensor* tensors, int64_t count) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) bytes += total_bytes(tensors[i]);
  return bytes;
}

cudaError_t update_block_scores(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                                void* scratch, cudaStream_t stream) {
  char* next = static_cast<char*>(scratch);
  const auto update = [&](auto width, auto rows, const auto& chosen) {
    using T = decltype(width);
    return for_each_table(BlockTasks{tensors}, count, block_tiles, chosen, [&](auto& table) {
      const int64_t blocks = give_totals(table, next);
      const auto kernel = update_block_scores_kernel<T, decltype(rows)>;
      PRUNEOPS_RETURN_IF_ERROR(launch(kernel, table.tiles(), stream, table, rule));
      return launch(combine_parts_kernel<T>, ceil_div(blocks, kWarps), stream, table, rule);
    });
  };
  const auto streams = [&](const BlockTask& task, Dtype dtype) {
    return !task.tensor.wide() && can_stream(task.tensor, task.cut, rule, dtype);
  };
  const auto stream_all = [&](auto element, Dtype dtype) {
    return update(0.0f, StreamedRows<decltype(element)>{},
                  [&](const BlockTask& task) { return streams(task, dtype); });
  };
  PRUNEOPS_RETURN_IF_ERROR(stream_all(Element<Dtype::f32>{}, Dtype::f32));
  PRUNEOPS_RETURN_IF_ERROR(stream_all(Element<Dtype::bf16>{}, Dtype::bf16));
  PRUNEOPS_RETURN_IF_ERROR(stream_all(Element<Dtype::f16>{}, Dtype::f16));
  PRUNEOPS_RETURN_IF_ERROR(update(0.0f, AnyRows{}, [&](const BlockTask& task) {
    return !task.tensor.wide() && !streams(task, Dtype::f32) && !streams(task, Dtype::bf16) &&
           !streams(task, Dtype::f16);
  }));
  return update(0.0, AnyRows{}, [](const BlockTask& task) { return task.tensor.wide(); });
}

}  // namespace pruneops::cuda
