#include "select.cuh"

#include "kernels.h"
#include "nm.cuh"
#include "pass.cuh"
#include "plan.cuh"

namespace pruneops::cuda {
namespace {

#ifndef PRUNEOPS_SELECT_LIMITS
#define PRUNEOPS_SELECT_LIMITS kShippedLimits
#endif
constexpr SelectLimits kLimits = PRUNEOPS_SELECT_LIMITS;

constexpr auto kEvery = [](const auto&) { return true; };
constexpr auto kTiles = [](const auto& tensor) { return flat_tiles(tensor); };

// One selection: its tensors, and the launches that it is made of.
template <class T>
class Selecting {
 public:
  using K = Key<T>;

  Selecting(const SelectTensor* tensors, int64_t count, const Sizes& sizes, Metric metric, int64_t k,
            void* scratch, cudaStream_t stream)
      : tensors_(tensors),
        count_(count),
        metric_(metric),
        stream_(stream),
        plan_(sizes, k, scratch),
        work_(plan_.work) {}

  // The search as it stands before the last decision.
  cudaError_t search() {
    PRUNEOPS_RETURN_IF_ERROR(clear());
    if (work_.sample_size > 0) PRUNEOPS_RETURN_IF_ERROR(pass_over_all());
    return rounds();
  }

  // The same over scores that are updated in the pass.
  template <class Fused>
  cudaError_t search_updated(const Fused& fused, const UpdateRule& rule) {
    PRUNEOPS_RETURN_IF_ERROR(clear());
    PRUNEOPS_RETURN_IF_ERROR(pass<true>(fused, UpdatedScores{rule}));
    return rounds();
  }

  cudaError_t write_value(void* value, Dtype dtype) const {
    return launch(write_value_kernel<T>, 1, stream_, work_, value, dtype);
  }

  cudaError_t write_masks(bool prune_ties) const {
    PRUNEOPS_RETURN_IF_ERROR(for_each_fitting_table([&](const auto& table) {
      return launch_resident(count_ties_kernel<T, table.kCapacity>, table.tiles(), kTileBlocks<T>, stream_,
                             table, metric_, work_);
    }));
    PRUNEOPS_RETURN_IF_ERROR(for_each_fitting_table([&](const auto& table) {
      return launch_resident(write_mask_kernel<T, table.kCapacity>, table.tiles(), kWriteBlocks<T>, stream_,
                             table, metric_, work_, prune_ties);
    }));
    if (!work_.collects) return cudaSuccess;
    return for_each_part_table(tensors_, [&](const auto& table) {
      return launch_resident(patch_mask_kernel<K>, ceil_div(table.tiles(), kWarps * kRunTiles), kPatchBlocks,
                             stream_, table, work_, prune_ties);
    });
  }

 private:
  // f(table) for tables of all tensors, none of which shares a part with another.
  template <class Tensors, class F>
  cudaError_t for_each_part_table(const Tensors& tensors, const F& f) const {
    return for_each_table(tensors, count_, kTiles, kEvery, f, work_.tiles_per_part);
  }
  static_assert(Table<SelectTensor>::kCapacity == Table<FusedTensor>::kCapacity,
                "tiles have one number in both");
  // The same of the scores, with a small table where that holds all.
  template <class F>
  cudaError_t for_each_fitting_table(const F& f) const {
    return cuda::for_each_fitting_table(tensors_, count_, kTiles, kEvery, f, work_.tiles_per_part);
  }

  cudaError_t clear() const {
    return cudaMemsetAsync(work_.state, 0, static_cast<size_t>(plan_.zeroed), stream_);
  }

  cudaError_t pass_over_all() const {
    switch (metric_) {
      case Metric::stored:
        return pass_over(StoredScores<Metric::stored>{});
      case Metric::magnitude:
        return pass_over(StoredScores<Metric::magnitude>{});
      default:
        return pass_over(MetricScores{metric_});
    }
  }
  template <class Source>
  cudaError_t pass_over(const Source& source) const {
    return work_.collects ? pass<true>(tensors_, source) : pass<false>(tensors_, source);
  }

  template <bool kCollect, class Tensors, class Source>
  cudaError_t pass(const Tensors& tensors, const Source& source) const {
    int64_t before = 0;
    PRUNEOPS_RETURN_IF_ERROR(for_each_part_table(tensors, [&](const auto& table) {
      int64_t entries = 0;
      for (int64_t i = 0; i < table.count; ++i) entries += table.tensors[i].size();
      const SampleShare share(before, entries, work_.sample_size, work_.entries);
      before += entries;
      const int64_t blocks = ceil_div(share.last - share.first, kSampleShare);
      return launch(sample_kernel<T, Source>, blocks, stream_, table, source, work_, share);
    }));
    for (int round = 1; round < Search<K>::kRounds; ++round) {
      const int64_t blocks = ceil_div(work_.sample_size, kSampleShare);
      PRUNEOPS_RETURN_IF_ERROR(launch(sample_round_kernel<K>, blocks, stream_, work_, round));
    }
    return for_each_part_table(tensors, [&](const auto& table) {
      return launch_resident(pass_kernel<T, Source, kCollect>, table.tiles(),
                             kPassBlocks<T, Source, kCollect>, stream_, table, source, work_);
    });
  }

  cudaError_t rounds() const {
    for (int round = 0; round < Search<K>::kRounds; ++round) {
      bool first = true;
      PRUNEOPS_RETURN_IF_ERROR(for_each_fitting_table([&](const auto& table) {
        const bool is_first = first;
        first = false;
        return launch_resident(round_kernel<T, table.kCapacity>, table.tiles(), kTileBlocks<T>, stream_,
                               table, metric_, work_, round, is_first);
      }));
    }
    return cudaSuccess;
  }

