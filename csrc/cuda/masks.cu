#include "masks.cuh"

#include "kernels.h"

namespace pruneops::cuda {
namespace {

constexpr auto kEvery = [](const auto&) { return true; };

}  // namespace

cudaError_t apply_masks(const MaskTensor* tensors, int64_t count, cudaStream_t stream) {
  return for_each_fitting_table(tensors, count, flat_tiles<MaskTensor>, kEvery, [&](const auto& table) {
    return launch(apply_masks_kernel<table.kCapacity>, table.tiles(), stream, table);
  });
}

cudaError_t apply_block_masks(const BlockMaskTensor* tensors, int64_t count, cudaStream_t stream) {
  const auto apply = [&](auto kernel, const auto& chosen) {
    return for_each_table(tensors, count, block_mask_tiles<>, chosen,
                          [&](const auto& table) { return launch(kernel, table.tiles(), stream, table); });
  };
  const auto apply_to = [&](auto word) {
    using Word = decltype(word);
    return apply(apply_flat_block_masks_kernel<Word>, [](const BlockMaskTensor& t) {
      return has_flat_rows(t) && t.element_size == static_cast<int32_t>(sizeof(Word));
    });
  };
  PRUNEOPS_RETURN_IF_ERROR(apply_to(uint8_t()));
  PRUNEOPS_RETURN_IF_ERROR(apply_to(uint16_t()));
  PRUNEOPS_RETURN_IF_ERROR(apply_to(uint32_t()));
  PRUNEOPS_RETURN_IF_ERROR(apply_to(uint64_t()));
  return apply(apply_block_masks_kernel,
               [](const BlockMaskTensor& t) { return !has_flat_rows(t) || t.element_size > 8; });
}

cudaError_t expand_block_mask(const BlockMaskTensor& tensor, cudaStream_t stream) {
  return launch(expand_block_mask_kernel, block_mask_tiles<kExpandRows>(tensor), stream, tensor);
}

cudaError_t pack_mask(const bool* mask, uint8_t* packed, int64_t numel, cudaStream_t stream) {
  return launch(pack_mask_kernel, ceil_div(numel, kTile), stream, reinterpret_cast<const uint8_t*>(mask),
                packed, numel);
}

cudaError_t unpack_mask(const uint8_t* packed, bool* mask, int64_t numel, cudaStream_t stream) {
  return launch(unpack_mask_kernel, ceil_div(numel, kTile), stream, packed, reinterpret_cast<uint8_t*>(mask),
                numel);
}

}  // namespace pruneops::cuda
