#include "update.cuh"

#include "block.cuh"
#include "kernels.h"

namespace pruneops::cuda {

cudaError_t update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule,
                          cudaStream_t stream) {
  return for_each_width([&](auto width, const auto& chosen) {
    return for_each_table(tensors, count, flat_tiles<UpdateTensor>, chosen, [&](const auto& table) {
      return launch(update_scores_kernel<decltype(width)>, table.tiles(), stream, table, rule);
    });
  });
}

cudaError_t update_block_scores(const BlockTensor* tensors, int64_t count, const UpdateRule& rule,
                                cudaStream_t stream) {
  return for_each_width([&](auto width, const auto& chosen) {
    return for_each_table(tensors, count, block_tiles, chosen, [&](const auto& table) {
      return launch(update_block_scores_kernel<decltype(width)>, table.tiles(), stream, table, rule);
    });
  });
}

}  // namespace pruneops::cuda
