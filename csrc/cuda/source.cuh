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

// Vectors of stored entries that a thread has under way, as they lie in memory: 64 bytes, or 128 of doubles.
template <class E>
constexpr int kStoredBatch = sizeof(typename E::type) < sizeof(float) ? 2 * kBatch : kBatch;

// Whether there is code of its own for whole tiles. That for doubles would grow out of bounds.
template <class T>
constexpr bool kHasFastWays = sizeof(T) == sizeof(float);

// f(batch, scores_of) for the batches of a tile, with what take(batch, scores) has loaded. scores_of(v, out)
// are the scores of vector v.
template <class T, class Take, class F>
__device__ __forceinline__ void for_each_batch(int64_t begin, int64_t end, const Take& take, const F& f) {
  T scores[kBatch][kVector];
  const auto scores_of = [&](int v, T(&out)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[i] = scores[v][i];
  };
  constexpr int64_t kEntries = Batch<>::kEntries;
  if constexpr (kHasFastWays<T>) {
    if (end - begin == kTile) {
#pragma unroll 1
      for (int at = 0; at < kTile; at += kEntries) {
        const Batch<true> batch{begin + at, begin + at + kEntries};
        take(batch, scores);
        f(batch, scores_of);
      }
      return;
    }
  }
#pragma unroll 1
  for (int64_t at = begin; at < end; at += kEntries) {
    const Batch<> batch{at, min64(at + kEntries, end)};
    take(batch, scores);
    f(batch, scores_of);
  }
}

// Asks for `bytes` of memory, so that they wait in the second-level cache when it is their turn. All threads
// call it.
__device__ __forceinline__ void prefetch(const void* data, int64_t bytes) {
#if defined(__CUDA_ARCH__)
  constexpr int kLine = 128;
  for (int64_t at = threadIdx.x * kLine; at < bytes; at += kThreads * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(data) + at));
  }
#endif
}

// As they are stored. Those of whole tiles are converted vector by vector, as they are used.
struct StoredScores {
  using Tensor = SelectTensor;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    return load_score<T>(t, Metric::stored, at);
  }
  __device__ __forceinline__ void ask_for(const Tensor& t, int64_t begin, int64_t end) const {
    const int64_t size = entry_bytes(t.weight_dtype);
    prefetch(static_cast<const char*>(t.weight) + begin * size, (end - begin) * size);
  }
  // f(batch, scores_of) for the batches of a tile,
  template <class T, class F>
  __device__ __forceinline__ void pass_over(const Tensor& t, int64_t begin, int64_t end, const F& f) const {
    if (!kHasFastWays<T> || end - begin != kTile || !is_aligned(t.weight, 16)) {
      const auto take = [&](const auto& batch, auto& scores) {
        load_scores(t, Metric::stored, batch, scores);
      };
      return for_each_batch<T>(begin, end, take, f);
    }
    if constexpr (kHasFastWays<T>) {
      visit_dtype_of<T>(t.weight_dtype, [&](auto element) {
        using E = decltype(element);
        using Stored = Vectors<kStoredBatch<E>, true>;
#pragma unroll 1
        for (int at = 0; at < kTile; at += Stored::kEntries) {
          const Stored batch{begin + at, begin + at + Stored::kEntries};
          RawVector<E> raw[Stored::kSize];
#pragma unroll
          for (int v = 0; v < Stored::kSize; ++v) raw[v].load(t.weight, batch.at(v));
          f(batch, [&](int v, T(&out)[kVector]) { raw[v].convert(out); });
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

// By a metric, from what it reads,
struct MetricScores {
  using Tensor = SelectTensor;
  Metric metric;

  template <class T>
  __device__ __forceinline__ T peek(const Tensor& t, int64_t at) const {
    return load_score<T>(t, metric, at);
  }
  __device__ __forceinline__ void ask_for(const Tensor&, int64_t, int64_t) const {}
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
  __device__ __forceinline__ void ask_for(const Tensor&, int64_t, int64_t) const {}
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

// Calls f with the source of the scores that a metric makes.
template <class F>
PRUNEOPS_HD auto visit_source(Metric metric, const F& f) {
  return metric == Metric::stored ? f(StoredScores{}) : f(MetricScores{metric});
}

}  // namespace pruneops::cuda
