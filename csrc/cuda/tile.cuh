// The keys of a tile in the registers of its thread block, with all loads under way before the first is used.
#pragma once

#include "../math/order.h"
#include "block_scan.cuh"
#include "scores.cuh"

namespace pruneops::cuda {

// Blocks whose registers shall fit a multiprocessor: float keys of a tile take half of what is left then.
template <class T>
constexpr int kTileBlocks = sizeof(T) == sizeof(float) ? 3 : 1;

// Consecutive keys in the registers of kLanes threads, of a warp or of a block: vector v of a thread lies
// behind those of all threads before v.
template <class T, int kLanes, int kCount>
struct HeldKeys {
  using Type = T;
  static constexpr int kVectors = kCount;
  static constexpr int64_t kEntries = static_cast<int64_t>(kCount) * kLanes * kVector;

  Key<T> keys[kCount][kVector];
  int64_t begin;
  int64_t end;

  __device__ __forceinline__ int64_t at(int v) const {
    return begin + (static_cast<int64_t>(v) * kLanes + threadIdx.x % kLanes) * kVector;
  }
  // Entries of vector v: fewer, or none, at the end of what is held.
  __device__ __forceinline__ int size(int v) const {
    const int64_t left = end - at(v);
    return left < 0 ? 0 : static_cast<int>(min64(kVector, left));
  }
};

template <class T>
using TileKeys = HeldKeys<T, kThreads, kTileVectors>;

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

// Stored scores whose vectors are whole and aligned.
template <class Held>
__device__ __forceinline__ void load_whole_vectors(const void* data, Dtype dtype, Held& held) {
  using T = typename Held::Type;
  visit_dtype_of<T>(dtype, [&](auto element) {
    using E = decltype(element);
    Vector<typename E::type> raw[Held::kVectors];
#pragma unroll
    for (int v = 0; v < Held::kVectors; ++v) {
      raw[v] = {};
      if (held.size(v) > 0) raw[v].load(static_cast<const typename E::type*>(data) + held.at(v));
    }
#pragma unroll
    for (int v = 0; v < Held::kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) held.keys[v][i] = sort_key(E::template load<T>(raw[v].words[i]));
    }
  });
}

// The keys of [begin, end), at most Held::kEntries.
template <class Held>
__device__ __forceinline__ Held hold_keys(const SelectTensor& t, Metric metric, int64_t begin, int64_t end) {
  Held held{{}, begin, end};
  // A row may begin and end anywhere.
  const bool whole = begin % kVector == 0 && end % kVector == 0 && is_aligned(t.weight, 16);
  if (metric == Metric::stored && whole) {
    load_whole_vectors(t.weight, t.weight_dtype, held);
  } else {
#pragma unroll
    for (int v = 0; v < Held::kVectors; ++v) {
      if (held.size(v) > 0) load_keys<typename Held::Type>(t, metric, held.at(v), held.size(v), held.keys[v]);
    }
  }
  return held;
}

template <class T>
__device__ __forceinline__ TileKeys<T> load_tile(const SelectTensor& t, Metric metric, int64_t begin,
                                                 int64_t end) {
  return hold_keys<TileKeys<T>>(t, metric, begin, end);
}

// Keeps the keys of vector v for which keep(key) holds.
template <class Held, class Tensor, class F>
__device__ __forceinline__ void store_kept(const Tensor& t, const Held& held, int v, const F& keep) {
  const MaskWords mask = mask_where([&](int i) { return keep(held.keys[v][i]); });
  if (held.size(v) > 0) store_mask(t, held.at(v), held.size(v), mask);
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

template <class Held, class K>
__device__ __forceinline__ int count_equal(const Held& held, int v, K threshold) {
  int equal = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) equal += i < held.size(v) && held.keys[v][i] == threshold;
  return equal;
}

// Keeps keys above the threshold, and of those that tie with it the first `ties` that are held; how many ties
// are left to be kept behind them. scan(bits) is the sum over the threads that hold the keys.
template <class Held, class K, class ScanOf>
__device__ __forceinline__ int64_t write_cut(const SelectTensor& t, const Held& held, K threshold,
                                             int64_t ties, const ScanOf& scan_of) {
  Four own;
#pragma unroll
  for (int v = 0; v < Held::kVectors; ++v) own.add(v, count_equal(held, v, threshold));
  const auto scan = scan_of(own.bits);
  const Four before{scan.before}, total{scan.total};
#pragma unroll
  for (int v = 0; v < Held::kVectors; ++v) {
    int64_t left = ties - before[v];
    store_kept(t, held, v, [&](K key) { return key > threshold || (key == threshold && left-- > 0); });
    ties -= total[v];
  }
  return ties < 0 ? 0 : ties;
}

}  // namespace pruneops::cuda
