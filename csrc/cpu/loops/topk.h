// The selections that the library offers: over a list of tensors, and over each row of one.
#pragma once

#include "bracket.h"
#include "select.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// All entries of a list, and whether one of its tensors is ranked in double.
struct Totals {
  int64_t entries;
  bool wide;

  Totals(const SelectTensor* tensors, int64_t count) : entries(0), wide(false) {
    for (int64_t i = 0; i < count; ++i) {
      entries += tensors[i].numel;
      wide |= tensors[i].wide();
    }
  }
};

// Below this, handing work to other threads takes longer than the work.
constexpr int64_t kThreadsFrom = 1 << 18;
constexpr Pool kAlone{1, nullptr};

// The scores of a list side by side. Those of one tensor that lie in memory as T stay there.
template <class T>
class ScoreArray {
 public:
  // For lists like this one, of `total` entries.
  ScoreArray(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric)
      : metric_(metric),
        in_place_(count == 1 && metric == Metric::stored && tensors->weight_dtype == own_dtype<T>()),
        made_(in_place_ ? 0 : total) {}

  const T* load(const SelectTensor* tensors, int64_t count) {
    if (in_place_) return static_cast<const T*>(tensors->weight);
    T* next = made_.data();
    for (int64_t i = 0; i < count; next += tensors[i++].numel) {
      copy_scores(tensors[i], metric_, 0, tensors[i].numel, next);
    }
    return made_.data();
  }

 private:
  Metric metric_;
  bool in_place_;
  Buffer<T> made_;
};

// Writes the mask of a tensor whose scores begin at `first` of those selected among.
template <class T>
[[gnu::flatten]] void write_selected(const ArraySelection<T>& selection, const T* scores, int64_t first,
                                     const SelectTensor& tensor) {
  for (int64_t at = 0; at < tensor.numel; at += kWord) {
    const int64_t n = min64(kWord, tensor.numel - at);
    const uint64_t kept = selection.kept(scores, first + at, n);
    put_words(tensor, at, n, &kept);
  }
}

// Few entries, whose scores fit a cache: no pass over memory is saved.
template <class T>
void mask_few(const SelectTensor* tensors, int64_t count, int64_t total, const SelectRule& rule) {
  ScoreArray<T> array(tensors, count, total, rule.metric);
  ArraySearch<T> search(total, fine_bits_of<T>(tensors, count, rule.metric));
  const T* scores = array.load(tensors, count);
  const ArraySelection<T> selection(search, scores, rule.k, rule.prune_ties);
  int64_t first = 0;
  for (int64_t i = 0; i < count; first += tensors[i++].numel) {
    write_selected(selection, scores, first, tensors[i]);
  }
}

// A bracket to pass over a list with, and what the pass may collect inside of it.
template <class K>
struct PassPlan {
  Bracket<K> bracket;
  int64_t capacity;
};

template <class T, class Keys>
PassPlan<Key<T>> plan_by_sample(const SelectTensor* tensors, int64_t count, int64_t total, const Keys& source,
                                int64_t k, const Pool& pool) {
  const int64_t size = sample_size(total, most_sampled(total));
  return {sample_bracket<T>(tensors, count, total, source, k, size, pool), bracket_capacity(size, total)};
}

// Constant memory, and for certain: the sampled bracket is narrowed by counting reads.
template <class T, class Keys>
PassPlan<Key<T>> plan_by_counts(const SelectTensor* tensors, int64_t count, int64_t total, SelectTiles& tiles,
                                const Keys& source, int64_t k, const Pool& pool) {
  const int64_t size = sample_size(total, kFewSampled);
  const auto sampled = sample_bracket<T>(tensors, count, total, source, k, size, pool);
  return {narrow_bracket<T>(tensors, tiles, source, k, sampled, kFewCollected, pool), kFewCollected};
}

