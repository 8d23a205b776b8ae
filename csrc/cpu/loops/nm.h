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

// Groups of up to kWidth keys: each key is compared with kWidth at a time. It goes before an equal one behind
// it, that is before a key lower than the next higher one. What lies behind a group is compared and written
// too, and written over by the groups behind it.
template <int kWidth, class K>
void keep_best_up_to(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  uint8_t bytes[kChunk + kMaxGroup];
  for (int64_t g = 0; g < groups; ++g) {
    const K* key = keys + g * m;
    K rank[kWidth] = {};
    for (int j = 0; j < m; ++j) {
#pragma GCC unroll 1  // unrolled, it is not vectorised
      for (int i = 0; i < kWidth; ++i) rank[i] += static_cast<K>(key[j] + (j < i)) > key[i];
    }
    for (int i = 0; i < kWidth; ++i) bytes[g * m + i] = rank[i] < static_cast<K>(n);
  }
  memcpy(mask, bytes, static_cast<size_t>(groups * m));
}

// At most kChunk keys; kMaxGroup more may be read.
template <class K>
void keep_best(const K* keys, int64_t groups, int64_t n, int64_t m, uint8_t* mask) {
  if (m == 2) return keep_best_of<2>(keys, groups, n, mask);
  if (m == 4) return keep_best_of<4>(keys, groups, n, mask);
  if (m == 8) return keep_best_of<8>(keys, groups, n, mask);
  static_assert(kMaxGroup == 32, "the widths end there");
  if (m <= 8) return keep_best_up_to<8>(keys, groups, n, m, mask);
  if (m <= 16) return keep_best_up_to<16>(keys, groups, n, m, mask);
  keep_best_up_to<32>(keys, groups, n, m, mask);
}

// find_keys(first entry, entries, keys) makes the keys of a chunk.
template <class K, class F>
void nm_groups(const SelectTensor& tensor, int64_t n, int64_t m, const Pool& pool, const F& find_keys) {
  // A multiple of 8, so that every chunk of a packed mask begins with a byte.
  const int64_t groups = tensor.numel / m, per_chunk = kChunk / m / 8 * 8;
  parallel(pool, ceil_div(groups, per_chunk), [&](int64_t first, int64_t last) {
    K keys[kChunk + kMaxGroup] = {};
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
