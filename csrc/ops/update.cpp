// update_scores_, update_block_scores_ and block_reduce.
#include "backend.h"
#include "ops.h"

namespace pruneops::ops {
namespace {

const float* scalar_pointer(const char* op, const std::optional<Tensor>& scalar, const Tensor& like) {
  if (!scalar) return nullptr;
  check_type(op, *scalar, torch::headeronly::ScalarType::Float);
  STD_TORCH_CHECK(scalar->numel() == 1, op, ": grad_scale and found_inf have one element");
  check_same_device(op, like, *scalar);
  return static_cast<const float*>(scalar->data_ptr());
}

// The inputs of entry i that a metric reads; a tensor that it does not read is absent.
struct Inputs {
  const Tensor* weight;
  const Tensor* grad;
};

Inputs inputs_of(Metric metric, const Tensors& weights, const Tensors& grads, size_t i) {
  return {reads_weight(metric) ? &weights[i] : nullptr, reads_grad(metric) ? &grads[i] : nullptr};
}

void check_lists(const char* op, Metric metric, const Tensors& scores, const Tensors& weights,
                 const Tensors& grads) {
  STD_TORCH_CHECK(!scores.empty(), op, ": no scores");
  STD_TORCH_CHECK(metric != Metric::wanda, op, ": wanda is a metric of selections");
  if (reads_weight(metric)) check_same_length(op, scores, weights);
  if (reads_grad(metric)) check_same_length(op, scores, grads);
}

constexpr const char* kUpdate = "update_scores_";
constexpr const char* kBlockUpdate = "update_block_scores_";

// The checked entries of an elementwise update, and what they point into.
class Updates {
 public:
  Updates(const char* op, const UpdateRule& rule, const Tensors& scores, const Tensors& weights,
          const Tensors& grads, Order order) {
    STD_TORCH_CHECK(rule.metric != Metric::product, op, ": a metric of blocks");
    entries_.reserve(scores.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      const auto [weight, grad] = inputs_of(rule.metric, weights, grads, i);
      check_written(op, scores[i]);
      bool contiguous = scores[i].is_contiguous();
      for (const Tensor* tensor : {weight, grad}) {
        if (!tensor) continue;
        check_same_sizes(op, scores[i], *tensor);
        check_same_device(op, scores[0], *tensor);
        contiguous &= tensor->is_contiguous();
      }
      check_same_device(op, scores[0], scores[i]);
      entries_.push_back(contiguous ? entry_of(scores[i], weight, grad)
                                    : flat_entry(scores[i], weight, grad, order));
    }
  }

  const UpdateTensor* entries() const { return entries_.data(); }
  int64_t count() const { return static_cast<int64_t>(entries_.size()); }
  void commit() {
    for (FlatTensors& flat : flats_) flat.commit(0);
  }

 private:
  static UpdateTensor entry_of(const Tensor& score, const Tensor* weight, const Tensor* grad) {
    UpdateTensor entry{score.data_ptr(), nullptr,    nullptr,   score.numel(),
                       dtype_of(score),  Dtype::f32, Dtype::f32};
    if (weight) entry.weight = weight->data_ptr(), entry.weight_dtype = dtype_of(*weight);
    if (grad) entry.grad = grad->data_ptr(), entry.grad_dtype = dtype_of(*grad);
    return entry;
  }
  // Of tensors that have to be brought into one order.
  UpdateTensor flat_entry(const Tensor& score, const Tensor* weight, const Tensor* grad, Order order) {
    Tensors together{score};
    if (weight) together.push_back(*weight);
    if (grad) together.push_back(*grad);
    const size_t last = together.size() - 1;
    const FlatTensors& flat = flats_.emplace_back(std::move(together), order);
    return entry_of(flat[0], weight ? &flat[1] : nullptr, grad ? &flat[last] : nullptr);
  }

