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

// What an update reads of a vector, which is 0 where it is not read.
template <class T, class Tensor>
struct UpdateInputs {
  const Tensor& tensor;
  AnyVector<T> weight, grad;

  __device__ __forceinline__ UpdateInputs(const Tensor& t, Metric metric, int64_t at, int n) : tensor(t) {
    if (reads_weight(metric)) weight.load(t.weight, t.weight_dtype, at, n);
    if (reads_grad(metric)) grad.load(t.grad, t.grad_dtype, at, n);
  }
  __device__ __forceinline__ void values(const UpdateRule& rule, T scale, T (&v)[kVector]) const {
    T w[kVector], g[kVector];
    weight.convert(tensor.weight_dtype, w);
    grad.convert(tensor.grad_dtype, g);
    updated_values(rule, scale, w, g, v);
  }
};

// The value of a block of so many entries, from their total.
template <class T>
__device__ __forceinline__ T block_value(const UpdateRule& rule, T total, int64_t entries) {
  const T value = finish_block(rule.reduce, total, entries);
  return rule.skip_nonfinite && rule.metric == Metric::product ? finite_or_zero(value) : value;
}

// Scores as they are after an update, from the old ones, before they are rounded to their dtype.
template <class T>
__device__ __forceinline__ void blend_scores(const UpdateRule& rule, const T (&v)[kVector],
                                             T (&scores)[kVector]) {
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
#pragma unroll
  for (int i = 0; i < kVector; ++i) scores[i] = blend(rule.reads_score(), alpha, scores[i], beta, v[i]);
}

template <class T, int64_t kMost>
__global__ void __launch_bounds__(kThreads)
    update_scores_kernel(const __grid_constant__ Table<UpdateTensor, kMost> table, const UpdateRule rule) {
  if (rule.overflowed()) return;
  const T scale = grad_scale_of<T>(rule);
  for_each_flat_tile(table, [&](const UpdateTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) {
      const UpdateInputs<T, UpdateTensor> inputs(t, rule.metric, at, n);
      AnyVector<T> old;
      if (rule.reads_score()) old.load(t.score, t.score_dtype, at, n);
      T v[kVector], scores[kVector];
      inputs.values(rule, scale, v);
      old.convert(t.score_dtype, scores);
      blend_scores(rule, v, scores);
      store_entries(t.score, t.score_dtype, at, n, scores);
    });
  });
}

}  // namespace pruneops::cuda
