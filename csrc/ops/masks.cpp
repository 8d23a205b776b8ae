// empty_masks, apply_masks_, expand_block_mask, pack_mask and unpack_mask.
#include "backend.h"
#include "ops.h"

namespace pruneops::ops {
namespace {

using torch::headeronly::ScalarType;
constexpr const char* kApply = "apply_masks_";

int64_t numel_of(const Ints& shape) {
  int64_t numel = 1;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(size >= 0, "pruneops: a shape has a negative size, ", size);
    STD_TORCH_CHECK(!__builtin_mul_overflow(numel, size, &numel), "pruneops: a shape has too many entries");
  }
  return numel;
}

void apply_entry_masks(const Tensors& tensors, const Tensors& masks) {
  std::deque<FlatTensors> flats;  // those that are not contiguous
  std::deque<Tensor> copies;
  std::vector<MaskTensor> entries;
  entries.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_mask(kApply, tensors[i], masks[i]);
    check_written(kApply, tensors[i]);
    const bool packed = masks[i].scalar_type() == ScalarType::Byte;
    const Tensor *tensor = &tensors[i], *mask = &masks[i];
    if (packed) {
      // A packed mask has its bits in row-major order.
      mask = &contiguous_in(copies, *mask);
      if (!tensor->is_contiguous()) tensor = &flats.emplace_back(Tensors{*tensor}, Order::row_major)[0];
    } else if (!tensor->is_contiguous() || !mask->is_contiguous()) {
      const FlatTensors& flat = flats.emplace_back(Tensors{*tensor, *mask});
      tensor = &flat[0], mask = &flat[1];
    }
    entries.push_back({tensor->data_ptr(), static_cast<const uint8_t*>(mask->data_ptr()), tensor->numel(),
                       static_cast<int32_t>(tensor->element_size()), packed});
  }
  const auto count = static_cast<int64_t>(entries.size());
  run_on(
      kApply, tensors[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.apply_masks(entries.data(), count, pool);
      },
      [&](auto stream) { return cuda::apply_masks(entries.data(), count, stream); });
  for (FlatTensors& flat : flats) flat.commit(0);
}

void apply_block_masks(const Tensors& tensors, const Tensors& masks, const Ints& block) {
  std::deque<Tensor> copies;
  std::vector<std::pair<Tensor, Tensor>> written;  // tensors as given, and what is written in their place
  std::vector<BlockMaskTensor> entries;
  entries.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_type(kApply, masks[i], ScalarType::Bool);
    check_written(kApply, tensors[i]);
    const MatrixView view = matrix_view(copies, tensors[i]);
    if (&view.work != &tensors[i]) written.emplace_back(tensors[i], view.work);
    const Tensor& mask = contiguous_in(copies, masks[i]);
    const BlockMaskTensor entry{view.work.data_ptr(),
                                static_cast<const bool*>(mask.data_ptr()),
                                view.matrix,
                                view.strides,
                                block_of(kApply, block, view.matrix),
                                static_cast<int32_t>(view.work.element_size())};
    check_grid(kApply, masks[i], entry.grid_rows(), entry.grid_cols());
    if (tensors[i].numel() > 0) entries.push_back(entry);
  }
  if (entries.empty()) return;
  const auto count = static_cast<int64_t>(entries.size());
  run_on(
      kApply, tensors[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.apply_block_masks(entries.data(), count, pool);
      },
      [&](auto stream) { return cuda::apply_block_masks(entries.data(), count, stream); });
  for (auto& [given, work] : written) copy_back(given, work);
}

}  // namespace

Tensors empty_masks(Tensors scores, bool packed) {
  Tensors masks;
  for (const Tensor& score : scores) {
    const Ints shape(score.sizes().begin(), score.sizes().end()), bytes{packed_size(score.numel())};
    masks.push_back(new_output(score, packed ? bytes : shape, packed ? ScalarType::Byte : ScalarType::Bool));
  }
  return masks;
}

void apply_masks_(Tensors tensors, Tensors masks, std::optional<Ints> block) {
  check_same_length(kApply, tensors, masks);
  check_same_device(kApply, tensors[0], tensors);
  check_same_device(kApply, tensors[0], masks);
  block ? apply_block_masks(tensors, masks, *block) : apply_entry_masks(tensors, masks);
}

Tensor expand_block_mask(Tensor mask, Ints block, Ints shape) {
  constexpr const char* op = "expand_block_mask";
  check_type(op, mask, ScalarType::Bool);
  numel_of(shape);
  Tensor expanded = new_output(mask, shape, ScalarType::Bool);
  std::deque<Tensor> copies;
  const MatrixView view = matrix_view(copies, expanded);
  const Block size = block_of(op, block, view.matrix);
  if (expanded.numel() == 0) return expanded;
  const Tensor source = as_contiguous(mask);
  const BlockMaskTensor entry{
      expanded.data_ptr(), static_cast<const bool*>(source.data_ptr()), view.matrix, view.strides, size, 1};
  STD_TORCH_CHECK(mask.numel() == entry.grid_rows() * entry.grid_cols(), op, ": mask has ", mask.numel(),
                  " entries for ", entry.grid_rows(), " x ", entry.grid_cols(), " blocks");
  run_on(
      op, mask,
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) { kernels.expand_block_mask(entry, pool); },
      [&](auto stream) { return cuda::expand_block_mask(entry, stream); });
  return expanded;
}

Tensor pack_mask(Tensor mask) {
  constexpr const char* op = "pack_mask";
  check_type(op, mask, ScalarType::Bool);
  const Tensor source = as_contiguous(mask);
  const int64_t numel = mask.numel();
  Tensor packed = new_output(mask, Ints{packed_size(numel)}, ScalarType::Byte);
  const auto* bools = static_cast<const bool*>(source.data_ptr());
  auto* bytes = static_cast<uint8_t*>(packed.data_ptr());
  run_on(
      op, mask,
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.pack_mask(bools, bytes, numel, pool);
      },
      [&](auto stream) { return cuda::pack_mask(bools, bytes, numel, stream); });
  return packed;
}

Tensor unpack_mask(Tensor packed, Ints shape) {
  constexpr const char* op = "unpack_mask";
  check_type(op, packed, ScalarType::Byte);
  const int64_t numel = numel_of(shape);
  STD_TORCH_CHECK(packed.numel() == packed_size(numel), op, ": packed has ", packed.numel(), " bytes for ",
                  numel, " entries");
  const Tensor source = as_contiguous(packed);
  Tensor mask = new_output(packed, shape, ScalarType::Bool);
  const auto* bytes = static_cast<const uint8_t*>(source.data_ptr());
  auto* bools = static_cast<bool*>(mask.data_ptr());
  run_on(
      op, packed,
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.unpack_mask(bytes, bools, numel, pool);
      },
      [&](auto stream) { return cuda::unpack_mask(bytes, bools, numel, stream); });
  return mask;
}

}  // namespace pruneops::ops
