// Elementwise score updates.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Updates the scores [at, at + n), n at most kChunk, and writes them to `target`: the scores themselves, or a
// buffer.
template <class T>
void update_chunk_as(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  T weights[kChunk], grads[kChunk], values[kChunk];
  const T* w = reads_weight(rule.metric) ? load_chunk(t.weight, t.weight_dtype, at, n, weights) : nullptr;
  const T* g = reads_grad(rule.metric) ? load_chunk(t.grad, t.grad_dtype, at, n, grads) : nullptr;
  if (g != nullptr) g = unscale_chunk(g, rule.grad_scale, n, grads);
  values_of<T>(rule.metric, w, g, nullptr, n, values);
  if (rule.skip_nonfinite) drop_nonfinite(values, n);
  blend_into(advance(t.score, t.score_dtype, at), t.score_dtype, n, rule, values, target);
}

void update_chunk(const UpdateTensor& t, const UpdateRule& rule, int64_t at, int64_t n, void* target) {
  t.wide() ? update_chunk_as<double>(t, rule, at, n, target) : update_chunk_as<float>(t, rule, at, n, target);
}

bool overflowed(const UpdateRule& rule) {
  return rule.found_inf != nullptr && *rule.found_inf != 0.0f;
}

void update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule, const Pool& pool) {
  if (overflowed(rule)) return;
  FlatTiles<UpdateTensor>(tensors, count)
      .for_all(pool, [&](const UpdateTensor& t, int64_t begin, int64_t length, int64_t) {
        for (int64_t at = begin; at < begin + length; at += kChunk) {
          update_chunk(t, rule, at, min64(kChunk, begin + length - at), advance(t.score, t.score_dtype, at));
        }
      });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
