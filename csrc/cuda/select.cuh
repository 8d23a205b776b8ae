// Exact global selection as a chain of kernels that decide by themselves what is left to do: a pass over a
// bracket where one is worth its sample (pass.cuh), rounds of digit counts, counts of ties, and the masks.
// All state stays in device memory. A kernel's first act is the decision from the counts of the kernel before
// it, made by each of its blocks for itself, which costs less than a launch.
#pragma once

#include "digits.cuh"
#include "runs.cuh"
#include "source.cuh"
#include "tile.cuh"

namespace pruneops::cuda {

// ---- decisions

// The search as it stands before a round.
template <class K>
__device__ __forceinline__ Search<K> search_before(const SelectWork<K>& work, int round,
                                                   Deciding<K>& shared) {
  const auto* state = work.state;
  if (round > 0) {
    const bool inside = round == 1 && work.counted_inside();
    return decide(state->searches[round - 1], round - 1,
                  inside ? state->inside_counts : state->counts[round - 1], shared);
  }
  if (work.sample_size == 0) return start_search(work.k, K(0), static_cast<K>(~K(0)), 0, work.entries);
  return search_after(work.counted(), state->bracket, work.k, work.entries,
                      work.has_collected() ? Among::collected : Among::all);
}

__device__ __forceinline__ bool is_first_thread() {
  return blockIdx.x == 0 && threadIdx.x == 0;
}

// ---- rounds

// f(keys, n) for the vectors of an array that this thread has.
template <class K, class F>
__device__ __forceinline__ void for_each_key_vector(const K* keys, int64_t size, const F& f) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector; at < size;
       at += step) {
    const int n = static_cast<int>(min64(kVector, size - at));
    f(load_words(keys + at, n).words, n);
  }
}

// `first`: of the tables of a selection. What was collected is counted once.
template <class T, int64_t kMost>
__global__ void __launch_bounds__(kThreads, kTileBlocks<T>)
    round_kernel(const __grid_constant__ Table<SelectTensor, kMost> table, const Metric metric,
                 const SelectWork<Key<T>> work, const int round, const bool first) {
  using K = Key<T>;
  __shared__ Deciding<K> deciding;
  __shared__ unsigned counts[Search<K>::kBins];
  const Search<K> search = search_before(work, round, deciding);
  if (is_first_thread()) work.state->searches[round] = search;
  if (search.width(round) == 0 || (round == 0 && work.counted_inside())) return;
  const auto digit_of = [&](K key) { return search.matches(key, round) ? search.digit(key, round) : -1; };
  clear_counts(counts);
  if (search.among == Among::all) {
    for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t) {
      const auto tile = load_tile<T>(t, metric, begin, end);
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) count_keys(tile.keys[v], tile.size(v), digit_of, counts);
    });
  } else if (first) {
    for_each_key_vector(work.few, static_cast<int64_t>(work.state->between),
                        [&](const auto& keys, int n) { count_keys(keys, n, digit_of, counts); });
  }
  add_counts(counts, work.state->counts[round]);
}

// A tensor whose digits are counted apart from those of others.
struct CountedTensor {
  SelectTensor scores;
  unsigned long long* counts;

  PRUNEOPS_HD int64_t size() const { return scores.numel; }
};

// Counts the digits of the keys of each tensor that share those of a prefix: a round whose decision is made
// elsewhere. A block walks neighbouring tiles, and so has few tensors whose counts it adds.
template <class T>
__global__ void __launch_bounds__(kThreads, kTileBlocks<T>)
    count_next_digits_kernel(const __grid_constant__ Table<CountedTensor> table, const Metric metric,
                             const int64_t* prefix, const int round) {
  using K = Key<T>;
  using R = WideRadix<K>;
  __shared__ unsigned counts[R::kBins];
  const K decided = static_cast<K>(*prefix);
  const auto digit_of = [&](K key) { return R::matches(key, decided, round) ? R::digit(key, round) : -1; };
  const int64_t share = ceil_div(table.tiles(), gridDim.x);
  const int64_t first = min64(blockIdx.x * share, table.tiles()), last = min64(first + share, table.tiles());
  for (int64_t tile = first; tile < last;) {
    const int64_t index = table.tensor_of(tile), end = min64(last, table.first_tile[index + 1]);
    const CountedTensor& t = table.tensors[index];
    clear_counts(counts);
    for (; tile < end; ++tile) {
      const int64_t begin = (tile - table.first_tile[index]) * kTile;
      const auto keys = load_tile<T>(t.scores, metric, begin, min64(begin + kTile, t.size()));
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) count_keys(keys.keys[v], keys.size(v), digit_of, counts);
    }
    add_counts(counts, t.counts);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_value_kernel(const SelectWork<Key<T>> work, void* value, const Dtype dtype) {
  __shared__ Deciding<Key<T>> deciding;
  const auto search = search_before(work, Search<Key<T>>::kRounds, deciding);
  if (threadIdx.x != 0) return;
  const T score = key_to_score<T>(search.key());
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    *static_cast<typename E::type*>(value) = E::template store<T>(score);
  });
}

