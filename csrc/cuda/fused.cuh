// A score update whose results are counted for a selection before they leave the registers' reach.
#pragma once

#include "select.cuh"
#include "update.cuh"

namespace pruneops::cuda {

// Updates the scores and counts their first digits; Own is the type of the update, T that of the ranking.
template <class Own, class T>
__global__ void __launch_bounds__(kThreads)
    update_count_kernel(const __grid_constant__ Table<UpdateTensor> table, const UpdateRule rule,
                        SelectState<T>* state) {
  using R = WideRadix<Key<T>>;
  __shared__ unsigned counts[R::kBins];
  clear_counts(counts);
  const bool overflow = rule.found_inf != nullptr && *rule.found_inf != 0.0f;
  const Own scale = rule.grad_scale != nullptr ? static_cast<Own>(*rule.grad_scale) : Own(1);
  for_each_flat_tile(table, [&](const UpdateTensor& t, int64_t begin, int64_t end, int64_t) {
    const SelectTensor scores = stored_scores(t);
    for_each_vector(begin, end, [&](int64_t at, int n) {
      if (!overflow) update_entries(t, rule, scale, at, n);
      Key<T> keys[kVector];
      load_keys<T>(scores, Metric::stored, at, n, keys);
      count_keys<R>(keys, n, Key<T>(0), 0, counts);
    });
  });
  add_counts(counts, state->counts);
}

}  // namespace pruneops::cuda
