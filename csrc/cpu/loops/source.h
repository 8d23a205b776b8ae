// Where the scores of a selection come from: out of memory, made by a metric, or updated on the way.
#pragma once

#include "select.h"
#include "update.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Neighbours that are sampled together.
constexpr int64_t kRun = 64;

// What a pass reads ahead of.
struct ReadAhead {
  Ahead weight;
  Ahead grad;
  Ahead score;

  [[gnu::always_inline]] void ask_for(int64_t n) {
    weight.ask_for(n);
    grad.ask_for(n);
    score.ask_for(n);
  }
};

// Where the scores of a selection come from, and from where again() once they have been passed over: from
// what a metric reads,
template <class T>
struct MetricKeys {
  using Value = T;  // how take() returns scores
  const SelectTensor* tensors;
  Metric metric;

  [[gnu::always_inline]] void prefetch(int64_t i, int64_t at) const {
    const SelectTensor& t = tensors[i];
    __builtin_prefetch(advance(t.weight, t.weight_dtype, at));
    if (t.grad != nullptr) __builtin_prefetch(advance(t.grad, t.grad_dtype, at));
  }
  ReadAhead ahead(int64_t i, int64_t at) const {
    const SelectTensor& t = tensors[i];
    return {{t.weight, t.weight_dtype, at}, {t.grad, t.grad_dtype, at}, {nullptr, t.weight_dtype, at}};
  }
  void peek(int64_t i, int64_t at, int64_t n, T* scores) const {
    copy_scores(tensors[i], metric, at, n, scores);
  }
  const T* take(int64_t i, int64_t at, int64_t n, T* buffer) const {
    return rank_chunk<T>(tensors[i], metric, at, n, buffer);
  }
  ScoreBound<T> bound(Key<T> key) const { return ScoreBound<T>(key); }
  const MetricKeys& again() const { return *this; }
};

// from bfloat16 scores, or their magnitudes, as they lie in memory,
struct Bfloat16Keys : MetricKeys<float> {
  using Value = uint16_t;

  static bool serve(const SelectTensor* tensors, int64_t count, Metric metric) {
    bool all = metric == Metric::stored || metric == Metric::magnitude;
    for (int64_t i = 0; i < count; ++i) all &= tensors[i].weight_dtype == Dtype::bf16;
    return all;
  }

  const uint16_t* take(int64_t i, int64_t at, int64_t, float*) const {
    return static_cast<const uint16_t*>(tensors[i].weight) + at;
  }
  const Bfloat16Keys& again() const { return *this; }
  Bfloat16Bound bound(uint32_t key) const { return Bfloat16Bound(key, metric == Metric::magnitude); }
};

// or from scores that are updated as they are passed over.
template <class T>
struct UpdatedKeys {
  using Value = T;
  const UpdateTensor* updates;
  const UpdateRule& rule;
  const SelectTensor* tensors;  // of the scores
  static constexpr Metric metric = Metric::stored;

  [[gnu::always_inline]] void prefetch(int64_t i, int64_t at) const {
    const UpdateTensor& t = updates[i];
    __builtin_prefetch(advance(t.score, t.score_dtype, at));
    if (t.weight != nullptr) __builtin_prefetch(advance(t.weight, t.weight_dtype, at));
    if (t.grad != nullptr) __builtin_prefetch(advance(t.grad, t.grad_dtype, at));
  }
  ReadAhead ahead(int64_t i, int64_t at) const {
    const UpdateTensor& t = updates[i];
    const void* score = rule.reads_score() ? t.score : nullptr;
    return {{t.weight, t.weight_dtype, at}, {t.grad, t.grad_dtype, at}, {score, t.score_dtype, at}};
  }
  void peek(int64_t i, int64_t at, int64_t n, T* scores) const {
    alignas(double) char updated[kRun * sizeof(double)];
    update_chunk(updates[i], rule, at, n, updated);
    SelectTensor run = tensors[i];
    run.weight = updated;
    copy_scores(run, metric, 0, n, scores);
  }
  const T* take(int64_t i, int64_t at, int64_t n, T* buffer) const {
    update_chunk(updates[i], rule, at, n, advance(updates[i].score, updates[i].score_dtype, at));
    return rank_chunk<T>(tensors[i], metric, at, n, buffer);
  }
  ScoreBound<T> bound(Key<T> key) const { return ScoreBound<T>(key); }
  MetricKeys<T> again() const { return {tensors, metric}; }
};

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
