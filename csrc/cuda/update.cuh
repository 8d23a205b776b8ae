// Elementwise score updates.
#pragma once

#include "table.cuh"
#include "vector.cuh"

namespace pruneops::cuda {

template <class T>
__device__ __forceinline__ void update_entries(const UpdateTensor& t, const UpdateRule& rule, T scale,
                                               int64_t at, int n) {
  T w[kVector] = {}, g[kVector] = {}, norm[kVector] = {}, v[kVector];
  if (reads_weight(rule.metric)) load_entries(t.weight, t.weight_dtype, at, n, w);
  if (reads_grad(rule.metric)) load_entries(t.grad, t.grad_dtype, at, n, g);
  if (rule.grad_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) g[i] = g[i] / scale;
  }
  values_of(rule.metric, w, g, norm, v);
  if (rule.skip_nonfinite) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] = finite_or_zero(v[i]);
  }
  blend_into(t.score, t.score_dtype, at, n, rule, v);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    update_scores_kernel(const __grid_constant__ Table<UpdateTensor> table, const UpdateRule rule) {
  if (rule.found_inf != nullptr && *rule.found_inf != 0.0f) return;
  const T scale = rule.grad_scale != nullptr ? static_cast<T>(*rule.grad_scale) : T(1);
  for_each_flat_tile(table, [&](const UpdateTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) { update_entries(t, rule, scale, at, n); });
  });
}

}  // namespace pruneops::cuda
