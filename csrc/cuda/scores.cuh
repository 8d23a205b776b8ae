// The scores of a thread's vectors, with the loads of all of them under way before the first is used.
#pragma once

#include "table.cuh"
#include "words.cuh"

namespace pruneops::cuda {

// Vectors of a tile that a thread has.
constexpr int kTileVectors = static_cast<int>(kTile / (kThreads * kVector));

// The vectors that each thread of a block has of the entries [begin, end), at most kEntries: vector v of a
// thread lies behind those of all threads before v. kWhole: they are exactly kEntries.
template <int kCount, bool kWhole = false>
struct Vectors {
  static constexpr int kSize = kCount;
  static constexpr bool kAreWhole = kWhole;
  static constexpr int64_t kEntries = static_cast<int64_t>(kCount) * kThreads * kVector;

  int64_t begin;
  int64_t end;

  __device__ __forceinline__ int64_t at(int v) const { return begin + offset(v); }
  // Entries of vector v: fewer, or none, at the end.
  __device__ __forceinline__ int size(int v) const {
    if constexpr (kWhole) return kVector;
    const int left = static_cast<int>(end - begin) - static_cast<int>(offset(v));
    return left < 0 ? 0 : left < kVector ? left : kVector;
  }
  __device__ __forceinline__ bool are_whole() const { return size(kCount - 1) == kVector; }
  // How far behind the start vector v lies.
  static __device__ __forceinline__ unsigned offset(int v) {
    return (static_cast<unsigned>(v) * kThreads + threadIdx.x) * kVector;
  }
};

template <class T, int kCount, bool kWhole>
__device__ __forceinline__ void load_vectors(const void* data, Dtype dtype,
                                             const Vectors<kCount, kWhole>& vectors,
                                             T (&out)[kCount][kVector]) {
  visit_dtype_of<T>(dtype, [&](auto element) {
    RawVector<decltype(element)> raw[kCount];
    if (vectors.are_whole() && raw[0].can_load(data, vectors.at(0))) {
#pragma unroll
      for (int v = 0; v < kCount; ++v) raw[v].load(data, vectors.at(v));
    } else {
#pragma unroll
      for (int v = 0; v < kCount; ++v) raw[v].load(data, vectors.at(v), vectors.size(v));
    }
#pragma unroll
    for (int v = 0; v < kCount; ++v) raw[v].convert(out[v]);
  });
}

// Scores of a tensor, stored or made on the fly in the tensor's own type.
template <class Own, class T, int kCount, bool kWhole>
__device__ __forceinline__ void load_own_scores(const SelectTensor& t, Metric metric,
                                                const Vectors<kCount, kWhole>& vectors,
                                                T (&out)[kCount][kVector]) {
  if (metric == Metric::stored) return load_vectors(t.weight, t.weight_dtype, vectors, out);
  AnyVector<Own> grad[kCount];
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
    if (reads_grad(metric)) grad[v].load(t.grad, t.grad_dtype, vectors.at(v), vectors.size(v));
  }
  Own w[kCount][kVector] = {};
  if (reads_weight(metric)) load_vectors(t.weight, t.weight_dtype, vectors, w);
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
    const int n = vectors.size(v);
    Own g[kVector], norm[kVector] = {}, scores[kVector];
    grad[v].convert(t.grad_dtype, g);
    if (metric == Metric::wanda) load_norms(t, vectors.at(v), n, norm);
    values_of(metric, w[v], g, norm, scores);
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[v][i] = static_cast<T>(scores[i]);
  }
}

// A score is computed in its own tensor's type, whatever other tensors it is ranked with.
template <class T, int kCount, bool kWhole>
__device__ __forceinline__ void load_scores(const SelectTensor& t, Metric metric,
                                            const Vectors<kCount, kWhole>& vectors,
                                            T (&out)[kCount][kVector]) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (t.wide()) return load_own_scores<double>(t, metric, vectors, out);
  }
  load_own_scores<float>(t, metric, vectors, out);
}

// How many of the vectors' entries their masks hold.
template <int kCount, bool kWhole>
__device__ __forceinline__ unsigned count_kept(const Vectors<kCount, kWhole>& vectors,
                                               const MaskWords (&masks)[kCount]) {
  unsigned kept = 0;
  if constexpr (kWhole) {
    // Bytes of 0 or 1 add up in place.
    static_assert(kCount * MaskWords::kWords * MaskWords::kBytes < 256, "no sum reaches the next byte");
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (int w = 0; w < MaskWords::kWords; ++w) kept += masks[v].words[w];
    }
    kept = (kept * MaskWords::kOnes) >> 24;
  } else {
#pragma unroll
    for (int v = 0; v < kCount; ++v) kept += masks[v].count(vectors.size(v));
  }
  return kept;
}

// Stores the masks of vectors, each of which is whole or absent where `places` are whole; whether each is one
// access of memory is looked at once for all of them.
template <class Tensor, class Places, int kCount>
__device__ __forceinline__ void store_masks(const Tensor& t, const Places& places,
                                            const MaskWords (&masks)[kCount]) {
  uint8_t* const first = t.mask + places.at(0);
  if (!t.packed && places.are_whole() && is_aligned(first, kVector)) {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      if (places.size(v) > 0) masks[v].store(first + (places.offset(v) - places.offset(0)));
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < kCount; ++v) {
    if (places.size(v) > 0) store_mask(t, places.at(v), places.size(v), masks[v]);
  }
}

// One score.
template <class T>
__device__ __forceinline__ T load_score(const SelectTensor& t, Metric metric, int64_t at) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (t.wide()) {
      double wide[kVector];
      load_scores(t, metric, at, 1, wide);
      return wide[0];
    }
  }
  float scores[kVector];
  load_scores(t, metric, at, 1, scores);
  return static_cast<T>(scores[0]);
}

}  // namespace pruneops::cuda
