// Exact selection over a list of tensors, and over each row of one tensor.
#pragma once

#include "../../math/radix.h"
#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// 2048 bins fill a third of a first-level cache; a row is short, and clearing and scanning bins would cost
// more.
constexpr int kGlobalBits = 11;
constexpr int kRowBits = 8;

using SelectTiles = FlatTiles<SelectTensor>;

// f(keys, length, offset in the tile) for the chunks of a tile.
template <class T, class F>
void for_keys(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t length, const F& f) {
  Key<T> keys[kChunk];
  for (int64_t done = 0; done < length; done += kChunk) {
    const int64_t n = min64(kChunk, length - done);
    key_chunk<T>(tensor, metric, begin + done, n, keys);
    f(keys, n, done);
  }
}

// Adds to `counts` how many keys of the current prefix have each digit.
template <class T, int kBits>
void count_digits(SelectTiles& tiles, Metric metric, Key<T> prefix, int round, int64_t* counts,
                  const Pool& pool) {
  using R = Radix<Key<T>, kBits>;
  parallel(pool, tiles.tiles(), [&](int64_t first, int64_t last) {
    int64_t local[2][R::kBins] = {};  // two, so that a run of equal keys does not wait for itself
    tiles.for_range(first, last, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
      for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t) {
        for (int64_t i = 0; i < n; ++i) {
          if (R::matches(keys[i], prefix, round)) ++local[i & 1][R::digit(keys[i], round)];
        }
      });
    });
    for (int b = 0; b < R::kBins; ++b) {
      const int64_t total = local[0][b] + local[1][b];
      if (total != 0) __atomic_fetch_add(&counts[b], total, __ATOMIC_RELAXED);
    }
  });
}

// The k-th smallest key, k from 1.
template <class T, int kBits>
Selection<Key<T>> select_kth(SelectTiles& tiles, Metric metric, int64_t k, const Pool& pool) {
  using R = Radix<Key<T>, kBits>;
  Selection<Key<T>> selection = start_selection<Key<T>>(k);
  for (int round = 0; round < R::kRounds; ++round) {
    int64_t counts[R::kBins] = {};
    count_digits<T, kBits>(tiles, metric, selection.prefix, round, counts, pool);
    int64_t below = 0;
    int digit = 0;
    while (selection.less + below + counts[digit] < k) below += counts[digit++];
    selection.decide(digit, R::shift(round), below, counts[digit]);
  }
  return selection;
}

// Ties with the threshold are kept before this place and pruned from it on.
struct Cut {
  int64_t tile;
  int64_t offset;
};

template <class T>
int64_t count_equal(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t length, Key<T> key) {
  int64_t equal = 0;
  for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t) {
    for (int64_t i = 0; i < n; ++i) equal += keys[i] == key;
  });
  return equal;
}

// The place behind the tie number `kept`: its tile from counts, then its offset from the tile's keys.
template <class T>
Cut find_cut(SelectTiles& tiles, Metric metric, Key<T> key, int64_t kept, const Pool& pool) {
  Buffer<int64_t> ties(tiles.tiles());
  tiles.for_all(pool, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t tile) {
    ties[tile] = count_equal<T>(tensor, metric, begin, length, key);
  });
  Cut cut{0, 0};
  while (ties[cut.tile] < kept) kept -= ties[cut.tile++];
  tiles.for_range(
      cut.tile, cut.tile + 1, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
        for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t offset) {
          for (int64_t i = 0; i < n && kept > 0; ++i) {
            if (keys[i] == key && --kept == 0) cut.offset = offset + i + 1;
          }
        });
      });
  return cut;
}

template <class K>
void write_mask(const K* keys, int64_t n, K threshold, int64_t ties_before, bool* mask) {
  const int64_t split = ties_before < 0 ? 0 : min64(ties_before, n);
  for (int64_t i = 0; i < split; ++i) mask[i] = keys[i] >= threshold;
  for (int64_t i = split; i < n; ++i) mask[i] = keys[i] > threshold;
}

void fill_masks(SelectTiles& tiles, bool keep, const Pool& pool) {
  tiles.for_all(pool, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
    memset(tensor.mask + begin, keep, static_cast<size_t>(length));
  });
}

template <class T, int kBits>
void mask_tiles(SelectTiles& tiles, Metric metric, int64_t k, bool prune_ties, const Pool& pool) {
  const auto selection = select_kth<T, kBits>(tiles, metric, k, pool);
  const int64_t kept = prune_ties ? 0 : selection.ties_kept();
  Cut cut{kept == 0 ? 0 : tiles.tiles(), 0};
  if (kept != 0 && kept != selection.equal) cut = find_cut<T>(tiles, metric, selection.prefix, kept, pool);
  tiles.for_all(pool, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t tile) {
    const int64_t ties_end = tile < cut.tile ? length : tile == cut.tile ? cut.offset : 0;
    for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t offset) {
      write_mask(keys, n, selection.prefix, ties_end - offset, tensor.mask + begin + offset);
    });
  });
}

template <int kBits>
void mask_lowest(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, bool prune_ties,
                 const Pool& pool) {
  SelectTiles tiles(tensors, count);
  int64_t total = 0;
  bool wide = false;
  for (int64_t i = 0; i < count; ++i) {
    total += tensors[i].numel;
    wide |= tensors[i].wide();
  }
  if (k == 0 || k == total) return fill_masks(tiles, k == 0, pool);
  wide ? mask_tiles<double, kBits>(tiles, metric, k, prune_ties, pool)
       : mask_tiles<float, kBits>(tiles, metric, k, prune_ties, pool);
}

void topk_mask(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, bool prune_ties,
               const Pool& pool) {
  mask_lowest<kGlobalBits>(tensors, count, metric, k, prune_ties, pool);
}

template <class T>
void kth_value_as(SelectTiles& tiles, Metric metric, int64_t k, void* value, Dtype dtype, const Pool& pool) {
  const T score = key_to_score<T>(select_kth<T, kGlobalBits>(tiles, metric, k, pool).prefix);
  store_chunk(value, dtype, 0, 1, &score);
}

void kth_value(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value, Dtype dtype,
               const Pool& pool) {
  SelectTiles tiles(tensors, count);
  bool wide = false;
  for (int64_t i = 0; i < count; ++i) wide |= tensors[i].wide();
  wide ? kth_value_as<double>(tiles, metric, k, value, dtype, pool)
       : kth_value_as<float>(tiles, metric, k, value, dtype, pool);
}

const void* advance(const void* data, Dtype dtype, int64_t entries) {
  const void* moved = data;
  visit_dtype(dtype, [&](auto element) {
    moved = static_cast<const typename decltype(element)::type*>(data) + entries;
  });
  return moved;
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

void row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k, const Pool& pool) {
  const int64_t rows = row == 0 ? 0 : tensor.numel / row;
  const Pool alone{1, nullptr};
  parallel(pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const SelectTensor part = row_of(tensor, r, row);
      mask_lowest<kRowBits>(&part, 1, metric, k, false, alone);
    }
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
