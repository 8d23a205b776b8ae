// Elementwise score updates.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Entries that go through all loops of an update before the next ones are loaded: so few that the processor
// looks ahead into the next loads while it computes.
constexpr int64_t kPiece = 256;

// Updates the scores [at, at + n), n at most kPiece, and writes them to `target`: the scores themselves, past
// the caches or not, or a buffer. Flat, since calls between the loops of a piece keep the processor from
// looking ahead into the next.
template <class T>
[[gnu::flatten]] void update_piece(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n,
                                   void* target, bool past) {
  T weights[kPiece], grads[kPiece], values[kPiece];
  const T* w = reads_weight(rule.metric) ? load_chunk(t.weight, t.weight_dtype, at, n, weights) : nullptr;
  const T* g = reads_grad(rule.metric) ? load_chunk(t.grad, t.grad_dtype, at, n, grads) : nullptr;
  if (g != nullptr) g = unscale_chunk(g, rule.grad_scale, n, grads);
  Ahead(t.weight, t.weight_dtype, at).ask_for(n);
  Ahead(t.grad, t.grad_dtype, at).ask_for(n);
  values_of<T>(rule.metric, w, g, nullptr, n, values);
  if (rule.reads_score()) Ahead(t.score, t.score_dtype, at).ask_for(n);
  if (rule.skip_nonfinite) drop_nonfinite(values, n);
  if (past) return blend_past(t.score_dtype, n, rule, values, target);
  blend_into(advance(t.score, t.score_dtype, at), t.score_dtype, n, rule, values, target);
}

// Whether an update is one formula over what lies in memory as T.
template <class T>
bool is_plain(const UpdateTensor& t, const UpdateRule& rule) {
  constexpr Dtype own = own_dtype<T>();
  return t.score_dtype == own && (!reads_weight(rule.metric) || t.weight_dtype == own) &&
         (!reads_grad(rule.metric) || t.grad_dtype == own) && rule.grad_scale == nullptr &&
         !rule.skip_nonfinite;
}

// Such an update of any n scores: one loop without buffers, in which the processor looks ahead by itself.
template <class T>
void update_plain(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  const T* w = reads_weight(rule.metric) ? static_cast<const T*>(t.weight) + at : nullptr;
  const T* g = reads_grad(rule.metric) ? static_cast<const T*>(t.grad) + at : nullptr;
  const T* score = static_cast<const T*>(t.score) + at;
  T* updated = static_cast<T*>(target);
  visit_metric(rule.metric, [&](auto constant) {
    constexpr Metric kMetric = decltype(constant)::value;
    const auto value = [&](int64_t i) {
      return element_value<T>(kMetric, reads_weight(kMetric) ? w[i] : T(0), reads_grad(kMetric) ? g[i] : T(0),
                              T(0));
    };
    if (rule.reads_score()) {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) updated[i] = blend(true, alpha, score[i], beta, value(i));
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) updated[i] = blend(false, alpha, T(0), beta, value(i));
    }
  });
}

// Any update of any n scores.
template <class T>
void update_chunk_as(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target,
                     bool past) {
  if (!past && is_plain<T>(t, rule)) return update_plain<T>(t, rule, at, n, target);
  for (int64_t done = 0; done < n; done += kPiece) {
    const int64_t piece = min64(kPiece, n - done);
    update_piece<T>(t, rule, at + done, piece, advance(target, t.score_dtype, done), past);
  }
}
void update_chunk(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target,
                  bool past = false) {
  t.wide() ? update_chunk_as<double>(t, rule, at, n, target, past)
           : update_chunk_as<float>(t, rule, at, n, target, past);
}

void update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule, const Pool& pool) {
  if (rule.overflowed()) return;
  const bool past = writes_past(tensors, count, rule, [](const UpdateTensor& t) { return t.numel; });
  FlatTiles<UpdateTensor>(tensors, count)
      .for_all(pool, [&](const UpdateTensor& t, int64_t begin, int64_t length, int64_t) {
        update_chunk(t, rule, begin, length, advance(t.score, t.score_dtype, begin), past);
      });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