// ---- ties

// The place of the counts of ties with the threshold: those of an end of the bracket were taken by the pass.
template <class K>
__device__ __forceinline__ Ties place_of_ties(const SelectWork<K>& work, K threshold) {
  if (work.sample_size == 0) return Ties::threshold;
  const Bracket<K> bracket = work.state->bracket;
  return threshold == bracket.low ? Ties::low : threshold == bracket.high ? Ties::high : Ties::threshold;
}

// Decides the threshold, and counts its ties in each part where some are kept and some are not.
template <class T, int64_t kMost>
__global__ void __launch_bounds__(kThreads, kTileBlocks<T>)
    count_ties_kernel(const __grid_constant__ Table<SelectTensor, kMost> table, const Metric metric,
                      const SelectWork<Key<T>> work) {
  using K = Key<T>;
  __shared__ Deciding<K> deciding;
  const Search<K> search = search_before(work, Search<K>::kRounds, deciding);
  if (is_first_thread()) work.state->searches[Search<K>::kRounds] = search;
  const K threshold = search.key();
  if (!splits_ties(search.selection) || place_of_ties(work, threshold) != Ties::threshold) return;
  unsigned* ties = work.ties_of(Ties::threshold);
  const auto add = [&](unsigned own, int64_t number) {
    const unsigned total = __reduce_add_sync(kAllLanes, own);
    if (threadIdx.x % kWarp == 0 && total > 0) atomicAdd(&ties[work.part_of(number)], total);
  };
  if (search.among == Among::all) {
    for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t number) {
      const auto tile = load_tile<T>(t, metric, begin, end);
      int equal = 0;
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) equal += count_equal(tile, v, threshold);
      add(static_cast<unsigned>(equal), number);
    });
  } else {
    for_each_run(table, work, [&](const CollectedRun<K>& run, int64_t number) {
      add(run.count_equal(threshold), number);
    });
  }
}

// Ties are kept in the parts before the cut, and the first so many of the part of the cut; none has to be
// looked at where `ties` is 0.
struct Cut {
  int64_t part;
  int64_t ties;
};

struct FindingCut {
  long long partial[kWarps];
  Cut cut;
};

// Of counts [begin, end), with `share` neighbours to a thread, the first thread whose counts reach `wanted`,
// as the part that they begin with, and how many are wanted of them. Every thread of the block calls it.
__device__ __forceinline__ Cut find_share(const unsigned* counts, int64_t begin, int64_t end, int64_t share,
                                          int64_t wanted, FindingCut& shared) {
  const int64_t first = min64(begin + threadIdx.x * share, end), last = min64(first + share, end);
  long long own = 0;
  for (int64_t p = first; p < last; ++p) own += counts[p];
  const auto scan = block_scan(own, shared.partial);
  const int64_t before = scan.before;
  if (threadIdx.x == 0 && (wanted <= 0 || wanted > scan.total)) shared.cut = {begin, 0};
  if (before < wanted && wanted <= before + own) shared.cut = {first, wanted - before};
  __syncthreads();
  return shared.cut;
}

// Every thread of the block calls it.
template <class K>
__device__ __forceinline__ Cut find_cut(const SelectWork<K>& work, const Search<K>& search, bool prune_ties,
                                        FindingCut& shared) {
  const int64_t kept = prune_ties ? 0 : search.selection.ties_kept();
  if (kept == 0) return {0, 0};
  if (kept == search.selection.equal) return {work.parts, 0};
  const unsigned* ties = work.ties_of(place_of_ties(work, search.key()));
  const int64_t share = ceil_div(work.parts, kThreads);
  static_assert(kMaxParts < kThreads * (kThreads - 1), "a thread for each count of a share");
  const Cut within = find_share(ties, 0, work.parts, share, kept, shared);
  return find_share(ties, within.part, min64(within.part + share, work.parts), 1, within.ties, shared);
}

// ---- masks

