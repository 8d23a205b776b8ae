// N:M masks: n of each m consecutive entries.
#pragma once

#include "../../math/group.h"
#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// The keys of a chunk are turned so that position j of all groups lies together: then ranks are counted for
// many groups at once.
template <class K>
void keep_best(const K* keys, int64_t groups, int64_t n, int64_t m, bool* mask) {
  K turned[kChunk];
  uint8_t rank[kChunk];
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t g = 0; g < groups; ++g) turned[j * groups + g] = keys[g * m + j];
  }
  for (int64_t i = 0; i < groups * m; ++i) rank[i] = 0;
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

template <class T>
void nm_groups(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  const int64_t groups = tensor.numel / m, per_chunk = kChunk / m;
  parallel(pool, ceil_div(groups, per_chunk), [&](int64_t first, int64_t last) {
    Key<T> keys[kChunk];
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * per_chunk, some = min64(per_chunk, groups - begin);
      key_chunk<T>(tensor, metric, begin * m, some * m, keys);
      keep_best(keys, some, n, m, tensor.mask + begin * m);
    }
  });
}

void nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, const Pool& pool) {
  tensor.wide() ? nm_groups<double>(tensor, metric, n, m, pool)
                : nm_groups<float>(tensor, metric, n, m, pool);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
