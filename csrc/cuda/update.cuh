// Elementwise score updates.
#pragma once

#include "table.cuh"
#include "words.cuh"

namespace pruneops::cuda {

template <class T>
__device__ __forceinline__ T grad_scale_of(const UpdateRule& rule) {
  return rule.grad_scale != nullptr ? static_cast<T>(*rule.grad_scale) : T(1);
}

// v of entries from their weights and gradients. The product of the block metrics may be anything; its block
// is looked at instead (block_value).
template <class T>
__device__ __forceinline__ void updated_values(const UpdateRule& rule, T scale, const T (&w)[kVector],
                                               T (&g)[kVector], T (&v)[kVector]) {
  const T norm[kVector] = {};
  if (rule.grad_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) g[i] = g[i] / scale;
  }
  values_of(rule.metric, w, g, norm, v);
  if (rule.skip_nonfinite && rule.metric != Metric::product) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) v[i] = finite_or_zero(v[i]);
  }
}

// The same of the entries [at, at + n) of flat tensors.
template <class T, class Tensor>
__device__ __forceinline__ void values_at(const Tensor& t, const UpdateRule& rule, T scale, int64_t at, int n,
                                          T (&v)[kVector]) {
  T w[kVector] = {}, g[kVector] = {};
  if (reads_weight(rule.metric)) load_entries(t.weight, t.weight_dtype, at, n, w);
  if (reads_grad(rule.metric)) load_entries(t.grad, t.grad_dtype, at, n, g);
  updated_values(rule, scale, w, g, v);
}

// The value of a block of so many entries, from their total.
template <class T>
__device__ __forceinline__ T block_value(const UpdateRule& rule, T total, int64_t entries) {
  const T value = finish_block(rule.reduce, total, entries);
  return rule.skip_nonfinite && rule.metric == Metric::product ? finite_or_zero(value) : value;
}

// The scores [at, at + n) as they are after an update, before they are rounded to their dtype.
template <class T>
__device__ __forceinline__ void updated_scores(const UpdateTensor& t, const UpdateRule& rule, T scale,
                                               int64_t at, int n, T (&scores)[kVector]) {
  T v[kVector], old[kVector] = {};
  values_at(t, rule, scale, at, n, v);
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  if (rule.reads_score()) load_entries(t.score, t.score_dtype, at, n, old);
#pragma unroll
  for (int i = 0; i < kVector; ++i) scores[i] = blend(rule.reads_score(), alpha, old[i], beta, v[i]);
}

template <class T, int64_t kMost>
__global__ void __launch_bounds__(kThreads)
    update_scores_kernel(const __grid_constant__ Table<UpdateTensor, kMost> table, const UpdateRule rule) {
  if (rule.overflowed()) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_flat_tile(table, [&](const UpdateTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) {
      T scores[kVector];
      updated_scores(t, rule, scale, at, n, scores);
      store_entries(t.score, t.score_dtype, at, n, scores);
    });
  });
}

}  // namespace pruneops::cuda
