// N:M masks: n of each m consecutive entries.
#pragma once

#include "../../math/group.h"
#include "select.h"

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
    int32_t rank[kM] = {};
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
    for (int i = 0; i < kM; ++i) word |= static_cast<Word>(static_cast<Word>(rank[i] < n) << (8 * i));
    memcpy(mask + g * kM, &word, sizeof(word));
  }
}

// Groups of any size: the keys of a chunk are turned so that position j of all groups lies together.
template <class K>
void keep_best_turned(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  K turned[kChunk];
  uint8_t rank[kChunk];
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t g = 0; g < groups; ++g) turned[j * groups + g] = keys[g * m + j];
  }
  memset(rank, 0, static_cast<size_t>(groups * m));
  for (int64_t i = 0; i < m; ++i) {
    const K* a = turned + i * groups;
    for (int64_t j = i + 1; j < m; ++j) {
      const K* b = turned + j * groups;
      for (int64_t g = 0; g < groups; ++g) {
        const bool later_first = goes_before(b[g], j, a[g], i);
        rank[i * groups + g] += later_first;
        rank[j * groups + g] += !later_first;
      }
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t g = 0; g < groups; ++g) mask[g * m + i] = rank[i * groups + g] < n;
  }
}

template <class K>
void keep_best(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  switch (m) {
    case 2:
      return keep_best_of<2>(keys, groups, n, mask);
    case 4:
      return keep_best_of<4>(keys, groups, n, mask);
    case 8:
      return keep_best_of<8>(keys, groups, n, mask);
    default:
      return keep_best_turned(keys, groups, n, m, mask);
  }
}

template <class T>
void nm_groups(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  // A multiple of 8, so that every chunk of a packed mask begins with a byte.
  const int64_t groups = tensor.numel / m, per_chunk = kChunk / m / 8 * 8;
  parallel(pool, ceil_div(groups, per_chunk), [&](int64_t first, int64_t last) {
    Key<T> keys[kChunk];
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * per_chunk, some = min64(per_chunk, groups - begin);
      key_chunk<T>(tensor, metric, begin * m, some * m, keys);
      put_mask(tensor, begin * m, some * m, [&](uint8_t* mask) { keep_best(keys, some, n, m, mask); });
    }
  });
}

void nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  tensor.wide() ? nm_groups<double>(tensor, metric, n, m, pool)
                : nm_groups<float>(tensor, metric, n, m, pool);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
