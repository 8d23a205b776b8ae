// Where the scores of a selection come from, a batch of vectors at a time.
#pragma once

#include "fused.cuh"
#include "pairs.cuh"
#include "scores.cuh"
#include "tile.cuh"

namespace pruneops::cuda {

// Vectors that a thread has under way at a time: with half a tile, more blocks fit a multiprocessor.
constexpr int kBatch = kTileVectors / 2;
template <bool kWhole = false>
using Batch = Vectors<kBatch, kWhole>;

// Vectors of stored entries that a thread has under way, as they lie in memory: 64 bytes, or 128 of doubles.
template <class E>
constexpr int kStoredBatch = sizeof(typename E::type) < sizeof(float) ? 2 * kBatch : kBatch;

// Whether there is code of its own for whole tiles. That for doubles would grow out of bounds.
template <class T>
constexpr bool kHasFastWays = sizeof(T) == sizeof(float);

// The scores of a batch: of vector v.
template <class T>
struct BatchScores {
  static constexpr bool kArePairs = false;
  T scores[kBatch][kVector];

  __device__ __forceinline__ void take(int v, T (&out)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[i] = scores[v][i];
  }
};

// The same as they lie in memory, converted as they are used.
template <class T, class E>
struct StoredScoresOf {
  static constexpr bool kArePairs = kHasPairs && std::is_same_v<E, Element<Dtype::bf16>>;
  RawVector<E> raw[kStoredBatch<E>];

  __device__ __forceinline__ void take_magnitudes() {
#pragma unroll
    for (RawVector<E>& vector : raw) vector.take_magnitudes();
  }
  __device__ __forceinline__ void take(int v, T (&out)[kVector]) const { raw[v].convert(out); }
  // Of bfloat16 (pairs.cuh).
  __device__ __forceinline__ const uint32_t (&pairs(int v) const)[kVector / 2] { return raw[v].words; }
};

// f(batch, scores) for the batches of a tile, with what take(batch, scores) has loaded.
template <class T, class Take, class F>
__device__ __forceinline__ void for_each_batch(int64_t begin, int64_t end, const Take& take, const F& f) {
  BatchScores<T> held;
  constexpr int64_t kEntries = Batch<>::kEntries;
  if constexpr (kHasFastWays<T>) {
    if (end - begin == kTile) {
#pragma unroll 1
      for (int at = 0; at < kTile; at += kEntries) {
        const Batch<true> batch{begin + at, begin + at + kEntries};
        take(batch, held.scores);
        f(batch, held);
      }
      return;
    }
  }
#pragma unroll 1
  for (int64_t at = begin; at < end; at += kEntries) {
    const Batch<> batch{at, min64(at + kEntries, end)};
    take(batch, held.scores);
    f(batch, held);
  }
}

// As they are stored, or the magnitudes of what is stored. Those of whole tiles are converted vector by
// vector, as they are used.
template <Metric kMetric>
struct StoredScores {
  static_assert(kMetric == Metric::stored || kMetric == Metric::magnitude, "others are computed");
  using Tensor = SelectTensor;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    return load_score<T>(t, kMetric, at);
  }
  // f(batch, scores) for the batches of a tile,
  template <class T, class F>
  __device__ __forceinline__ void pass_over(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    if (!kHasFastWays<T> || end - begin != kTile || !is_aligned(t.weight, 16)) {
      const auto take = [&](const auto& batch, auto& scores) { load_scores(t, kMetric, batch, scores); };
      return for_each_batch<T>(begin, end, take, f);
    }
    if constexpr (kHasFastWays<T>) {
      visit_dtype_of<T>(t.weight_dtype, [&](auto element) {
        using E = decltype(element);
        using Stored = Vectors<kStoredBatch<E>, true>;
#pragma unroll 1
        for (int at = 0; at < kTile; at += Stored::kEntries) {
          const Stored batch{begin + at, begin + at + Stored::kEntries};
          StoredScoresOf<T, E> held;
#pragma unroll
          for (int v = 0; v < Stored::kSize; ++v) held.raw[v].load(t.weight, batch.at(v));
          if constexpr (kMetric == Metric::magnitude) held.take_magnitudes();
          f(batch, held);
        }
      });
    }
  }
  // and once more.
  template <class T, class F>
  __device__ __forceinline__ void pass_again(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    pass_over<T>(t, begin, end, f);
  }
};

template <class Source>
constexpr bool kIsStored = false;
template <Metric kMetric>
constexpr bool kIsStored<StoredScores<kMetric>> = true;

// By a metric, from what it reads,
struct MetricScores {
  using Tensor = SelectTensor;
  Metric metric;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    return load_score<T>(t, metric, at);
  }
  template <class T, class F>
  __device__ __forceinline__ void pass_over(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    const auto take = [&](const auto& batch, auto& scores) { load_scores(t, metric, batch, scores); };
    for_each_batch<T>(begin, end, take, f);
  }
  template <class T, class F>
  __device__ __forceinline__ void pass_again(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    pass_over<T>(t, begin, end, f);
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
  template <class T, class F>
  __device__ __forceinline__ void pass_over(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    const auto take = [&](const auto& batch, auto& scores) {
#pragma unroll
      for (int v = 0; v < kBatch; ++v) {
        if (batch.size(v) > 0) updated_scores_of(t.update, rule, batch.at(v), batch.size(v), true, scores[v]);
      }
    };
    for_each_batch<T>(begin, end, take, f);
  }
  template <class T, class F>
  __device__ __forceinline__ void pass_again(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    const auto take = [&](const auto& batch, auto& scores) {
      load_scores(stored_scores(t.update), Metric::stored, batch, scores);
    };
    for_each_batch<T>(begin, end, take, f);
  }
};

}  // namespace pruneops::cuda
