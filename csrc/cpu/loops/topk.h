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

// Prunes the k lowest, 0 < k < total, in one pass over the keys of `source`; false where the pass failed.
template <class T, class Keys>
bool mask_by_bracket(const SelectTensor* tensors, int64_t count, SelectTiles& tiles, int64_t total,
                     const Keys& source, int64_t k, bool prune_ties, const Pool& pool) {
  BracketSelection<T, Keys> selection(tensors, count, tiles, total, source, k, pool);
  if (!selection.run(true)) return false;
  selection.finish_masks(prune_ties);
  return true;
}

// Below this, handing work to other threads takes longer than the work.
constexpr int64_t kThreadsFrom = 1 << 18;
constexpr Pool kAlone{1, nullptr};

// Keys in an array: selects, and finds the place from which ties are pruned.
template <class K>
struct ArraySelection {
  K threshold;
  int64_t cut;

  // Prunes the k lowest of n keys, 0 < k < n; `keys` has room for n more.
  ArraySelection(K* keys, int64_t n, int64_t k, bool prune_ties) {
    const auto selection = select_in_array(keys, n, k, keys + n);
    int64_t kept = prune_ties ? 0 : selection.ties_kept();
    threshold = selection.prefix;
    cut = kept == selection.equal ? n : 0;
    for (; cut < n && kept > 0; ++cut) kept -= keys[cut] == threshold;
  }
};

template <class T>
void keys_of(const SelectTensor& tensor, Metric metric, Key<T>* keys) {
  for (int64_t done = 0; done < tensor.numel; done += kChunk) {
    key_chunk<T>(tensor, metric, done, min64(kChunk, tensor.numel - done), keys + done);
  }
}

// Few entries, whose keys fit a cache: no sample is worth its time.
template <class T>
void mask_few(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric, int64_t k,
              bool prune_ties) {
  Buffer<Key<T>> keys(2 * total);
  int64_t at = 0;
  for (int64_t i = 0; i < count; at += tensors[i++].numel) keys_of<T>(tensors[i], metric, keys.data() + at);
  const ArraySelection<Key<T>> selection(keys.data(), total, k, prune_ties);
  at = 0;
  for (int64_t i = 0; i < count; at += tensors[i++].numel) {
    write_mask(keys.data() + at, tensors[i].numel, selection.threshold, selection.cut - at,
               reinterpret_cast<bool*>(tensors[i].mask));
  }
}

template <class T>
void topk_mask_as(const SelectTensor* tensors, int64_t count, int64_t total, const SelectRule& rule,
                  const Pool& pool) {
  if (total < kBracketFrom) {
    return mask_few<T>(tensors, count, total, rule.metric, rule.k, rule.prune_ties);
  }
  SelectTiles tiles(tensors, count);
  const MetricKeys<T> source{tensors, rule.metric};
  const Pool& threads = total < kThreadsFrom ? kAlone : pool;
  if (!mask_by_bracket<T>(tensors, count, tiles, total, source, rule.k, rule.prune_ties, threads)) {
    mask_by_radix<T>(tiles, rule.metric, rule.k, rule.prune_ties, threads);
  }
}

void fill_masks(const SelectTensor* tensors, int64_t count, bool keep, const Pool& pool) {
  SelectTiles(tensors, count)
      .for_all(pool, [&](const SelectTensor& t, int64_t begin, int64_t length, int64_t) {
        memset(t.mask + begin, keep, static_cast<size_t>(length));
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
  return mask_by_bracket<T>(tensors, count, tiles, total, source, select.k, select.prune_ties, pool);
}

void update_topk_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                      const UpdateRule& update, const SelectRule& select, const Pool& pool) {
  const Totals totals(tensors, count);
  const bool fused =
      select.k > 0 && select.k < totals.entries && totals.entries >= kBracketFrom && !overflowed(update);
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
  SelectTiles tiles(tensors, count);
  if (total >= kBracketFrom) {
    const MetricKeys<T> source{tensors, metric};
    BracketSelection<T, MetricKeys<T>> selection(tensors, count, tiles, total, source, k, pool);
    if (selection.run(false)) return selection.threshold();
  }
  return select_kth<T>(tiles, metric, k, pool).prefix;
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

// One row of a tensor as a tensor. Rows divide the last dimension, so that the norms of a row are
// consecutive.
SelectTensor row_of(const SelectTensor& t, int64_t index, int64_t row) {
  SelectTensor part = t;
  const int64_t begin = index * row;
  part.weight = advance(t.weight, t.weight_dtype, begin);
  if (t.grad != nullptr) part.grad = advance(t.grad, t.grad_dtype, begin);
  if (t.norm != nullptr) part.norm = t.norm + begin % t.cols;
  part.mask = t.mask + begin;
  part.numel = part.cols = row;
  return part;
}

// Rows up to this length are selected among their keys in the second-level cache.
constexpr int64_t kRowInCache = 1 << 15;

// Prunes the k lowest of a row, 0 < k < length; `keys` has room for the row twice.
template <class T>
void mask_cached_row(const SelectTensor& row, Metric metric, int64_t k, Key<T>* keys) {
  keys_of<T>(row, metric, keys);
  const ArraySelection<Key<T>> selection(keys, row.numel, k, false);
  write_mask(keys, row.numel, selection.threshold, selection.cut, reinterpret_cast<bool*>(row.mask));
}

template <class T>
void mask_rows(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, int64_t first,
               int64_t last) {
  Buffer<Key<T>> keys(2 * min64(row, kRowInCache));
  for (int64_t r = first; r < last; ++r) {
    const SelectTensor part = row_of(tensor, r, row);
    row <= kRowInCache ? mask_cached_row<T>(part, metric, k, keys.data())
                       : topk_mask_as<T>(&part, 1, row, {metric, k, false, false}, kAlone);
  }
}

void row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool) {
  if (tensor.numel == 0) return;
  if (k == 0 || k == row) return fill_masks(&tensor, 1, k == 0, pool);
  parallel(pool, tensor.numel / row, [&](int64_t first, int64_t last) {
    tensor.wide() ? mask_rows<double>(tensor, metric, row, k, first, last)
                  : mask_rows<float>(tensor, metric, row, k, first, last);
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
