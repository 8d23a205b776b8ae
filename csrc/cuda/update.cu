#include "update.cuh"

#include <vector>

#include "kernels.h"
#include "line.cuh"
#include "stream.cuh"

namespace pruneops::cuda {
namespace {

// Which kernel a tensor's blocks are for.
enum class Way { line, line_double, stream_f32, stream_bf16, stream_f16, block, block_double, count };

Way way_of(const BlockTensor& t, const UpdateRule& rule) {
  if (is_line(t)) return t.wide() ? Way::line_double : Way::line;
  if (can_stream(t, rule, Dtype::f32)) return Way::stream_f32;
  if (can_stream(t, rule, Dtype::bf16)) return Way::stream_bf16;
  if (can_stream(t, rule, Dtype::f16)) return Way::stream_f16;
  return t.wide() ? Way::block_double : Way::block;
}

// The tensors of a list that go one way, as tasks of its kernel.
template <class Task>
struct Tasks {
  const BlockTensor* tensors;
  const std::vector<int64_t>& chosen;

  Task operator[](int64_t i) const { return Task(tensors[chosen[static_cast<size_t>(i)]]); }
  int64_t count() const { return static_cast<int64_t>(chosen.size()); }
};

constexpr auto kEvery = [](const auto&) { return true; };

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
    blocks += t.blocks();
  }
  return blocks;
}

}  // namespace

cudaError_t update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule,
                          cudaStream_t stream) {
  return for_each_width([&](auto width, const auto& chosen) {
    return for_each_fitting_table(tensors, count, flat_tiles<UpdateTensor>, chosen, [&](const auto& table) {
      return launch(update_scores_kernel<decltype(width), table.kCapacity>, table.tiles(), stream, table,
                    rule);
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
  std::vector<int64_t> chosen[static_cast<int>(Way::count)];
  for (int64_t i = 0; i < count; ++i) chosen[static_cast<int>(way_of(tensors[i], rule))].push_back(i);
  const auto those_of = [&](auto task, Way way) {
    return Tasks<decltype(task)>{tensors, chosen[static_cast<int>(way)]};
  };
  const auto lines = [&](auto width, Way way) {
    const auto tasks = those_of(LineTask(), way);
    return for_each_table(tasks, tasks.count(), flat_tiles<LineTask>, kEvery, [&](const auto& table) {
      return launch(update_line_scores_kernel<decltype(width)>, table.tiles(), stream, table, rule);
    });
  };
  char* next = static_cast<char*>(scratch);
  // Launches a kernel for the tensors of a way, and one for those whose blocks have several parts.
  const auto update = [&](auto kernel, auto combine, const auto& tiles, const auto& tasks) {
    return for_each_table(tasks, tasks.count(), tiles, kEvery, [&](auto& table) {
      const int64_t blocks = give_totals(table, next);
      PRUNEOPS_RETURN_IF_ERROR(launch(kernel, table.tiles(), stream, table, rule));
      return launch(combine, ceil_div(blocks, kWarp), stream, table, rule);
    });
  };
  const auto streams = [&](auto element, Way way) {
    using E = decltype(element);
    const bool reads_both = reads_weight(rule.metric) && reads_grad(rule.metric);
    return update(reads_both ? stream_block_scores_kernel<E, 2> : stream_block_scores_kernel<E, 1>,
                  combine_parts_kernel<float, StreamTask>, stream_tiles, those_of(StreamTask(), way));
  };
  const auto blocks = [&](auto width, Way way) {
    using T = decltype(width);
    return update(update_block_scores_kernel<T>, combine_parts_kernel<T, BlockTask>, block_tiles,
                  those_of(BlockTask(), way));
  };
  PRUNEOPS_RETURN_IF_ERROR(lines(0.0f, Way::line));
  PRUNEOPS_RETURN_IF_ERROR(lines(0.0, Way::line_double));
  PRUNEOPS_RETURN_IF_ERROR(streams(Element<Dtype::f32>{}, Way::stream_f32));
  PRUNEOPS_RETURN_IF_ERROR(streams(Element<Dtype::bf16>{}, Way::stream_bf16));
  PRUNEOPS_RETURN_IF_ERROR(streams(Element<Dtype::f16>{}, Way::stream_f16));
  PRUNEOPS_RETURN_IF_ERROR(blocks(0.0f, Way::block));
  return blocks(0.0, Way::block_double);
}

}  // namespace pruneops::cuda
