#include "tensors.h"

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Of torch from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace pruneops::ops {

using torch::headeronly::ScalarType;

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::Double:
      return Dtype::f64;
    default:
      STD_TORCH_CHECK(false, "pruneops: expected a float32, bfloat16, float16 or float64 tensor");
  }
}

Metric metric_of(const std::string& name) {
  static const std::pair<const char*, Metric> names[] = {
      {"magnitude", Metric::magnitude},   {"gradient", Metric::gradient},   {"snip", Metric::snip},
      {"taylor", Metric::taylor},         {"fisher", Metric::fisher},       {"wanda", Metric::wanda},
      {"mask_gradient", Metric::product}, {"mask_fisher", Metric::product}, {"mask_sum", Metric::product},
  };
  for (const auto& [known, metric] : names) {
    if (name == known) return metric;
  }
  STD_TORCH_CHECK(false, "pruneops: unknown metric ", name);
}

Reduce reduce_of(const std::string& name) {
  static const std::pair<const char*, Reduce> names[] = {
      {"mean", Reduce::mean},
      {"sum", Reduce::sum},
      {"max", Reduce::max},
      {"mask_gradient", Reduce::abs_sum},
      {"mask_fisher", Reduce::square_sum},
      {"mask_sum", Reduce::sum},
  };
  for (const auto& [known, reduce] : names) {
    if (name == known) return reduce;
  }
  STD_TORCH_CHECK(false, "pruneops: unknown reduce ", name);
}

void check_written(const char* op, const Tensor& tensor) {
  if (tensor.is_contiguous()) return;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    STD_TORCH_CHECK(sizes[d] <= 1 || strides[d] != 0 || tensor.numel() == 0, op,
                    ": a tensor to write is an expanded view");
  }
}

void check_same_length(const char* op, const Tensors& a, const Tensors& b) {
  STD_TORCH_CHECK(a.size() == b.size(), op, ": lists of ", a.size(), " and ", b.size(), " tensors");
}

void check_same_sizes(const char* op, const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  STD_TORCH_CHECK(sizes.size() == others.size() && std::equal(sizes.begin(), sizes.end(), others.begin()), op,
                  ": tensors of one entry differ in shape (", a.numel(), " and ", b.numel(), " entries)");
}

void check_same_device(const char* op, const Tensor& first, const Tensor& other) {
  STD_TORCH_CHECK(other.is_cuda() == first.is_cuda() && other.get_device_index() == first.get_device_index(),
                  op, ": tensors are on different devices");
}

void check_same_device(const char* op, const Tensor& first, const Tensors& others) {
  for (const Tensor& other : others) check_same_device(op, first, other);
}

void check_type(const char* op, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": a tensor has the wrong dtype");
}

bool is_second_of(const char* op, const std::string& word, const char* first, const char* second) {
  STD_TORCH_CHECK(word == first || word == second, op, ": expected ", first, " or ", second, ", got ", word);
  return word == second;
}

int64_t packed_size(int64_t numel) {
  return ceil_div(numel, 8);
}

void check_mask(const char* op, const Tensor& tensor, const Tensor& mask) {
  check_same_device(op, tensor, mask);
  if (mask.scalar_type() == ScalarType::Byte) {
    STD_TORCH_CHECK(mask.dim() == 1 && mask.numel() == packed_size(tensor.numel()), op,
                    ": a packed mask has ", mask.numel(), " bytes for ", tensor.numel(), " entries");
    return;
  }
  check_type(op, mask, ScalarType::Bool);
  check_same_sizes(op, tensor, mask);
}

namespace {

const char* last_error_of_torch() {
  return torch_exception_get_what_without_backtrace != nullptr ? torch_exception_get_what_without_backtrace()
                                                               : "an allocation by torch failed";
}

// Large memory comes fresh from the system each time, and is taken over a page at a time by whoever writes it
// first: 4 KiB, or 2 MiB where asked for.
void ask_for_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, enough = 1 << 22;
  const auto first = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * tensor.element_size();
  if (tensor.is_cuda() || bytes < enough) return;
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: a refusal costs nothing
#else
  (void)tensor;
#endif
}

int32_t device_type_of(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

int32_t type_code_of(const Tensor& tensor) {
  int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

Tensor new_tensor_of(const Tensor& like, const Ints& sizes, int32_t type_code) {
  Ints strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  AtenTensorHandle made = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), type_code,
                               device_type_of(like), like.get_device_index(), &made);
  STD_TORCH_CHECK(error == TORCH_SUCCESS, "pruneops: no memory: ", last_error_of_torch());
  return Tensor(made);
}

