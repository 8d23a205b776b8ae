// From torch tensors to what the kernels take. Whatever is wrong with an argument is refused here, before
// anything is written; the Python API checks only where one is refused, to say which and why.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "../math/tensors.h"
#include "word.h"

namespace pruneops::ops {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

Dtype dtype_of(const Tensor& tensor);
Metric metric_of(const std::string& name);
Reduce reduce_of(const std::string& name);

// A tensor to write, which is no expanded view: all along one of its dimensions would be the same memory.
void check_written(const char* op, const Tensor& tensor);
void check_same_length(const char* op, const Tensors& a, const Tensors& b);
void check_same_sizes(const char* op, const Tensor& a, const Tensor& b);
void check_same_device(const char* op, const Tensor& first, const Tensor& other);
void check_same_device(const char* op, const Tensor& first, const Tensors& others);
// One of two words, and whether it is the second.
bool is_second_of(const char* op, const std::string& word, const char* first, const char* second);
// Bytes of the packed mask of so many entries.
int64_t packed_size(int64_t numel);
// A mask of the tensor's shape, or the packed one of its number of entries, on its device.
void check_mask(const char* op, const Tensor& tensor, const Tensor& mask);
void check_type(const char* op, const Tensor& tensor, torch::headeronly::ScalarType type);

// An uninitialised tensor of these sizes on the device of `like`, without the two microseconds of a call
// through torch's boxed dispatcher. What torch says where it finds no memory is in the error.
Tensor new_tensor(const Tensor& like, const Ints& sizes, torch::headeronly::ScalarType type);
// The same, in memory that is fast to write for the first time.
Tensor new_output(const Tensor& like, const Ints& sizes, torch::headeronly::ScalarType type);
// The same of the dtype of `like`, also of one that torch's header does not know.
Tensor new_output(const Tensor& like, const Ints& sizes);

// The tensor itself where it is contiguous, or a copy. Copies in and out know nothing of autograd, which
// would refuse to write to a parameter, or to what was made in inference mode.
Tensor as_contiguous(const Tensor& tensor);
// The same, with a copy kept by `copies` for as long as it is worked on.
const Tensor& contiguous_in(std::deque<Tensor>& copies, const Tensor& tensor);
// Writes a contiguous copy back to the tensor that it was made from; nothing where no copy was made.
void copy_back(const Tensor& given, const Tensor& work);

// Tensors of one entry that are worked on in memory order: if all have the same strides without gaps they are
// taken as they are (unless the order must be row-major); otherwise as contiguous copies, and commit() copies
// a written one back.
enum class Order { any, row_major };
class FlatTensors {
 public:
  explicit FlatTensors(Tensors tensors, Order order = Order::any);
  const Tensor& operator[](size_t i) const { return work_[i]; }
  void commit(size_t written);

 private:
  Tensors given_;
  Tensors work_;
};

// A tensor seen as a matrix, (R, C) or conv (O, I, k...) as (O, k... * I): the given one, or a contiguous
// copy in `copies` where strides do not allow that.
struct MatrixView {
  const Tensor& work;
  Matrix matrix;
  Strides strides;
};
MatrixView matrix_view(std::deque<Tensor>& copies, const Tensor& tensor);

// A block of the op, -1 standing for the whole extent (an empty one counts as 1); checked to divide the
// matrix.
Block block_of(const char* op, const Ints& block, const Matrix& matrix);
// One entry for each block of a matrix.
void check_grid(const char* op, const Tensor& tensor, int64_t rows, int64_t cols);

}  // namespace pruneops::ops
