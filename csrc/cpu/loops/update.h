// Elementwise score updates.
#pragma once

#include "entry.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Entries that are updated at a time where they do not go straight from memory to memory.
constexpr int64_t kPiece = 256;

// n scores stored as S from weights and gradients stored as E, written to `updated`, which may be the scores.
// All that the loop reads is its own: what a lambda holds a write to a score could change. Not inlined: flat
// functions would hold all of these loops many times.
template <bool kReads, class S, class E, class Entry, class T>
[[gnu::noinline]] void blend_entries(const Entry entry, T alpha, T beta, const typename E::type* w,
                                     const typename E::type* g, const typename S::type* score, int64_t n,
                                     typename S::type* updated) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const T old = kReads ? S::template load<T>(score[i]) : T(0);
    updated[i] = S::store(blend(kReads, alpha, old, beta, entry.template value<E>(w, g, i)));
  }
}
template <class S, class E, class T>
void update_entries(const UpdateRule& rule, const typename E::type* w, const typename E::type* g,
                    const typename S::type* score, int64_t n, typename S::type* updated) {
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  visit_entry_rule<T>(rule, rule.skip_nonfinite, [&](auto entry) {
    rule.reads_score() ? blend_entries<true, S, E>(entry, alpha, beta, w, g, score, n, updated)
                       : blend_entries<false, S, E>(entry, alpha, beta, w, g, score, n, updated);
  });
}

// f(S, E) where the scores of a tensor are stored as S, what is read as E, and there are loops for both:
// scores are T or what is read. False where there are none, or no inverse of the scale.
template <class T, class F>
bool visit_stored(const UpdateTensor& t, const UpdateRule& rule, const F& f) {
  constexpr Dtype kOwn = own_dtype<T>();
  const Dtype read = reads_weight(rule.metric) ? t.weight_dtype : t.grad_dtype;
  if (t.score_dtype != kOwn && t.score_dtype != read) return false;
  if (exact_inverse<T>(rule.grad_scale) == T(0)) return false;
  return visit_alike<T>(rule.metric, t.weight_dtype, t.grad_dtype, [&](auto element) {
    t.score_dtype == kOwn ? f(Element<kOwn>{}, element) : f(element, element);
  });
}

// The same for any dtypes and scales: all is loaded as T, updated and stored.
template <class T>
void update_loaded(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  T weights[kPiece], grads[kPiece], scores[kPiece];
  const T* w = reads_weight(rule.metric) ? load_chunk(t.weight, t.weight_dtype, at, n, weights) : nullptr;
  const T* g = reads_grad(rule.metric) ? load_chunk(t.grad, t.grad_dtype, at, n, grads) : nullptr;
  const T* score = rule.reads_score() ? load_chunk(t.score, t.score_dtype, at, n, scores) : nullptr;
  if (g != nullptr) g = unscale_chunk(g, rule.grad_scale, n, grads);
  using Own = Element<own_dtype<T>()>;
  update_entries<Own, Own, T>(unscaled(rule), w, g, score, n, scores);
  store_chunk(target, t.score_dtype, 0, n, scores);
}

// Updates the scores [at, at + n) of a tensor and writes them to `target`.
template <class T>
void update_any(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  const bool done = visit_stored<T>(t, rule, [&](auto scores, auto read) {
    using S = decltype(scores);
    using E = decltype(read);
    update_entries<S, E, T>(rule, entries_of<E>(t.weight, at), entries_of<E>(t.grad, at),
                            entries_of<S>(t.score, at), n, static_cast<typename S::type*>(target));
  });
  if (done) return;
  for (int64_t from = 0; from < n; from += kPiece) {
    update_loaded<T>(t, rule, at + from, min64(kPiece, n - from), advance(target, t.score_dtype, from));
  }
}
void update_chunk(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  t.wide() ? update_any<double>(t, rule, at, n, target) : update_any<float>(t, rule, at, n, target);
}

// The same, written past the caches. Such writes keep the processor from looking ahead, but for entries of
// half types, which are few lines: asking for those takes longer than it saves.
[[gnu::always_inline]] inline void ask_ahead(const void* data, Dtype dtype, int64_t at, int64_t n) {
  if (entry_bytes(dtype) > 2) Ahead(data, dtype, at).ask_for(n);
}
void update_past(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n) {
  alignas(kPast) char some[kPiece * sizeof(double)];
  for (int64_t done = 0; done < n; done += kPiece) {
    const int64_t piece = min64(kPiece, n - done);
    ask_ahead(t.weight, t.weight_dtype, at + done, piece);
    ask_ahead(t.grad, t.grad_dtype, at + done, piece);
    update_chunk(t, rule, at + done, piece, some);
    write_past_caches(some, piece * entry_bytes(t.score_dtype), advance(t.score, t.score_dtype, at + done));
  }
}

void update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule, const Pool& pool) {
  if (rule.overflowed()) return;
  const bool past = writes_past(tensors, count, rule, [](const UpdateTensor& t) { return t.numel; });
  FlatTiles<UpdateTensor>(tensors, count)
      .for_all(pool, [&](const UpdateTensor& t, int64_t begin, int64_t length, int64_t) {
        past ? update_past(t, rule, begin, length)
             : update_chunk(t, rule, begin, length, advance(t.score, t.score_dtype, begin));
      });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