// The same memory without what autograd knows of it.
Tensor plain(const Tensor& tensor) {
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      tensor.data_ptr(), tensor.dim(), tensor.sizes().data(), tensor.strides().data(), 0,
      type_code_of(tensor), device_type_of(tensor), tensor.get_device_index(), &made));
  return Tensor(made);
}

Tensor contiguous_copy(const Tensor& tensor) {
  const Ints sizes(tensor.sizes().begin(), tensor.sizes().end());
  Tensor copy = new_tensor_of(tensor, sizes, type_code_of(tensor));
  torch::stable::copy_(copy, plain(tensor));
  return copy;
}

}  // namespace

Tensor new_tensor(const Tensor& like, const Ints& sizes, ScalarType type) {
  return new_tensor_of(like, sizes, torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)));
}

Tensor new_output(const Tensor& like, const Ints& sizes, ScalarType type) {
  Tensor output = new_tensor(like, sizes, type);
  ask_for_huge_pages(output);
  return output;
}

Tensor new_output(const Tensor& like, const Ints& sizes) {
  Tensor output = new_tensor_of(like, sizes, type_code_of(like));
  ask_for_huge_pages(output);
  return output;
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : contiguous_copy(tensor);
}

const Tensor& contiguous_in(std::deque<Tensor>& copies, const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : copies.emplace_back(contiguous_copy(tensor));
}

void copy_back(const Tensor& given, const Tensor& work) {
  if (work.data_ptr() == given.data_ptr()) return;
  Tensor target = plain(given);
  torch::stable::copy_(target, work);
}

namespace {

// Whether the tensors have equal strides and their entries fill a stretch of memory without gaps or overlap.
bool share_dense_strides(const Tensors& tensors) {
  const auto sizes = tensors[0].sizes(), strides = tensors[0].strides();
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& tensor) {
    const auto others = tensor.strides();
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] != 1 && others[d] != strides[d]) return false;
    }
    return true;
  });
}

}  // namespace

FlatTensors::FlatTensors(Tensors tensors, Order order) : given_(tensors), work_(std::move(tensors)) {
  if (std::all_of(work_.begin(), work_.end(), [](const Tensor& tensor) { return tensor.is_contiguous(); }))
    return;
  if (order == Order::any && work_[0].numel() > 0 && share_dense_strides(work_)) return;
  for (Tensor& tensor : work_) tensor = as_contiguous(tensor);
}

void FlatTensors::commit(size_t written) {
  copy_back(given_[written], work_[written]);
}

namespace {

// The stride between kernel positions (dimensions 2 and up), if they can be walked with one stride.
std::optional<int64_t> kernel_stride(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::optional<int64_t> stride;
  int64_t expected = 0;
  for (size_t d = sizes.size(); d-- > 2;) {
    if (sizes[d] == 1) continue;
    if (stride && strides[d] != expected) return std::nullopt;
    if (!stride) stride = strides[d];
    expected = strides[d] * sizes[d];
  }
  return stride.value_or(0);
}

}  // namespace

MatrixView matrix_view(std::deque<Tensor>& copies, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() >= 2, "pruneops: blocks need at least 2 dimensions, got ", tensor.dim());
  const auto own = kernel_stride(tensor);
  const Tensor& work = own ? tensor : contiguous_in(copies, tensor);
  const auto sizes = work.sizes(), strides = work.strides();
  int64_t cols = 1;
  for (size_t d = 1; d < sizes.size(); ++d) cols *= sizes[d];
  return {work, Matrix{sizes[0], cols, sizes[1]},
          Strides{strides[0], strides[1], own ? *own : *kernel_stride(work)}};
}

Block block_of(const char* op, const Ints& block, const Matrix& matrix) {
  STD_TORCH_CHECK(block.size() == 2, op, ": a block has 2 sizes, got ", block.size());
  const auto extent = [](int64_t size, int64_t whole) {
    return size == -1 ? std::max<int64_t>(whole, 1) : size;
  };
  const Block resolved{extent(block[0], matrix.rows), extent(block[1], matrix.cols)};
  const bool divides = resolved.n > 0 && resolved.m > 0 && matrix.rows % resolved.n == 0 &&
                       (matrix.rows == 0 || matrix.cols % resolved.m == 0);
  STD_TORCH_CHECK(divides, op, ": block (", block[0], ", ", block[1], ") does not divide a matrix of ",
                  matrix.rows, " x ", matrix.cols);
  return resolved;
}

void check_grid(const char* op, const Tensor& tensor, int64_t rows, int64_t cols) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == cols, op, ": a tensor of ",
                  tensor.numel(), " entries is not of the shape of ", rows, " x ", cols, " blocks");
}

}  // namespace pruneops::ops