// Calls pass(plan) with a sampled bracket and, where that fails or may not be used, with a counted one.
template <class T, class Pass>
void pass_over(const SelectTensor* tensors, int64_t count, int64_t total, SelectTiles& tiles,
               const SelectRule& rule, const Pool& pool, const Pass& pass) {
  const MetricKeys<T> source{tensors, rule.metric};
  if (!rule.strict && pass(source, plan_by_sample<T>(tensors, count, total, source, rule.k, pool))) return;
  pass(source, plan_by_counts<T>(tensors, count, total, tiles, source, rule.k, pool));
}

// Prunes the k lowest, 0 < k < total, in one pass over the keys of `source`; false where the pass failed.
template <class T, class Keys>
bool mask_by_pass(const SelectTensor* tensors, SelectTiles& tiles, const Keys& source, const SelectRule& rule,
                  const PassPlan<Key<T>>& plan, const Pool& pool) {
  BracketSelection<T, Keys> selection(tensors, tiles, source, rule.k, plan.bracket, plan.capacity, pool);
  if (!selection.run(true)) return false;
  selection.finish_masks(rule.prune_ties);
  return true;
}

template <class T>
void topk_mask_as(const SelectTensor* tensors, int64_t count, int64_t total, const SelectRule& rule,
                  const Pool& pool) {
  if (total < kBracketFrom) return mask_few<T>(tensors, count, total, rule);
  SelectTiles tiles(tensors, count);
  const Pool& threads = total < kThreadsFrom ? kAlone : pool;
  pass_over<T>(tensors, count, total, tiles, rule, threads, [&](const auto& source, const auto& plan) {
    if constexpr (IsSame<T, float>::value) {
      if (Bfloat16Keys::serve(tensors, count, rule.metric)) {
        return mask_by_pass<T>(tensors, tiles, Bfloat16Keys{source}, rule, plan, threads);
      }
    }
    return mask_by_pass<T>(tensors, tiles, source, rule, plan, threads);
  });
}

void fill_masks(const SelectTensor* tensors, int64_t count, bool keep, const Pool& pool) {
  SelectTiles(tensors, count)
      .for_all(pool, [&](const SelectTensor& t, int64_t begin, int64_t length, int64_t) {
        for (int64_t at = begin; at < begin + length; at += kChunk) {
          const int64_t n = min64(kChunk, begin + length - at);
          put_mask(t, at, n, [&](uint8_t* mask) { memset(mask, keep, static_cast<size_t>(n)); });
        }
      });
}

void topk_mask(const SelectTensor* tensors, int64_t count, const SelectRule& rule, const Pool& pool) {
  const Totals totals(tensors, count);
  if (rule.k == 0 || rule.k == totals.entries) return fill_masks(tensors, count, rule.k == 0, pool);
  totals.wide ? topk_mask_as<double>(tensors, count, totals.entries, rule, pool)
              : topk_mask_as<float>(tensors, count, totals.entries, rule, pool);
}

template <class T>
bool update_and_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count, int64_t total,
                     const UpdateRule& update, const SelectRule& select, const Pool& pool) {
  SelectTiles tiles(tensors, count);
  const UpdatedKeys<T> source{updates, update, tensors};
  const auto plan = plan_by_sample<T>(tensors, count, total, source, select.k, pool);
  return mask_by_pass<T>(tensors, tiles, source, select, plan, pool);
}

void update_topk_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                      const UpdateRule& update, const SelectRule& select, const Pool& pool) {
  const Totals totals(tensors, count);
  const bool fused =
      select.k > 0 && select.k < totals.entries && totals.entries >= kBracketFrom && !update.overflowed();
  if (!fused) update_scores(updates, count, update, pool);
  const bool done =
      fused &&
      (totals.wide ? update_and_mask<double>(updates, tensors, count, totals.entries, update, select, pool)
                   : update_and_mask<float>(updates, tensors, count, totals.entries, update, select, pool));
  // A pass that failed has updated the scores all the same.
  if (!done) topk_mask(tensors, count, select, pool);
}

