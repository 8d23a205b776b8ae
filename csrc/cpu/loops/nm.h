// N:M masks: n of each m consecutive entries.
#pragma once

#include "../../math/group.h"
#include "select.h"
#include "source.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// kM bytes of a group's mask as one word.
template <int kM>
struct GroupWord;
template <>
struct GroupWord<2> {
  using type = uint16_t;
};
template <>
struct GroupWord<4> {
  using type = uint32_t;
};
template <>
struct GroupWord<8> {
  using type = uint64_t;
};

// Groups of a fixed small size: all pairs are compared in registers, for many groups at once, and the mask of
// a group is written as one word.
template <int kM, class K>
void keep_best_of(const K* keys, int64_t groups, int64_t n, uint8_t* mask) {
  using Word = typename GroupWord<kM>::type;
  for (int64_t g = 0; g < groups; ++g) {
    K rank[kM] = {};  // as wide as what is compared, or the loop converts more than it counts
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
#pragma GCC unroll 8
      for (int j = i + 1; j < kM; ++j) {
        const bool later_first = goes_before(keys[g * kM + j], j, keys[g * kM + i], i);
        rank[i] += later_first;
        rank[j] += !later_first;
      }
    }
    Word word = 0;
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i)
      word |= static_cast<Word>(static_cast<Word>(rank[i] < static_cast<K>(n)) << (8 * i));
    memcpy(mask + g * kM, &word, sizeof(word));
  }
}

// So many columns become rows. The empty statement keeps the compiler from scattering vectors, which takes
// longer.
template <int64_t kCols, class From, class To>
void transpose_columns(const From* from, int64_t rows, int64_t cols, To* to) {
  for (int64_t r = 0; r < rows; ++r) {
    From entries[kCols];
    for (int64_t c = 0; c < kCols; ++c) entries[c] = from[r * cols + c];
    for (int64_t c = 0; c < kCols; ++c) to[c * rows + r] = static_cast<To>(entries[c]);
    asm volatile("");
  }
}
template <class From, class To>
void transpose(const From* from, int64_t rows, int64_t cols, To* to) {
  int64_t c = 0;
  for (; c + 4 <= cols; c += 4) transpose_columns<4>(from + c, rows, cols, to + c * rows);
  for (; c < cols; ++c) transpose_columns<1>(from + c, rows, cols, to + c * rows);
}

// Sorts the columns of `rows`, lowest first, all at once: Batcher's merge exchange, which exchanges the same
// rows whatever they hold (Knuth, The Art of Computer Programming, 5.2.2, algorithm M).
template <class K>
void sort_columns(K* rows, int64_t m, int64_t columns) {
  int64_t half = 1;
  while (2 * half < m) half *= 2;
  for (int64_t p = half; p > 0; p /= 2) {
    int64_t residue = 0, apart = p;
    for (int64_t q = half; q >= p; q /= 2) {
      for (int64_t i = 0; i + apart < m; ++i) {
        if ((i & p) != residue) continue;
        K* const low = rows + i * columns;
        K* const high = low + apart * columns;
#pragma GCC ivdep
        for (int64_t c = 0; c < columns; ++c) {
          const K one = low[c], other = high[c];
          low[c] = one < other ? one : other;
          high[c] = one < other ? other : one;
        }
      }
      residue = p;
      apart = q - p;
    }
  }
}

// Groups of any size, those of a chunk side by side as columns: sorted for the lowest key of each that is
// kept, of which the first ties are.
template <class K>
void keep_best_sorted(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  if (n == 0) {
    memset(mask, 0, static_cast<size_t>(groups * m));
    return;
  }
  // All as wide as keys: loops take as many entries at a time as their narrowest type allows.
  K columns[kChunk], sorted[kChunk], ties[kChunk], kept[kChunk];
  transpose(keys, groups, m, columns);
  memcpy(sorted, columns, static_cast<size_t>(groups * m) * sizeof(K));
  sort_columns(sorted, m, groups);
  const K* const lowest = sorted + (m - n) * groups;
  for (int64_t g = 0; g < groups; ++g) ties[g] = static_cast<K>(n);
  for (const K* row = lowest + groups; row < sorted + m * groups; row += groups) {
    for (int64_t g = 0; g < groups; ++g) ties[g] -= row[g] > lowest[g];
  }
  for (int64_t i = 0; i < m; ++i) {
    const K* const row = columns + i * groups;
    for (int64_t g = 0; g < groups; ++g) {
      const K tie = (row[g] == lowest[g]) & (ties[g] > 0);
      ties[g] -= tie;
      kept[i * groups + g] = (row[g] > lowest[g]) | tie;
    }
  }
  transpose(kept, m, groups, mask);
}

// At most kChunk keys.
template <class K>
void keep_best(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  if (m == 2) return keep_best_of<2>(keys, groups, n, mask);
  if (m == 4) return keep_best_of<4>(keys, groups, n, mask);
  if (m == 8) return keep_best_of<8>(keys, groups, n, mask);
  keep_best_sorted(keys, groups, n, m, mask);
}

// find_keys(first entry, entries, keys) makes the keys of a chunk.
template <class K, class F>
void nm_groups(const SelectTensor& tensor, int64_t n, int64_t m, const Pool& pool, const F& find_keys) {
  // Whole vectors of groups side by side, and whole bytes of a packed mask.
  const int64_t groups = tensor.numel / m, per_chunk = kChunk / m / 32 * 32;
  static_assert(kChunk / kMaxGroup % 32 == 0, "all groups of a chunk");
  parallel(pool, ceil_div(groups, per_chunk), [&](int64_t first, int64_t last) {
    K keys[kChunk];
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * per_chunk, some = min64(per_chunk, groups - begin);
      find_keys(begin * m, some * m, keys);
      put_mask(tensor, begin * m, some * m, [&](uint8_t* mask) { keep_best(keys, some, n, m, mask); });
    }
  });
}

template <class T>
void nm_mask_as(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  nm_groups<Key<T>>(tensor, n, m, pool, [&](int64_t begin, int64_t entries, Key<T>* keys) {
    key_chunk<T>(tensor, metric, begin, entries, keys);
  });
}

void nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  if (tensor.wide()) return nm_mask_as<double>(tensor, metric, n, m, pool);
  if (!Bfloat16Keys::serve(&tensor, 1, metric)) return nm_mask_as<float>(tensor, metric, n, m, pool);
  const auto* scores = static_cast<const uint16_t*>(tensor.weight);
  const uint16_t read = bfloat16_read(metric == Metric::magnitude);
  nm_groups<uint16_t>(tensor, n, m, pool, [&](int64_t begin, int64_t entries, uint16_t* keys) {
    for (int64_t i = 0; i < entries; ++i) keys[i] = bf16_sort_key(scores[begin + i] & read);
  });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