  std::deque<FlatTensors> flats_;  // those that are not contiguous
  std::vector<UpdateTensor> entries_;
};

UpdateRule update_rule(const char* op, const std::string& metric, double alpha, double beta,
                       const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                       bool skip_nonfinite, const Tensor& like) {
  return {metric_of(metric),
          Reduce::sum,
          alpha,
          beta,
          scalar_pointer(op, grad_scale, like),
          scalar_pointer(op, found_inf, like),
          skip_nonfinite};
}

}  // namespace

void update_scores_(Tensors scores, Tensors weights, Tensors grads, Word metric, double alpha, double beta,
                    std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, bool skip_nonfinite) {
  check_lists(kUpdate, metric_of(metric), scores, weights, grads);
  const UpdateRule rule =
      update_rule(kUpdate, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite, scores[0]);
  Updates updates(kUpdate, rule, scores, weights, grads, Order::any);
  run_on(
      kUpdate, scores[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.update_scores(updates.entries(), updates.count(), rule, pool);
      },
      [&](auto stream) { return cuda::update_scores(updates.entries(), updates.count(), rule, stream); });
  updates.commit();
}

void update_topk_mask_(Tensors scores, Tensors weights, Tensors grads, Word metric, double alpha, double beta,
                       std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf, bool skip_nonfinite,
                       Tensors out, int64_t keep, Word ties) {
  constexpr const char* op = "update_topk_mask_";
  check_lists(op, metric_of(metric), scores, weights, grads);
  check_same_length(op, out, scores);
  const UpdateRule rule =
      update_rule(op, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite, scores[0]);
  // Ties are broken in row-major order, so the scores must be in it.
  Updates updates(op, rule, scores, weights, grads, Order::row_major);
  std::vector<SelectTensor> entries;
  std::deque<FlatTensors> masks;
  entries.reserve(out.size());
  int64_t total = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    check_type(op, out[i], out[0].scalar_type());
    check_mask(op, scores[i], out[i]);
    check_written(op, out[i]);
    SelectTensor& entry = entries.emplace_back(stored_scores(updates.entries()[i]));
    const Tensor& mask =
        out[i].is_contiguous() ? out[i] : masks.emplace_back(Tensors{out[i]}, Order::row_major)[0];
    entry.mask = static_cast<uint8_t*>(mask.data_ptr());
    entry.packed = out[i].scalar_type() == torch::headeronly::ScalarType::Byte;
    total += entry.numel;
  }
  STD_TORCH_CHECK(keep >= 0 && keep <= total, op, ": keep must be between 0 and ", total, ", got ", keep);
  const SelectRule select{Metric::stored, total - keep, is_second_of(op, ties, "exact", "threshold"), false};
  run_on(
      op, scores[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.update_topk_mask(updates.entries(), entries.data(), updates.count(), rule, select, pool);
      },
      [&](auto stream) {
        const Tensor scratch =
            scratch_like(out[0], cuda::select_scratch_bytes(entries.data(), updates.count()));
        return cuda::update_topk_mask(updates.entries(), entries.data(), updates.count(), rule, select,
                                      scratch.data_ptr(), stream);
      });
  updates.commit();
  for (FlatTensors& mask : masks) mask.commit(0);
}

namespace {

// Block scores of one list of (score, weight, grad).
void update_blocks(const char* op, Tensors& scores, const Tensors& weights, const Tensors& grads,
                   const Ints& block, const UpdateRule& rule) {
  std::deque<Tensor> copies;
  std::vector<std::pair<size_t, Tensor>> written;  // scores, and what is written in their place
  std::vector<BlockTensor> entries;
  entries.reserve(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto [weight, grad] = inputs_of(rule.metric, weights, grads, i);
    if (weight && grad) check_same_sizes(op, *weight, *grad);
    check_written(op, scores[i]);
    check_same_device(op, scores[0], scores[i]);
    const Tensor& score = contiguous_in(copies, scores[i]);
    if (&score != &scores[i]) written.emplace_back(i, score);
    BlockTensor entry{};
    entry.score = score.data_ptr();
    entry.score_dtype = dtype_of(score);
    for (const Tensor* input : {weight, grad}) {
      if (!input) continue;
      check_same_device(op, scores[0], *input);
      const MatrixView view = matrix_view(copies, *input);
      entry.matrix = view.matrix;
      (input == weight ? entry.weight : entry.grad) = view.work.data_ptr();
      (input == weight ? entry.weight_strides : entry.grad_strides) = view.strides;
      (input == weight ? entry.weight_dtype : entry.grad_dtype) = dtype_of(*input);
    }
    entry.block = block_of(op, block, entry.matrix);
    check_grid(op, scores[i], entry.grid_rows(), entry.grid_cols());
    if (entry.matrix.rows * entry.matrix.cols > 0) entries.push_back(entry);
  }
  if (entries.empty()) return;
  const auto count = static_cast<int64_t>(entries.size());
  run_on(
      op, scores[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.update_block_scores(entries.data(), count, rule, pool);
      },
      [&](auto stream) {
        const Tensor scratch = scratch_like(scores[0], cuda::block_scratch_bytes(entries.data(), count));
        return cuda::update_block_scores(entries.data(), count, rule, scratch.data_ptr(), stream);
      });
  for (const auto& [i, work] : written) copy_back(scores[i], work);
}

}  // namespace

void update_block_scores_(Tensors scores, Tensors weights, Tensors grads, Ints block, Word metric,
                          Word reduce, double alpha, double beta, std::optional<Tensor> grad_scale,
                          std::optional<Tensor> found_inf, bool skip_nonfinite) {
  const Metric element = metric_of(metric);
  check_lists(kBlockUpdate, element, scores, weights, grads);
  const UpdateRule rule{element,
                        reduce_of(element == Metric::product ? metric : reduce),
                        alpha,
                        beta,
                        scalar_pointer(kBlockUpdate, grad_scale, scores[0]),
                        scalar_pointer(kBlockUpdate, found_inf, scores[0]),
                        skip_nonfinite};
  update_blocks(kBlockUpdate, scores, weights, grads, block, rule);
}

Tensor block_reduce(Tensor score, Ints block, Word reduce) {
  using torch::headeronly::ScalarType;
  std::deque<Tensor> copies;
  const Matrix matrix = matrix_view(copies, score).matrix;
  const Block size = block_of("block_reduce", block, matrix);
  const Ints grid = {matrix.rows / size.n, matrix.cols / size.m};
  const auto type = dtype_of(score) == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor reduced = new_output(score, grid, type);
  block_reduce_out(score, std::move(block), std::move(reduce), reduced);
  return reduced;
}

void block_reduce_out(Tensor score, Ints block, Word reduce, Tensor out) {
  const UpdateRule rule{Metric::stored, reduce_of(reduce), 0.0, 1.0, nullptr, nullptr, false};
  Tensors scores{std::move(out)};
  update_blocks("block_reduce", scores, {score}, {}, block, rule);
}

}  // namespace pruneops::ops
