// Elementwise score updates.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

template <class T>
void update_tile(const UpdateTensor& t, const UpdateRule& rule, int64_t begin, int64_t length) {
  T weights[kChunk], grads[kChunk], values[kChunk];
  for (int64_t done = 0; done < length; done += kChunk) {
    const int64_t at = begin + done, n = min64(kChunk, length - done);
    const T* w = reads_weight(rule.metric) ? load_chunk(t.weight, t.weight_dtype, at, n, weights) : nullptr;
    const T* g = reads_grad(rule.metric) ? load_chunk(t.grad, t.grad_dtype, at, n, grads) : nullptr;
    if (g != nullptr) g = unscale_chunk(g, rule.grad_scale, n, grads);
    values_of<T>(rule.metric, w, g, nullptr, n, values);
    if (rule.skip_nonfinite) drop_nonfinite(values, n);
    blend_into(t.score, t.score_dtype, at, n, rule, values);
  }
}

void update_scores(const UpdateTensor* tensors, int64_t count, const UpdateRule& rule, const Pool& pool) {
  if (rule.found_inf != nullptr && *rule.found_inf != 0.0f) return;
  FlatTiles<UpdateTensor>(tensors, count)
      .for_all(pool, [&](const UpdateTensor& t, int64_t begin, int64_t length, int64_t) {
        t.wide() ? update_tile<double>(t, rule, begin, length) : update_tile<float>(t, rule, begin, length);
      });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
