// A score update whose results are ranked before they leave the registers.
#pragma once

#include "tile.cuh"
#include "update.cuh"

namespace pruneops::cuda {

struct FusedTensor {
  UpdateTensor update;
  uint8_t* mask;
  bool packed;

  PRUNEOPS_HD int64_t size() const { return update.numel; }
};

// The scores [at, at + n) after an update, as they are stored, which may write them. The old ones are asked
// for last: all three at once would take more registers than the pass has left.
template <class T, class Own>
__device__ __forceinline__ void updated_own_scores(const UpdateTensor& t, const UpdateRule& rule, int64_t at,
                                                   int n, bool writes, T (&out)[kVector]) {
  Own scores[kVector] = {};
  if (rule.overflowed()) {
    load_entries(t.score, t.score_dtype, at, n, scores);
  } else {
    const UpdateInputs<Own, UpdateTensor> inputs(t, rule.metric, at, n);
    Own v[kVector];
    inputs.values(rule, grad_scale_of<Own>(rule), v);
    if (rule.reads_score()) load_entries(t.score, t.score_dtype, at, n, scores);
    blend_scores(rule, v, scores);
    if (writes) store_entries(t.score, t.score_dtype, at, n, scores);
    visit_dtype_of<Own>(t.score_dtype, [&](auto element) {
      using E = decltype(element);
#pragma unroll
      for (int i = 0; i < kVector; ++i) scores[i] = E::template load<Own>(E::store(scores[i]));
    });
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = static_cast<T>(scores[i]);
}

template <class T>
__device__ __forceinline__ void updated_scores_of(const UpdateTensor& t, const UpdateRule& rule, int64_t at,
                                                  int n, bool writes, T (&out)[kVector]) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (t.wide()) return updated_own_scores<T, double>(t, rule, at, n, writes, out);
  }
  updated_own_scores<T, float>(t, rule, at, n, writes, out);
}

}  // namespace pruneops::cuda