// Whether a pass has written all masks but for what it has collected, among which is the wanted key with its
// ties.
template <class K>
__device__ __forceinline__ bool is_left_to_patches(const SelectWork<K>& work, const Search<K>& search) {
  return work.sample_size > 0 && work.has_collected() && !work.missed() &&
         place_of_ties(work, search.key()) == Ties::threshold;
}

// What there is to do with the mask of a tile. A pass over a bracket has kept what lies from its split on;
// without one, or where it failed, all tiles are written.
template <class K>
struct Finish {
  Cut cut;
  int64_t cut_begin;  // tiles of the cut: their ties are looked at one by one
  int64_t cut_end;
  K threshold;
  bool writes_kept;     // whether tiles before the cut are written, from their keys,
  bool writes_dropped;  // and those behind it
  bool patches;         // what the pass left undecided in other tiles is corrected,
  bool patches_cut;     // and in the tiles of the cut, as all ties are among that
  K split;              // from which the pass has kept it

  __device__ Finish(const SelectWork<K>& work, const Search<K>& search, const Cut& found)
      : cut(found),
        cut_begin(found.part * work.tiles_per_part),
        cut_end(found.ties > 0 ? cut_begin + work.tiles_per_part : cut_begin),
        threshold(search.key()),
        writes_kept(true),
        writes_dropped(true),
        patches(false),
        patches_cut(false),
        split(0) {
    if (work.sample_size == 0 || !work.has_collected() || work.missed()) return;
    const bool at_high = threshold == work.state->bracket.high;
    writes_kept = !at_high && threshold == work.state->bracket.low;
    writes_dropped = at_high;
    patches = true;
    patches_cut = is_left_to_patches(work, search);
    split = split_of<ScoreOf<K>>(work.state->bracket);
  }
  __device__ bool keeps_ties(int64_t number) const { return number < cut_begin; }
  __device__ bool is_cut(int64_t number) const { return number >= cut_begin && number < cut_end; }
  __device__ bool writes(int64_t number) const { return keeps_ties(number) ? writes_kept : writes_dropped; }
};

// Keeps the scores that are above the threshold, or also those that tie with it.
template <class T>
__device__ __forceinline__ void write_tile(const SelectTensor& t, Metric metric, int64_t begin, int64_t end,
                                           Key<T> threshold, bool keep_ties) {
  const ScoreBound<T> least(keep_ties ? threshold : static_cast<Key<T>>(threshold + 1));
  const auto write = [&](const auto& batch, const auto& held) {
    MaskWords masks[batch.kSize];
#pragma unroll
    for (int v = 0; v < batch.kSize; ++v) {
      T scores[kVector];
      held.take(v, scores);
      masks[v] =
          mask_where([&](int i) { return scores[i] >= least.from; }, least.is_nan ? MaskWords::kOnes : 0);
    }
    store_masks(t, batch, masks);
  };
  if (metric == Metric::stored)
    return StoredScores<Metric::stored>{}.template pass_over<T>(t, begin, end, write);
  MetricScores{metric}.template pass_over<T>(t, begin, end, write);
}

template <class T>
constexpr int kWriteBlocks = sizeof(T) == sizeof(float) ? 2 : 1;

template <class T>
struct Writing {
  FindingCut cut;
  unsigned long long partial[kWarps];
};

// One block writes the tiles of the cut one after another.
template <class T, int64_t kMost>
__device__ __forceinline__ void write_cut(const Table<SelectTensor, kMost>& table, Metric metric,
                                          const Finish<Key<T>>& finish,
                                          unsigned long long (&partial)[kWarps]) {
  int64_t left = finish.cut.ties;
  if (finish.cut_begin < table.base_tile) return;  // in a table before this one
  const int64_t last = min64(finish.cut_end, table.base_tile + table.tiles());
  for (int64_t number = finish.cut_begin; number < last; ++number) {
    visit_flat_tile(table, number, [&](const SelectTensor& t, int64_t begin, int64_t end) {
#pragma unroll 1
      for (int64_t at = begin; at < end; at += Batch<>::kEntries) {
        const auto keys =
            hold_keys<HeldKeys<T, kThreads, kBatch>>(t, metric, at, min64(at + Batch<>::kEntries, end));
        left = write_cut(t, keys, finish.threshold, left,
                         [&](unsigned long long bits) { return block_scan(bits, partial); });
      }
    });
  }
}

