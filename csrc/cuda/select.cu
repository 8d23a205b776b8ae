#include "select.cuh"

#include "fused.cuh"
#include "kernels.h"
#include "nm.cuh"
#include "rows.cuh"

namespace pruneops::cuda {
namespace {

constexpr auto kEvery = [](const SelectTensor&) { return true; };

// f(table) for tables of all tensors: every tensor of a selection is ranked in one type.
template <class F>
cudaError_t for_each_select_table(const SelectTensor* tensors, int64_t count, const F& f) {
  return for_each_table(tensors, count, flat_tiles<SelectTensor>, kEvery, f);
}

struct Totals {
  int64_t entries = 0;
  int64_t tiles = 0;
  bool wide = false;
};

Totals totals_of(const SelectTensor* tensors, int64_t count) {
  Totals totals;
  for (int64_t i = 0; i < count; ++i) {
    totals.entries += tensors[i].numel;
    totals.tiles += flat_tiles(tensors[i]);
    totals.wide |= tensors[i].wide();
  }
  return totals;
}

// Calls f(0.0f) or f(0.0) by the type in which scores are ranked.
template <class F>
cudaError_t in_rank_type(bool wide, const F& f) {
  return wide ? f(0.0) : f(0.0f);
}

constexpr int64_t kStateBytes = sizeof(SelectState<double>);

// Decides the rounds from the counts of each; those of the first may have been taken already.
template <class T>
cudaError_t decide_rounds(const SelectTensor* tensors, int64_t count, Metric metric, bool counted_first,
                          SelectState<T>* state, cudaStream_t stream) {
  for (int round = 0; round < WideRadix<Key<T>>::kRounds; ++round) {
    if (round > 0 || !counted_first) {
      PRUNEOPS_RETURN_IF_ERROR(for_each_select_table(tensors, count, [&](const auto& table) {
        return launch(count_digits_kernel<T>, min64(table.tiles(), kCountingBlocks), stream, table, metric,
                      state, round);
      }));
    }
    PRUNEOPS_RETURN_IF_ERROR(launch(decide_kernel<T>, 1, stream, state, round));
  }
  return cudaSuccess;
}

template <class T>
cudaError_t select_kth(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k,
                       SelectState<T>* state, cudaStream_t stream) {
  PRUNEOPS_RETURN_IF_ERROR(launch(start_selection_kernel<T>, 1, stream, state, k));
  return decide_rounds<T>(tensors, count, metric, false, state, stream);
}

cudaError_t fill_masks(const SelectTensor* tensors, int64_t count, bool keep, cudaStream_t stream) {
  return for_each_select_table(tensors, count, [&](const auto& table) {
    return launch(fill_masks_kernel, table.tiles(), stream, table, keep);
  });
}

template <class T>
cudaError_t write_masks(const SelectTensor* tensors, int64_t count, const SelectRule& rule, int64_t tiles,
                        SelectState<T>* state, cudaStream_t stream) {
  auto* ties = reinterpret_cast<unsigned*>(reinterpret_cast<char*>(state) + kStateBytes);
  if (!rule.prune_ties) {
    PRUNEOPS_RETURN_IF_ERROR(for_each_select_table(tensors, count, [&](const auto& table) {
      return launch(count_ties_kernel<T>, table.tiles(), stream, table, rule.metric, state, ties);
    }));
  }
  PRUNEOPS_RETURN_IF_ERROR(launch(find_cut_kernel<T>, 1, stream, state, ties, tiles, rule.prune_ties));
  return for_each_select_table(tensors, count, [&](const auto& table) {
    return launch(write_mask_kernel<T>, table.tiles(), stream, table, rule.metric, state);
  });
}

template <class T, int kGroup>
cudaError_t nm_vector(const SelectTensor& t, Metric metric, int64_t n, cudaStream_t stream) {
  return launch(nm_vector_kernel<T, kGroup>, ceil_div(t.numel, kThreads * kVector), stream, t, metric, n);
}

template <class T>
cudaError_t nm_as(const SelectTensor& t, Metric metric, int64_t n, int64_t m, cudaStream_t stream) {
  switch (m) {
    case 1:
      return nm_vector<T, 1>(t, metric, n, stream);
    case 2:
      return nm_vector<T, 2>(t, metric, n, stream);
    case 4:
      return nm_vector<T, 4>(t, metric, n, stream);
    case 8:
      return nm_vector<T, 8>(t, metric, n, stream);
    default:
      break;
  }
  const int64_t warps = ceil_div(t.numel, kWarp / m * m);
  return launch(nm_warp_kernel<T>, ceil_div(warps, kWarps), stream, t, metric, n, static_cast<int>(m));
}

}  // namespace

int64_t select_scratch_bytes(const SelectTensor* tensors, int64_t count) {
  return kStateBytes + totals_of(tensors, count).tiles * static_cast<int64_t>(sizeof(unsigned));
}

cudaError_t kth_value(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value,
                      Dtype dtype, void* scratch, cudaStream_t stream) {
  return in_rank_type(totals_of(tensors, count).wide, [&](auto rank) {
    using T = decltype(rank);
    auto* state = static_cast<SelectState<T>*>(scratch);
    PRUNEOPS_RETURN_IF_ERROR(select_kth<T>(tensors, count, metric, k, state, stream));
    return launch(write_value_kernel<T>, 1, stream, state, value, dtype);
  });
}

cudaError_t topk_mask(const SelectTensor* tensors, int64_t count, const SelectRule& rule, void* scratch,
                      cudaStream_t stream) {
  const Totals totals = totals_of(tensors, count);
  if (rule.k == 0 || rule.k == totals.entries) return fill_masks(tensors, count, rule.k == 0, stream);
  return in_rank_type(totals.wide, [&](auto rank) {
    using T = decltype(rank);
    auto* state = static_cast<SelectState<T>*>(scratch);
    PRUNEOPS_RETURN_IF_ERROR(select_kth<T>(tensors, count, rule.metric, rule.k, state, stream));
    return write_masks<T>(tensors, count, rule, totals.tiles, state, stream);
  });
}

cudaError_t count_digits(const SelectTensor* tensors, int64_t count, Metric metric, const int64_t* prefix,
                         int round, bool wide, int64_t* counts, cudaStream_t stream) {
  constexpr int64_t kBins = WideRadix<uint32_t>::kBins;
  auto* totals = reinterpret_cast<unsigned long long*>(counts);
  PRUNEOPS_RETURN_IF_ERROR(
      launch(clear_counts_kernel, ceil_div(count * kBins, kThreads), stream, totals, count * kBins));
  for (int64_t i = 0; i < count; ++i) {
    PRUNEOPS_RETURN_IF_ERROR(for_each_select_table(tensors + i, 1, [&](const auto& table) {
      return in_rank_type(wide, [&](auto rank) {
        return launch(count_next_digits_kernel<decltype(rank)>, min64(table.tiles(), kCountingBlocks), stream,
                      table, metric, prefix, round, totals + i * kBins);
      });
    }));
  }
  return cudaSuccess;
}

cudaError_t update_topk_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                             const UpdateRule& update, const SelectRule& select, void* scratch,
                             cudaStream_t stream) {
  const Totals totals = totals_of(tensors, count);
  if (select.k == 0 || select.k == totals.entries) {
    PRUNEOPS_RETURN_IF_ERROR(update_scores(updates, count, update, stream));
    return fill_masks(tensors, count, select.k == 0, stream);
  }
  return in_rank_type(totals.wide, [&](auto rank) {
    using T = decltype(rank);
    auto* state = static_cast<SelectState<T>*>(scratch);
    PRUNEOPS_RETURN_IF_ERROR(launch(start_selection_kernel<T>, 1, stream, state, select.k));
    PRUNEOPS_RETURN_IF_ERROR(for_each_width([&](auto width, const auto& chosen) {
      return for_each_table(updates, count, flat_tiles<UpdateTensor>, chosen, [&](const auto& table) {
        return launch(update_count_kernel<decltype(width), T>, min64(table.tiles(), kCountingBlocks), stream,
                      table, update, state);
      });
    }));
    PRUNEOPS_RETURN_IF_ERROR(decide_rounds<T>(tensors, count, select.metric, true, state, stream));
    return write_masks<T>(tensors, count, select, totals.tiles, state, stream);
  });
}

cudaError_t row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k,
                          cudaStream_t stream) {
  if (tensor.numel == 0) return cudaSuccess;
  if (k == 0 || k == row) return fill_masks(&tensor, 1, k == 0, stream);
  return in_rank_type(tensor.wide(), [&](auto rank) {
    return launch(row_topk_mask_kernel<decltype(rank)>, tensor.numel / row, stream, tensor, metric, row, k);
  });
}

cudaError_t nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, cudaStream_t stream) {
  return in_rank_type(tensor.wide(),
                      [&](auto rank) { return nm_as<decltype(rank)>(tensor, metric, n, m, stream); });
}

}  // namespace pruneops::cuda