template <class T>
Key<T> kth_key(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric, int64_t k,
               const Pool& pool) {
  if (total < kBracketFrom) {
    ScoreArray<T> array(tensors, count, total, metric);
    return ArraySearch<T>(total, fine_bits_of<T>(tensors, count, metric))
        .kth_key(array.load(tensors, count), k);
  }
  SelectTiles tiles(tensors, count);
  Key<T> key = 0;
  const SelectRule rule{metric, k, false, false};
  pass_over<T>(tensors, count, total, tiles, rule, pool, [&](const auto& source, const auto& plan) {
    BracketSelection<T, MetricKeys<T>> selection(tensors, tiles, source, k, plan.bracket, plan.capacity,
                                                 pool);
    const bool found = selection.run(false);
    key = selection.threshold();
    return found;
  });
  return key;
}

template <class T>
void kth_value_as(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric, int64_t k,
                  void* value, Dtype dtype, const Pool& pool) {
  const T score = key_to_score<T>(kth_key<T>(tensors, count, total, metric, k, pool));
  store_chunk(value, dtype, 0, 1, &score);
}

void kth_value(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value, Dtype dtype,
               const Pool& pool) {
  const Totals totals(tensors, count);
  totals.wide ? kth_value_as<double>(tensors, count, totals.entries, metric, k, value, dtype, pool)
              : kth_value_as<float>(tensors, count, totals.entries, metric, k, value, dtype, pool);
}

// One row of a tensor as a tensor; packed rows begin with a byte. Rows divide the last dimension, so that the
// norms of a row are consecutive.
SelectTensor row_of(const SelectTensor& t, int64_t index, int64_t row) {
  SelectTensor part = t;
  const int64_t begin = index * row;
  part.weight = advance(t.weight, t.weight_dtype, begin);
  if (t.grad != nullptr) part.grad = advance(t.grad, t.grad_dtype, begin);
  if (t.norm != nullptr) part.norm = t.norm + begin % t.cols;
  part.mask = t.mask + (t.packed ? begin / 8 : begin);
  part.numel = part.cols = row;
  return part;
}

// Rows whose scores fit a cache.
template <class T>
void mask_short_rows(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, int64_t first,
                     int64_t last) {
  ScoreArray<T> array(&tensor, 1, row, metric);
  ArraySearch<T> search(row, fine_bits<T>(metric, tensor.weight_dtype));
  for (int64_t r = first; r < last; ++r) {
    const SelectTensor part = row_of(tensor, r, row);
    const T* scores = array.load(&part, 1);
    write_selected(ArraySelection<T>(search, scores, k, false), scores, 0, part);
  }
}

// Rows beyond a cache, each by the threads of a pool.
template <class T>
void mask_long_rows(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, int64_t first,
                    int64_t last, const Pool& pool) {
  for (int64_t r = first; r < last; ++r) {
    const SelectTensor part = row_of(tensor, r, row);
    topk_mask_as<T>(&part, 1, row, {metric, k, false, false}, pool);
  }
}

template <class T>
void mask_rows(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool) {
  const int64_t rows = tensor.numel / row;
  const bool is_long = row >= kBracketFrom;
  if (is_long && rows < pool.threads) return mask_long_rows<T>(tensor, metric, row, k, 0, rows, pool);
  parallel(pool, rows, [&](int64_t first, int64_t last) {
    is_long ? mask_long_rows<T>(tensor, metric, row, k, first, last, kAlone)
            : mask_short_rows<T>(tensor, metric, row, k, first, last);
  });
}

void row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool) {
  if (tensor.numel == 0) return;
  if (k == 0 || k == row) return fill_masks(&tensor, 1, k == 0, pool);
  tensor.wide() ? mask_rows<double>(tensor, metric, row, k, pool)
                : mask_rows<float>(tensor, metric, row, k, pool);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
