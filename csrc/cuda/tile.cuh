// The keys of a tile in the registers of its thread block, with all loads under way before the first is used.
#pragma once

#include "../math/order.h"
#include "block_scan.cuh"
#include "table.cuh"
#include "vector.cuh"

namespace pruneops::cuda {

constexpr int kTileVectors = static_cast<int>(kTile / (kThreads * kVector));

// Blocks whose registers shall fit a multiprocessor: float keys of a tile take half of what is left then.
template <class T>
constexpr int kTileBlocks = sizeof(T) == sizeof(float) ? 2 : 1;

// Vector v of a thread lies behind those of all threads before v.
template <class T>
struct TileKeys {
  Key<T> keys[kTileVectors][kVector];
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ int64_t at(int v) const {
    return begin + (static_cast<int64_t>(v) * kThreads + threadIdx.x) * kVector;
  }
  // Entries of vector v: fewer, or none, at the end of a tensor.
  __device__ __forceinline__ int size(int v) const {
    const int64_t left = end - at(v);
    return left < 0 ? 0 : static_cast<int>(min64(kVector, left));
  }
};

// Keys [at, at + n) of a tensor, of type T's order. A score is computed in its own tensor's type, whatever
// other tensors it is ranked with.
template <class T, class Own>
__device__ __forceinline__ void load_own_keys(const SelectTensor& t, Metric metric, int64_t at, int n,
                                              Key<T> (&keys)[kVector]) {
  Own scores[kVector];
  load_scores(t, metric, at, n, scores);
#pragma unroll
  for (int i = 0; i < kVector; ++i) keys[i] = sort_key(static_cast<T>(scores[i]));
}

template <class T>
__device__ __forceinline__ void load_keys(const SelectTensor& t, Metric metric, int64_t at, int n,
                                          Key<T> (&keys)[kVector]) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (t.wide()) return load_own_keys<T, double>(t, metric, at, n, keys);
  }
  load_own_keys<T, float>(t, metric, at, n, keys);
}

template <class T>
__device__ __forceinline__ void load_whole_tile(const void* data, Dtype dtype, TileKeys<T>& tile) {
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    Vector<typename E::type> raw[kTileVectors];
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v)
      raw[v].load(static_cast<const typename E::type*>(data) + tile.at(v));
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) tile.keys[v][i] = sort_key(E::template load<T>(raw[v].words[i]));
    }
  });
}

template <class T>
__device__ __forceinline__ TileKeys<T> load_tile(const SelectTensor& t, Metric metric, int64_t begin,
                                                 int64_t end) {
  TileKeys<T> tile{{}, begin, end};
  // A tile of a row may begin anywhere.
  const bool aligned = begin % kVector == 0 && is_aligned(t.weight, 16);
  if (metric == Metric::stored && end - begin == kTile && aligned) {
    load_whole_tile(t.weight, t.weight_dtype, tile);
  } else {
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      if (tile.size(v) > 0) load_keys<T>(t, metric, tile.at(v), tile.size(v), tile.keys[v]);
    }
  }
  return tile;
}

// Keeps the keys of vector v for which keep(key) holds.
template <class T, class Tensor, class F>
__device__ __forceinline__ void store_kept(const Tensor& t, const TileKeys<T>& tile, int v, const F& keep) {
  Vector<bool> kept;
#pragma unroll
  for (int i = 0; i < kVector; ++i) kept.words[i] = keep(tile.keys[v][i]);
  if (tile.size(v) > 0) store_mask(t, tile.at(v), tile.size(v), kept);
}

// Keeps the keys of a tile that are above the threshold, or also those that tie with it.
template <class T>
__device__ __forceinline__ void write_tile(const SelectTensor& t, const TileKeys<T>& tile, Key<T> threshold,
                                           bool keep_ties) {
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    store_kept(t, tile, v, [=](Key<T> key) { return keep_ties ? key >= threshold : key > threshold; });
  }
}

// Adds up to four small numbers of every thread at once: each has 16 bits, which those of a tile fill at
// most.
struct Four {
  static constexpr int kBits = 16;
  unsigned long long bits = 0;

  __device__ __forceinline__ void add(int place, int count) {
    bits += static_cast<unsigned long long>(count) << (place * kBits);
  }
  __device__ __forceinline__ int operator[](int place) const {
    return static_cast<int>((bits >> (place * kBits)) & 0xffff);
  }
};
static_assert(kTile < (1 << Four::kBits) && kTileVectors == 4, "a count of each vector of a tile");

template <class T>
__device__ __forceinline__ int count_equal(const TileKeys<T>& tile, int v, Key<T> threshold) {
  int equal = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) equal += i < tile.size(v) && tile.keys[v][i] == threshold;
  return equal;
}

// Keeps keys above the threshold, and of those that tie with it the first `ties` of the tile; how many ties
// are left to be kept behind it.
template <class T>
__device__ __forceinline__ int64_t write_cut_tile(const SelectTensor& t, const TileKeys<T>& tile,
                                                  Key<T> threshold, int64_t ties,
                                                  unsigned long long (&partial)[kWarps]) {
  Four own;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) own.add(v, count_equal(tile, v, threshold));
  const auto scan = block_scan(own.bits, partial);
  const Four before{scan.before}, total{scan.total};
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    int64_t left = ties - before[v];
    store_kept(t, tile, v, [&](Key<T> key) { return key > threshold || (key == threshold && left-- > 0); });
    ties -= total[v];
  }
  return ties < 0 ? 0 : ties;
}

}  // namespace pruneops::cuda
