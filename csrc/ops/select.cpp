// kth_value, count_digits, topk_mask, row_topk_mask and nm_mask.
#include <algorithm>

#include "../math/radix.h"
#include "backend.h"
#include "ops.h"

namespace pruneops::ops {
namespace {

using torch::headeronly::ScalarType;

Metric select_metric(const std::optional<Word>& name) {
  return name ? metric_of(*name) : Metric::stored;
}

// The inputs of a selection in row-major order, and the masks that it writes. Where the kernels cannot write
// packed masks, bytes are written and then packed.
class Inputs {
 public:
  Inputs(const char* op, const Tensors& scores, Metric metric, const Tensors& grads, const Tensors& norms,
         const Tensors& masks, bool packs = true) {
    STD_TORCH_CHECK(!scores.empty(), op, ": no scores");
    STD_TORCH_CHECK(metric != Metric::product, op, ": a metric of blocks");
    if (reads_grad(metric)) check_same_length(op, grads, scores);
    if (metric == Metric::wanda) check_same_length(op, norms, scores);
    entries_.reserve(scores.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      SelectTensor entry{};
      check_same_device(op, scores[0], scores[i]);
      entry.weight = contiguous_in(copies_, scores[i]).data_ptr();
      entry.weight_dtype = dtype_of(scores[i]);
      entry.numel = scores[i].numel();
      entry.cols = scores[i].dim() > 0 ? scores[i].size(scores[i].dim() - 1) : 1;
      if (reads_grad(metric)) add_grad(op, entry, scores[i], grads[i]);
      if (metric == Metric::wanda) add_norm(op, entry, scores[i], norms[i], i);
      if (!masks.empty()) {
        check_type(op, masks[i], masks[0].scalar_type());
        add_mask(op, entry, scores[i], masks[i], packs);
      }
      total_ += entry.numel;
      entries_.push_back(entry);
    }
  }

  const SelectTensor* entries() const { return entries_.data(); }
  int64_t count() const { return static_cast<int64_t>(entries_.size()); }
  int64_t total() const { return total_; }

  void commit() {
    for (auto& [given, work] : written_) {
      const bool pack = given.scalar_type() != work.scalar_type();
      copy_back(given, pack ? pack_mask(work) : work);
    }
  }

 private:
  void add_grad(const char* op, SelectTensor& entry, const Tensor& score, const Tensor& grad) {
    check_same_sizes(op, score, grad);
    check_same_device(op, score, grad);
    entry.grad = contiguous_in(copies_, grad).data_ptr();
    entry.grad_dtype = dtype_of(grad);
  }

  void add_norm(const char* op, SelectTensor& entry, const Tensor& score, const Tensor& norm, size_t i) {
    STD_TORCH_CHECK(norm.dim() == 1 && norm.numel() == entry.cols, op, ": input_norm[", i, "] has ",
                    norm.numel(), " entries for ", entry.cols, " columns");
    check_type(op, norm, ScalarType::Float);
    check_same_device(op, score, norm);
    entry.norm = static_cast<const float*>(contiguous_in(copies_, norm).data_ptr());
  }

  void add_mask(const char* op, SelectTensor& entry, const Tensor& score, const Tensor& mask, bool packs) {
    check_mask(op, score, mask);
    check_written(op, mask);
    const bool packed = mask.scalar_type() == ScalarType::Byte;
    entry.packed = packed && packs;
    if (mask.is_contiguous() && packed == entry.packed) {
      entry.mask = static_cast<uint8_t*>(mask.data_ptr());
      return;
    }
    const Tensor work =
        packed && !packs ? new_tensor(mask, Ints{score.numel()}, ScalarType::Bool) : as_contiguous(mask);
    written_.emplace_back(mask, work);
    entry.mask = static_cast<uint8_t*>(work.data_ptr());
  }

  std::vector<SelectTensor> entries_;
  std::deque<Tensor> copies_;
  std::vector<std::pair<Tensor, Tensor>> written_;  // masks as given, and what is written in their place
  int64_t total_ = 0;
};

ScalarType value_type(const Tensors& scores, Metric metric, const Tensors& grads) {
  const auto is_double = [](const Tensor& t) { return t.scalar_type() == ScalarType::Double; };
  if (std::any_of(scores.begin(), scores.end(), is_double)) return ScalarType::Double;
  if (metric != Metric::stored) {
    return std::any_of(grads.begin(), grads.end(), is_double) ? ScalarType::Double : ScalarType::Float;
  }
  const ScalarType first = scores[0].scalar_type();
  const bool same =
      std::all_of(scores.begin(), scores.end(), [&](const Tensor& t) { return t.scalar_type() == first; });
  return same ? first : ScalarType::Float;
}

}  // namespace

Tensor count_digits(Tensors scores, Tensor prefix, int64_t round, std::optional<Word> metric, Tensors grads,
                    Tensors input_norms) {
  constexpr const char* op = "count_digits";
  const Metric how = select_metric(metric);
  const Inputs inputs(op, scores, how, grads, input_norms, {});
  const auto is_wide = [](const SelectTensor& t) { return t.wide(); };
  const bool wide = std::any_of(inputs.entries(), inputs.entries() + inputs.count(), is_wide);
  const int64_t rounds = wide ? WideRadix<uint64_t>::kRounds : WideRadix<uint32_t>::kRounds;
  STD_TORCH_CHECK(round >= 0 && round < rounds, op, ": round must be between 0 and ", rounds - 1, ", got ",
                  round);
  check_type(op, prefix, ScalarType::Long);
  STD_TORCH_CHECK(prefix.numel() == 1, op, ": prefix must have one element, got ", prefix.numel());
  check_same_device(op, prefix, scores);
  const Ints shape = {inputs.count(), WideRadix<uint32_t>::kBins};
  Tensor counts = new_tensor(prefix, shape, ScalarType::Long);
  const auto* decided = static_cast<const int64_t*>(prefix.data_ptr());
  auto* target = static_cast<int64_t*>(counts.data_ptr());
  const int digit = static_cast<int>(round);
  run_on(
      op, prefix,
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.count_digits(inputs.entries(), inputs.count(), how, decided, digit, wide, target, pool);
      },
      [&](auto stream) {
        return cuda::count_digits(inputs.entries(), inputs.count(), how, decided, digit, wide, target,
                                  stream);
      });
  return counts;
}

