// Exact selection in each row. A row is read once where it fits into the registers of a warp or a block, or
// into shared memory; longer ones are read in every round, and few very long ones are selected as tensors
// (rows.cu).
#pragma once

#include "../math/short_key.h"
#include "digits.cuh"
#include "tile.cuh"

namespace pruneops::cuda {

#if defined(PRUNEOPS_EMULATE)
EMULATION_DYNAMIC_SHARED(uint4, staged_keys);
#endif

// A threshold that tells the k lowest keys from the others, where the bits below `open` of the k-th smallest
// are not decided: all keys that share the others go with it.
template <class K>
PRUNEOPS_HD Selection<K> with_open_bits(Selection<K> found, int open) {
  found.prefix |= static_cast<K>((K(1) << open) - 1);
  return found;
}

// ---- a warp for each row

// What lies behind the end goes after every key.
template <class Held>
__device__ __forceinline__ void pad(Held& held) {
  using K = Key<typename Held::Type>;
#pragma unroll
  for (int v = 0; v < Held::kVectors; ++v) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= held.size(v)) held.keys[v][i] = static_cast<K>(~K(0));
    }
  }
}

// The k-th smallest of the keys that a warp holds, bit by bit: no memory is shared, and the time does not
// depend on how the keys are spread. Most rows are told apart before the last bits.
template <class Held>
__device__ __forceinline__ auto search_warp(const Held& held, int64_t k) {
  using K = Key<typename Held::Type>;
  Selection<K> found{K(0), k, 0, held.end - held.begin};
  int open = sizeof(K) * 8;
  while (open > 0 && found.ties_kept() > 0) {
    --open;
    const K middle = found.prefix | static_cast<K>(K(1) << open);
    unsigned own = 0;
#pragma unroll
    for (int v = 0; v < Held::kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) own += held.keys[v][i] < middle;
    }
    const int64_t below = __reduce_add_sync(kAllLanes, own), up_to = found.less + found.equal;
    if (below < k) {
      found = {middle, k, below, up_to - below};
    } else {
      found.equal = below - found.less;
    }
  }
  return with_open_bits(found, open);
}

// Prunes the k lowest of each row, 0 < k < row; so do the kernels below.
template <class T, int kVectors>
__global__ void __launch_bounds__(kThreads)
    warp_rows_kernel(const SelectTensor t, const Metric metric, const int64_t row, const int64_t k) {
  using Held = HeldKeys<T, kWarp, kVectors>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < t.numel / row;
       r += step) {
    auto held = hold_keys<Held>(t, metric, r * row, (r + 1) * row);
    pad(held);
    const auto found = search_warp(held, k);
    if (splits_ties(found)) {
      write_cut(t, held, found.prefix, found.ties_kept(),
                [](unsigned long long bits) { return warp_scan(bits); });
    } else {
      write_held(t, held, found.prefix, found.ties_kept() > 0);
    }
  }
}

// ---- a block for each row

// The keys of a row that a block holds in its registers,
template <class T>
struct RegisterRow {
  using Type = T;
  TileKeys<T> tile;

  __device__ RegisterRow(const SelectTensor& t, Metric metric, int64_t begin, int64_t end)
      : tile(load_tile<T>(t, metric, begin, end)) {}
  template <class F>
  __device__ __forceinline__ void for_each_tile(const F& f) const {
    f(tile);
  }
};

// in shared memory, where each thread reads what it has written itself, in 16-byte words without bank
// conflicts,
template <class T>
struct SharedRow {
  using Type = T;
  using Tile = TileKeys<T>;
  static constexpr int kWords = kVector * static_cast<int>(sizeof(Key<T>)) / 16;
  int64_t begin;
  int64_t end;

  // Bytes of shared memory for a row.
  static int64_t bytes(int64_t row) {
    return ceil_div(row, kThreads * kVector) * kThreads * kWords * static_cast<int64_t>(sizeof(uint4));
  }

  __device__ SharedRow(const SelectTensor& t, Metric metric, int64_t first, int64_t last)
      : begin(first), end(last) {
    for (int64_t at = begin; at < end; at += kTile) {
      const auto tile = load_tile<T>(t, metric, at, min64(at + kTile, end));
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        if (tile.size(v) == 0) continue;
        uint4 words[kWords];
        memcpy(words, tile.keys[v], sizeof(words));
#pragma unroll
        for (int w = 0; w < kWords; ++w) word(at, v, w) = words[w];
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void for_each_tile(const F& f) const {
    for (int64_t at = begin; at < end; at += kTile) {
      Tile tile{{}, at, min64(at + kTile, end)};
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        if (tile.size(v) == 0) continue;
        uint4 words[kWords];
#pragma unroll
        for (int w = 0; w < kWords; ++w) words[w] = word(at, v, w);
        memcpy(tile.keys[v], words, sizeof(words));
      }
      f(tile);
    }
  }

 private:
  __device__ __forceinline__ uint4& word(int64_t at, int v, int w) const {
    extern __shared__ uint4 staged_keys[];
    const int vector = static_cast<int>((at - begin) / kTile) * kTileVectors + v;
    return staged_keys[(vector * kWords + w) * kThreads + threadIdx.x];
  }
};

// or nowhere but in memory.
template <class T>
struct MemoryRow {
  using Type = T;
  const SelectTensor& tensor;
  Metric metric;
  int64_t begin;
  int64_t end;

  __device__ MemoryRow(const SelectTensor& t, Metric m, int64_t first, int64_t last)
      : tensor(t), metric(m), begin(first), end(last) {}
  template <class F>
  __device__ __forceinline__ void for_each_tile(const F& f) const {
    for (int64_t at = begin; at < end; at += kTile) {
      f(load_tile<Type>(tensor, metric, at, min64(at + kTile, end)));
    }
  }
};

template <class K>
struct RowShared {
  unsigned counts[Search<K>::kBins];
  Deciding<K> deciding;
  unsigned long long partial[kWarps];
};

// The k-th smallest key of a row. Every thread of the block calls it.
template <class Row, class K>
__device__ __forceinline__ Selection<K> search_row(const Row& keys, int64_t row, int64_t k,
                                                   RowShared<K>& shared) {
  auto search = start_search(k, K(0), static_cast<K>(~K(0)), 0, row);
  int round = 0;
  for (; round < Search<K>::kRounds && search.selection.ties_kept() > 0; ++round) {
    const auto digit_of = [&](K key) { return search.matches(key, round) ? search.digit(key, round) : -1; };
    clear_counts(shared.counts);
    keys.for_each_tile([&](const auto& tile) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) count_keys(tile.keys[v], tile.size(v), digit_of, shared.counts);
    });
    __syncthreads();
    search = decide(search, round, shared.counts, shared.deciding);
  }
  return with_open_bits(search.found(), search.shift(round - 1));
}

template <class Row>
__global__ void __launch_bounds__(kThreads, sizeof(typename Row::Type) == sizeof(double) ? 1 : 2)
    block_rows_kernel(const SelectTensor t, const Metric metric, const int64_t row, const int64_t k) {
  __shared__ RowShared<Key<typename Row::Type>> shared;
  for (int64_t r = blockIdx.x; r < t.numel / row; r += gridDim.x) {
    const Row keys(t, metric, r * row, (r + 1) * row);
    const auto found = search_row(keys, row, k, shared);
    int64_t left = found.ties_kept();
    keys.for_each_tile([&](const auto& tile) {
      if (splits_ties(found)) {
        left = write_cut_tile(t, tile, found.prefix, left, shared.partial);
      } else {
        write_held(t, tile, found.prefix, left > 0);
      }
    });
  }
}

}  // namespace pruneops::cuda