  const SelectTensor* tensors_;
  int64_t count_;
  Metric metric_;
  cudaStream_t stream_;
  Plan<K> plan_;
  const SelectWork<K>& work_;
};

cudaError_t fill_masks(const SelectTensor* tensors, int64_t count, bool keep, cudaStream_t stream) {
  return for_each_table(tensors, count, flat_tiles<SelectTensor>, kEvery, [&](const auto& table) {
    return launch(fill_masks_kernel, table.tiles(), stream, table, keep);
  });
}

// The tensors of an update with the masks that are written as they are passed over.
struct FusedTensors {
  const UpdateTensor* updates;
  const SelectTensor* scores;

  FusedTensor operator[](int64_t i) const { return {updates[i], scores[i].mask, scores[i].packed}; }
};

// Tensors, each with its own counts.
struct CountedTensors {
  const SelectTensor* tensors;
  unsigned long long* counts;
  int64_t bins;

  CountedTensor operator[](int64_t i) const { return {tensors[i], counts + i * bins}; }
};

template <class T, int kGroup>
cudaError_t nm_vector(const SelectTensor& t, Metric metric, int64_t n, cudaStream_t stream) {
  return launch(nm_vector_kernel<T, kGroup>, ceil_div(t.numel, kNmTile), stream, t, metric, n);
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
    case 16:
      return nm_vector<T, 16>(t, metric, n, stream);
    case 32:
      return nm_vector<T, 32>(t, metric, n, stream);
    default:
      break;
  }
  const int64_t warps = ceil_div(t.numel, kWarp / m * m);
  return launch(nm_warp_kernel<T>, ceil_div(warps, kWarps), stream, t, metric, n, static_cast<int>(m));
}

}  // namespace

int64_t select_scratch_bytes(const SelectTensor* tensors, int64_t count, bool strict) {
  return scratch_bytes(Sizes(kLimits, tensors, count, strict));
}

cudaError_t kth_value(const SelectTensor* tensors, int64_t count, Metric metric, int64_t k, void* value,
                      Dtype dtype, void* scratch, cudaStream_t stream) {
  const Sizes sizes(kLimits, tensors, count, false);
  return in_rank_type(sizes.wide, [&](auto rank) {
    Selecting<decltype(rank)> selecting(tensors, count, sizes, metric, k, scratch, stream);
    PRUNEOPS_RETURN_IF_ERROR(selecting.search());
    return selecting.write_value(value, dtype);
  });
}

cudaError_t topk_mask(const SelectTensor* tensors, int64_t count, const SelectRule& rule, void* scratch,
                      cudaStream_t stream) {
  const Sizes sizes(kLimits, tensors, count, rule.strict);
  if (rule.k == 0 || rule.k == sizes.entries) return fill_masks(tensors, count, rule.k == 0, stream);
  return in_rank_type(sizes.wide, [&](auto rank) {
    Selecting<decltype(rank)> selecting(tensors, count, sizes, rule.metric, rule.k, scratch, stream);
    PRUNEOPS_RETURN_IF_ERROR(selecting.search());
    return selecting.write_masks(rule.prune_ties);
  });
}

cudaError_t count_digits(const SelectTensor* tensors, int64_t count, Metric metric, const int64_t* prefix,
                         int round, bool wide, int64_t* counts, cudaStream_t stream) {
  constexpr int64_t kBins = WideRadix<uint32_t>::kBins;
  if (count == 0) return cudaSuccess;
  const auto bytes = static_cast<size_t>(count * kBins) * sizeof(int64_t);
  PRUNEOPS_RETURN_IF_ERROR(cudaMemsetAsync(counts, 0, bytes, stream));
  const CountedTensors counted{tensors, reinterpret_cast<unsigned long long*>(counts), kBins};
  return for_each_table(counted, count, kTiles, kEvery, [&](const auto& table) {
    return in_rank_type(wide, [&](auto rank) {
      using T = decltype(rank);
      return launch_resident(count_next_digits_kernel<T>, table.tiles(), kTileBlocks<T>, stream, table,
                             metric, prefix, round);
    });
  });
}

cudaError_t update_topk_mask(const UpdateTensor* updates, const SelectTensor* tensors, int64_t count,
                             const UpdateRule& update, const SelectRule& select, void* scratch,
                             cudaStream_t stream) {
  const Sizes sizes(kLimits, tensors, count, select.strict);
  const bool fused = select.k > 0 && select.k < sizes.entries && sizes.bracketed() && !sizes.strict;
  if (!fused) {
    PRUNEOPS_RETURN_IF_ERROR(update_scores(updates, count, update, stream));
    return topk_mask(tensors, count, select, scratch, stream);
  }
  return in_rank_type(sizes.wide, [&](auto rank) {
    Selecting<decltype(rank)> selecting(tensors, count, sizes, select.metric, select.k, scratch, stream);
    PRUNEOPS_RETURN_IF_ERROR(selecting.search_updated(FusedTensors{updates, tensors}, update));
    return selecting.write_masks(select.prune_ties);
  });
}

cudaError_t nm_mask(const SelectTensor& tensor, Metric metric, int64_t n, int64_t m, cudaStream_t stream) {
  return in_rank_type(tensor.wide(),
                      [&](auto rank) { return nm_as<decltype(rank)>(tensor, metric, n, m, stream); });
}

}  // namespace pruneops::cuda
