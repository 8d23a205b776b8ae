// Where the scores of a selection come from, a batch of vectors at a time.
#pragma once

#include "fused.cuh"
#include "scores.cuh"
#include "tile.cuh"

namespace pruneops::cuda {

// Vectors that a thread has under way at a time: with half a tile, more blocks fit a multiprocessor.
constexpr int kBatch = kTileVectors / 2;
template <bool kWhole = false>
using Batch = Vectors<kBatch, kWhole>;

// From what a metric reads,
struct MetricScores {
  using Tensor = SelectTensor;
  Metric metric;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    return load_score<T>(t, metric, at);
  }
  template <class T, class Batch>
  __device__ __forceinline__ void take(const Tensor& t, const Batch& batch, T (&out)[kBatch][kVector]) const {
    load_scores(t, metric, batch, out);
  }
  template <class T, class Batch>
  __device__ __forceinline__ void take_again(const Tensor& t, const Batch& batch,
                                             T (&out)[kBatch][kVector]) const {
    take(t, batch, out);
  }
};

// or from an update, made as they are passed over.
struct UpdatedScores {
  using Tensor = FusedTensor;
  UpdateRule rule;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    T scores[kVector];
    updated_scores_of(t.update, rule, at, 1, false, scores);
    return scores[0];
  }
  template <class T, class Batch>
  __device__ __forceinline__ void take(const Tensor& t, const Batch& batch, T (&out)[kBatch][kVector]) const {
#pragma unroll
    for (int v = 0; v < kBatch; ++v) {
      if (batch.size(v) > 0) updated_scores_of(t.update, rule, batch.at(v), batch.size(v), true, out[v]);
    }
  }
  template <class T, class Batch>
  __device__ __forceinline__ void take_again(const Tensor& t, const Batch& batch,
                                             T (&out)[kBatch][kVector]) const {
    load_scores(stored_scores(t.update), Metric::stored, batch, out);
  }
};

// f(batch, scores) for the batches of a tile, with what take(batch, scores) has loaded.
template <class T, class Take, class F>
__device__ __forceinline__ void for_each_batch(int64_t begin, int64_t end, const Take& take, const F& f) {
  constexpr int64_t kEntries = Batch<>::kEntries;
  T scores[kBatch][kVector];
  if (end - begin == kTile) {
#pragma unroll 1
    for (int64_t at = begin; at < end; at += kEntries) {
      const Batch<true> batch{at, at + kEntries};
      take(batch, scores);
      f(batch, scores);
    }
    return;
  }
#pragma unroll 1
  for (int64_t at = begin; at < end; at += kEntries) {
    const Batch<> batch{at, min64(at + kEntries, end)};
    take(batch, scores);
    f(batch, scores);
  }
}

}  // namespace pruneops::cuda