template <class T, int64_t kMost>
__global__ void __launch_bounds__(kThreads, kWriteBlocks<T>)
    write_mask_kernel(const __grid_constant__ Table<SelectTensor, kMost> table, const Metric metric,
                      const SelectWork<Key<T>> work, const bool prune_ties) {
  using K = Key<T>;
  __shared__ Writing<T> shared;
  const Search<K> search = work.state->searches[Search<K>::kRounds];
  if (is_left_to_patches(work, search)) return;
  const Finish<K> finish(work, search, find_cut(work, search, prune_ties, shared.cut));
  if (blockIdx.x == 0) write_cut<T>(table, metric, finish, shared.partial);
  if (!finish.writes_kept && !finish.writes_dropped) return;
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t number) {
    if (finish.is_cut(number) || !finish.writes(number)) return;
    write_tile<T>(t, metric, begin, end, finish.threshold, finish.keeps_ties(number));
  });
}

// Keeps of a tile's run what is above the threshold, and the first `ties` of those that tie with it.
template <class K>
__device__ __forceinline__ void patch_first(const Table<SelectTensor>& table, int64_t number,
                                            const CollectedRun<K>& run, const Finish<K>& finish, int64_t ties,
                                            TileBits& bits) {
  const K threshold = finish.threshold;
  const int64_t own = __reduce_add_sync(kAllLanes, run.count_equal(threshold));
  unsigned tie_end = ties > 0 ? kTile : 0;
  if (ties > 0 && ties < own) {
    mark(run, bits, [&](K key, unsigned) { return key == threshold; });
    tie_end = end_of_first(bits, static_cast<int>(ties));
  }
  visit_flat_tile(table, number, [&](const SelectTensor& t, int64_t begin, int64_t) {
    patch_tile(t, begin, run, finish.split, bits, [&](K key, unsigned place) {
      return key > threshold || (key == threshold && place < tie_end);
    });
  });
}

// The tiles of the cut, a warp to each: it counts the ties before its own.
template <class K>
__device__ __forceinline__ void patch_cut(const Table<SelectTensor>& table, const SelectWork<K>& work,
                                          const Finish<K>& finish, TileBits& bits) {
  const int64_t end = min64(finish.cut_end, table.base_tile + table.tiles());
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (finish.cut_begin < table.base_tile) return;  // in a table before this one
  for (int64_t number = finish.cut_begin + warp; number < end; number += int64_t(gridDim.x) * kWarps) {
    unsigned before = 0;
    for_each_run(work, finish.cut_begin, number,
                 [&](const auto& run, int64_t) { before += run.count_equal(finish.threshold); });
    const int64_t left = finish.cut.ties - __reduce_add_sync(kAllLanes, before);
    for_each_run(work, number, number + 1,
                 [&](const auto& run, int64_t) { patch_first(table, number, run, finish, left, bits); });
  }
}

// Blocks of patch_mask_kernel that fit a multiprocessor: few registers let many warps wait for memory.
constexpr int kPatchBlocks = 4;

// What a pass has left undecided in tiles that are not written.
template <class K>
__global__ void __launch_bounds__(kThreads, kPatchBlocks)
    patch_mask_kernel(const __grid_constant__ Table<SelectTensor> table, const SelectWork<K> work,
                      const bool prune_ties) {
  __shared__ FindingCut finding;
  __shared__ TileBits bits[kWarps];
  const Search<K> search = work.state->searches[Search<K>::kRounds];
  const Finish<K> finish(work, search, find_cut(work, search, prune_ties, finding));
  if (!finish.patches) return;
  TileBits& own = bits[threadIdx.x / kWarp];
  for_each_run(table, work, [&](const CollectedRun<K>& run, int64_t number) {
    if (finish.is_cut(number) || finish.writes(number)) return;
    const K least = finish.threshold + (finish.keeps_ties(number) ? 0 : 1);
    visit_flat_tile(table, number, [&](const SelectTensor& t, int64_t begin, int64_t) {
      patch_tile(t, begin, run, finish.split, own, [&](K key, unsigned) { return key >= least; });
    });
  });
  if (finish.patches_cut) patch_cut(table, work, finish, own);
}

__global__ void __launch_bounds__(kThreads)
    fill_masks_kernel(const __grid_constant__ Table<SelectTensor> table, const bool keep) {
  const MaskWords all = mask_where([=](int) { return keep; });
  for_each_flat_tile(table, [&](const SelectTensor& t, int64_t begin, int64_t end, int64_t) {
    for_each_vector(begin, end, [&](int64_t at, int n) { store_mask(t, at, n, all); });
  });
}

}  // namespace pruneops::cuda