Tensor kth_value(Tensors scores, int64_t k, std::optional<Word> metric, Tensors grads, Tensors input_norms) {
  constexpr const char* op = "kth_value";
  const Metric how = select_metric(metric);
  const Inputs inputs(op, scores, how, grads, input_norms, {});
  STD_TORCH_CHECK(k >= 1 && k <= inputs.total(), op, ": k must be between 1 and ", inputs.total(), ", got ",
                  k);
  Tensor value = new_tensor(scores[0], Ints{}, value_type(scores, how, grads));
  const Dtype dtype = dtype_of(value);
  run_on(
      op, scores[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.kth_value(inputs.entries(), inputs.count(), how, k, value.data_ptr(), dtype, pool);
      },
      [&](auto stream) {
        const Tensor scratch =
            scratch_like(value, cuda::select_scratch_bytes(inputs.entries(), inputs.count()));
        return cuda::kth_value(inputs.entries(), inputs.count(), how, k, value.data_ptr(), dtype,
                               scratch.data_ptr(), stream);
      });
  return value;
}

void topk_mask(Tensors scores, Tensors out, int64_t keep, Word ties, bool strict, std::optional<Word> metric,
               Tensors grads, Tensors input_norms) {
  constexpr const char* op = "topk_mask";
  check_same_length(op, out, scores);
  const Metric how = select_metric(metric);
  Inputs inputs(op, scores, how, grads, input_norms, out);
  STD_TORCH_CHECK(keep >= 0 && keep <= inputs.total(), op, ": keep must be between 0 and ", inputs.total(),
                  ", got ", keep);
  const SelectRule rule{how, inputs.total() - keep, is_second_of(op, ties, "exact", "threshold"), strict};
  run_on(
      op, scores[0],
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        kernels.topk_mask(inputs.entries(), inputs.count(), rule, pool);
      },
      [&](auto stream) {
        const Tensor scratch =
            scratch_like(out[0], cuda::select_scratch_bytes(inputs.entries(), inputs.count(), rule.strict));
        return cuda::topk_mask(inputs.entries(), inputs.count(), rule, scratch.data_ptr(), stream);
      });
  inputs.commit();
}

namespace {

Tensors list_of(const std::optional<Tensor>& tensor) {
  return tensor ? Tensors{*tensor} : Tensors{};
}

// Keeps n of each m consecutive entries: in registers for small groups, as rows for larger ones.
void keep_in_groups(const char* op, Inputs& inputs, const Tensor& score, Metric metric, int64_t n,
                    int64_t m) {
  if (inputs.total() == 0) return;
  const SelectTensor& entry = *inputs.entries();
  STD_TORCH_CHECK(m > 0 && entry.cols % m == 0, op, ": rows of ", entry.cols, " entries do not divide into ",
                  m);
  STD_TORCH_CHECK(n >= 0 && n <= m, op, ": cannot keep ", n, " of ", m);
  const bool small = m <= kMaxGroup;
  run_on(
      op, score,
      [&](const cpu::Kernels& kernels, const cpu::Pool& pool) {
        small ? kernels.nm_mask(entry, metric, n, m, pool)
              : kernels.row_topk_mask(entry, metric, m, m - n, pool);
      },
      [&](auto stream) {
        if (small) return cuda::nm_mask(entry, metric, n, m, stream);
        const Tensor scratch = scratch_like(score, cuda::row_scratch_bytes(entry, m));
        return cuda::row_topk_mask(entry, metric, m, m - n, scratch.data_ptr(), stream);
      });
  inputs.commit();
}

}  // namespace

void row_topk_mask(Tensor score, Tensor out, int64_t keep, std::optional<Word> metric,
                   std::optional<Tensor> grad, std::optional<Tensor> input_norm) {
  constexpr const char* op = "row_topk_mask";
  const Metric how = select_metric(metric);
  const int64_t row = score.dim() > 0 ? score.size(score.dim() - 1) : 1;
  Inputs inputs(op, {score}, how, list_of(grad), list_of(input_norm), {out}, row % 8 == 0);
  keep_in_groups(op, inputs, score, how, keep, row);
}

void nm_mask(Tensor score, Tensor out, int64_t n, int64_t m, std::optional<Word> metric,
             std::optional<Tensor> grad, std::optional<Tensor> input_norm) {
  constexpr const char* op = "nm_mask";
  const Metric how = select_metric(metric);
  const bool packs = m > 0 && (m % 8 == 0 || 8 % m == 0);
  Inputs inputs(op, {score}, how, list_of(grad), list_of(input_norm), {out}, packs);
  keep_in_groups(op, inputs, score, how, n, m);
}

}  // namespace pruneops::ops
