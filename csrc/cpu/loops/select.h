// Exact selection over a list of tensors by rounds of digit counts: five reads of the scores, no extra
// memory.
#pragma once

#include "../../math/radix.h"
#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

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

// Adds the counts of one thread to those of all.
void add_counts(const int64_t* local, int bins, int64_t* counts) {
  for (int b = 0; b < bins; ++b) {
    if (local[b] != 0) __atomic_fetch_add(&counts[b], local[b], __ATOMIC_RELAXED);
  }
}

// Adds to `counts` how many keys of the current prefix have each digit.
template <class T>
void count_digits(SelectTiles& tiles, Metric metric, Key<T> prefix, int round, int64_t* counts,
                  const Pool& pool) {
  using R = WideRadix<Key<T>>;
  parallel(pool, tiles.tiles(), [&](int64_t first, int64_t last) {
    int64_t local[2][R::kBins] = {};  // two, so that a run of equal keys does not wait for itself
    tiles.for_range(first, last, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
      for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t) {
        for (int64_t i = 0; i < n; ++i) {
          if (R::matches(keys[i], prefix, round)) ++local[i & 1][R::digit(keys[i], round)];
        }
      });
    });
    for (int b = 0; b < R::kBins; ++b) local[0][b] += local[1][b];
    add_counts(local[0], R::kBins, counts);
  });
}

// The k-th smallest key, k from 1.
template <class T>
Selection<Key<T>> select_kth(SelectTiles& tiles, Metric metric, int64_t k, const Pool& pool) {
  using R = WideRadix<Key<T>>;
  Selection<Key<T>> selection = start_selection<Key<T>>(k);
  for (int round = 0; round < R::kRounds; ++round) {
    int64_t counts[R::kBins] = {};
    count_digits<T>(tiles, metric, selection.prefix, round, counts, pool);
    decide_round<R>(selection, round, counts);
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

// The place behind the tie number `kept` of the tiles [first, last): its tile from counts, its offset from
// keys.
template <class T>
Cut find_cut(SelectTiles& tiles, Metric metric, Key<T> key, int64_t kept, int64_t first, int64_t last,
             const Pool& pool) {
  Buffer<int64_t> ties(last - first);
  parallel(pool, last - first, [&](int64_t begin, int64_t end) {
    tiles.for_range(first + begin, first + end,
                    [&](const SelectTensor& tensor, int64_t at, int64_t length, int64_t tile) {
                      ties[tile - first] = count_equal<T>(tensor, metric, at, length, key);
                    });
  });
  Cut cut{first, 0};
  while (ties[cut.tile - first] < kept) kept -= ties[cut.tile++ - first];
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

// Writes the masks of the tiles [first, last): what is above the threshold, and its ties before the cut.
template <class T>
void write_tiles(SelectTiles& tiles, Metric metric, Key<T> threshold, const Cut& cut, int64_t first,
                 int64_t last, const Pool& pool) {
  parallel(pool, last - first, [&](int64_t begin_tile, int64_t end_tile) {
    tiles.for_range(first + begin_tile, first + end_tile,
                    [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t tile) {
                      const int64_t ties_end = tile < cut.tile ? length : tile == cut.tile ? cut.offset : 0;
                      for_keys<T>(tensor, metric, begin, length,
                                  [&](const Key<T>* keys, int64_t n, int64_t offset) {
                                    write_mask(keys, n, threshold, ties_end - offset,
                                               reinterpret_cast<bool*>(tensor.mask) + begin + offset);
                                  });
                    });
  });
}

template <class T>
void mask_by_radix(SelectTiles& tiles, Metric metric, int64_t k, bool prune_ties, const Pool& pool) {
  const auto selection = select_kth<T>(tiles, metric, k, pool);
  const int64_t kept = prune_ties ? 0 : selection.ties_kept(), last = tiles.tiles();
  Cut cut{kept == 0 ? 0 : last, 0};
  if (kept != 0 && kept != selection.equal) {
    cut = find_cut<T>(tiles, metric, selection.prefix, kept, 0, last, pool);
  }
  write_tiles<T>(tiles, metric, selection.prefix, cut, 0, last, pool);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
