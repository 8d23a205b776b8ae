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

template <class T>
void topk_mask_as(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric, int64_t k,
                  bool prune_ties, const Pool& pool) {
  SelectTiles tiles(tensors, count);
  if (total >= kBracketFrom) {
    BracketSelection<T> selection(tensors, count, tiles, total, metric, k, pool);
    if (selection.run(true)) return selection.finish_masks(prune_ties);
  }
  mask_by_radix<T, kGlobalBits>(tiles, metric, k, prune_ties, pool);
}

void fill_masks(const SelectTensor* tensors, int64_t count, bool keep, const Pool& pool) {
  SelectTiles(tensors, count)
      .for_all(pool, [&](const SelectTensor& t, int64_t begin, int64_t length, int64_t) {
        memset(t.mask + begin, keep, static_cast<size_t>(length));
      });
}

void topk_mask(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, bool prune_ties,
               const Pool& pool) {
  const Totals totals(tensors, count);
  if (k == 0 || k == totals.entries) return fill_masks(tensors, count, k == 0, pool);
  totals.wide ? topk_mask_as<double>(tensors, count, totals.entries, metric, k, prune_ties, pool)
              : topk_mask_as<float>(tensors, count, totals.entries, metric, k, prune_ties, pool);
}

template <class T>
Key<T> kth_key(const SelectTensor* tensors, int64_t count, int64_t total, Metric metric, int64_t k,
               const Pool& pool) {
  SelectTiles tiles(tensors, count);
  if (total >= kBracketFrom) {
    BracketSelection<T> selection(tensors, count, tiles, total, metric, k, pool);
    if (selection.run(false)) return selection.threshold();
  }
  return select_kth<T, kGlobalBits>(tiles, metric, k, pool).prefix;
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

template <class T>
void row_mask(const SelectTensor& row, Metric metric, int64_t k) {
  const Pool alone{1, nullptr};
  if (k == 0 || k == row.numel) return fill_masks(&row, 1, k == 0, alone);
  SelectTiles tiles(&row, 1);
  mask_by_radix<T, kRowBits>(tiles, metric, k, false, alone);
}

void row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool) {
  const int64_t rows = row == 0 ? 0 : tensor.numel / row;
  parallel(pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const SelectTensor part = row_of(tensor, r, row);
      part.wide() ? row_mask<double>(part, metric, k) : row_mask<float>(part, metric, k);
    }
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
