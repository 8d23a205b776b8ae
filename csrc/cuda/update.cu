#include "update.cuh"

#include "kernels.h"
#include "line.cuh"
#include "stream.cuh"

namespace pruneops::cuda {
namespace {

template <class Task>
struct Tasks {
  const BlockTensor* tensors;

  Task operator[](int64_t i) const { return Task(tensors[i]); }
};

// Gives the tensors of a table that need it their share of the scratch memory. Returns how many blocks have
// several parts.
template <class Task>
int64_t give_totals(Table<Task>& table, char*& next) {
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
  // Launches a kernel for the chosen tensors, and one for those whose blocks have several parts.
  const auto update = [&](auto kernel, auto combine, const auto& tasks, const auto& tiles,
                          const auto& chosen) {
    return for_each_table(tasks, count, tiles, chosen, [&](auto& table) {
      const int64_t blocks = give_totals(table, next);
      PRUNEOPS_RETURN_IF_ERROR(launch(kernel, table.tiles(), stream, table, rule));
      return launch(combine, ceil_div(blocks, kWarps), stream, table, rule);
    });
  };
  PRUNEOPS_RETURN_IF_ERROR(for_each_width([&](auto width, const auto& chosen) {
    return for_each_table(
        Tasks<LineTask>{tensors}, count, flat_tiles<LineTask>,
        [&](const LineTask& task) { return chosen(task.tensor) && is_line(task.tensor); },
        [&](const auto& table) {
          return launch(update_line_scores_kernel<decltype(width)>, table.tiles(), stream, table, rule);
        });
  }));
  const auto stream_those_of = [&](auto element, Dtype dtype) {
    return update(stream_block_scores_kernel<decltype(element)>, combine_parts_kernel<float, StreamTask>,
                  Tasks<StreamTask>{tensors}, stream_tiles, [&](const StreamTask& task) {
                    return !is_line(task.tensor) && can_stream(task.tensor, rule, dtype);
                  });
  };
  PRUNEOPS_RETURN_IF_ERROR(stream_those_of(Element<Dtype::f32>{}, Dtype::f32));
  PRUNEOPS_RETURN_IF_ERROR(stream_those_of(Element<Dtype::bf16>{}, Dtype::bf16));
  PRUNEOPS_RETURN_IF_ERROR(stream_those_of(Element<Dtype::f16>{}, Dtype::f16));
  return for_each_width([&](auto width, const auto& chosen) {
    using T = decltype(width);
    return update(update_block_scores_kernel<T>, combine_parts_kernel<T, BlockTask>,
                  Tasks<BlockTask>{tensors}, block_tiles, [&](const BlockTask& task) {
                    return chosen(task.tensor) && !is_line(task.tensor) &&
                           !can_stream(task.tensor, rule, Dtype::f32) &&
                           !can_stream(task.tensor, rule, Dtype::bf16) &&
                           !can_stream(task.tensor, rule, Dtype::f16);
                  });
  });
}

}  // namespace pruneops::cuda
