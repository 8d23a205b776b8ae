// The scratch memory of a selection over a list of tensors: what lies in it, and where.
#pragma once

#include "../math/search.h"
#include "fused.cuh"

namespace pruneops::cuda {

// Ties are counted for parts: runs of tiles of one table, so many that a part is short and so few that every
// block can look through their counts.
#ifndef PRUNEOPS_MAX_PARTS
#define PRUNEOPS_MAX_PARTS 8192
#endif
constexpr int64_t kMaxParts = PRUNEOPS_MAX_PARTS;

// Which ties a part has counted: with either end of the bracket, or with the threshold.
enum class Ties { low, high, threshold };

// What a pass has collected of a tile: keys strictly inside the bracket, in no order.
struct alignas(8) TileRun {
  unsigned begin;
  unsigned count;
};

// The key from which a pass keeps what it leaves undecided: in the middle of the bracket, near which the
// wanted key lies, so that little of it is patched; the high end where the bracket has no middle.
template <class T>
PRUNEOPS_HD Key<T> split_of(const Bracket<Key<T>>& bracket) {
  const T low = key_to_score<T>(bracket.low), high = key_to_score<T>(bracket.high);
  const T middle = low + (high - low) / 2;
  const bool lies_inside = is_finite(low) && is_finite(high) && low < middle && middle < high;
  return lies_inside ? sort_key(middle) : bracket.high;
}

template <class K>
struct SelectState {
  using S = Search<K>;
  Search<K> searches[S::kRounds + 1];  // as they stand before each round, and after the last
  Search<K> ends[S::kRounds][2];       // those for the ends of the bracket, among the sample
  unsigned sample_counts[S::kRounds][2][S::kBins];
  unsigned long long counts[S::kRounds][S::kBins];
  unsigned long long
      inside_counts[S::kBins];  // first digits of the keys in the bracket, where none is collected
  unsigned long long kept;      // from the high end of the bracket up: all above the split but those inside
  unsigned long long at_low, between, at_high;
  Bracket<K> bracket;
};

// One selection: what is wanted, and the scratch memory.
template <class K>
struct SelectWork {
  int64_t entries;
  int64_t k;
  SelectState<K>* state;  // 0 at the start; so are the ties
  unsigned* ties;
  K* sample;
  TileRun* runs;
  K* few;            // the keys collected, and
  uint16_t* places;  // where they lie in their tiles
  int64_t parts;
  int64_t tiles_per_part;
  int64_t sample_size;  // 0 where there is no bracket
  SampleRanks ranks;
  int64_t capacity;
  bool collects;  // whether the pass writes masks and collects keys, or only counts

  __device__ __forceinline__ int64_t part_of(int64_t number) const { return number / tiles_per_part; }
  __device__ __forceinline__ unsigned* ties_of(Ties which) const {
    return ties + static_cast<int64_t>(which) * parts;
  }
  // One key for both ends is kept by the pass.
  __device__ __forceinline__ BracketCounts counted() const {
    const auto at_low = static_cast<int64_t>(state->at_low), between = static_cast<int64_t>(state->between);
    const int64_t low_kept = state->bracket.low == state->bracket.high ? at_low : 0;
    const int64_t from_low = static_cast<int64_t>(state->kept) - low_kept + at_low + between;
    return {entries - from_low, at_low, between, static_cast<int64_t>(state->at_high)};
  }
  // Whether so many of the samples stand for no more keys than are collected: a tenth is left for chance.
  __device__ __forceinline__ bool has_room_for(int64_t samples) const {
    return collects && 1.1 * static_cast<double>(samples) * static_cast<double>(entries) <=
                           static_cast<double>(capacity) * static_cast<double>(sample_size);
  }
  __device__ __forceinline__ bool missed() const { return find_rank(counted(), k) == Found::missed; }
  // Whether the pass has written masks and collected every key that it left undecided.
  __device__ __forceinline__ bool has_collected() const {
    return collects && static_cast<int64_t>(state->between) <= capacity;
  }
  // Whether a pass that does not collect has taken the counts of the first round.
  __device__ __forceinline__ bool counted_inside() const { return sample_size > 0 && !collects && !missed(); }
};

struct SelectLimits {
  // Where reading all keys five times, mostly from the second-level cache, takes longer than the launches of
  // a bracket.
  int64_t bracket_from;
  // A larger sample narrows the bracket, and so what is inside, by its square root. Up to four times as many
  // are taken where that is no more than one entry in 1024.
  int64_t most_samples;
};

// Reasoned, not measured: 2^22 float32 keys are 16 MiB.
constexpr SelectLimits kShippedLimits{int64_t(1) << 22, int64_t(1) << 18};

struct Sizes {
  int64_t entries = 0;
  int64_t tiles = 0;
  int64_t tables = 0;
  bool wide = false;
  bool strict;
  SelectLimits limits;

  Sizes(const SelectLimits& l, const SelectTensor* tensors, int64_t count, bool is_strict)
      : strict(is_strict), limits(l) {
    int64_t nonempty = 0;
    for (int64_t i = 0; i < count; ++i) {
      entries += tensors[i].numel;
      tiles += flat_tiles(tensors[i]);
      nonempty += tensors[i].numel > 0;
      wide |= tensors[i].wide();
    }
    // The table with the larger entries holds fewer.
    tables = ceil_div(nonempty, min64(Table<SelectTensor>::kCapacity, Table<FusedTensor>::kCapacity));
  }

  bool bracketed() const { return entries >= limits.bracket_from; }
  int64_t sample_size() const {
    const int64_t most = limits.most_samples, sparse = strict ? 0 : min64(entries / 1024, 4 * most);
    return min64(entries / 64, sparse > most ? sparse : most);
  }
  // Keys that are collected at most: more than lie inside, where more samples than shipped are taken, so that
  // ties with its ends may be among them. Keys of doubles would take too much memory then.
  int64_t capacity() const {
    const int64_t size = wide ? sample_size() : min64(sample_size(), limits.most_samples);
    return min64(bracket_capacity(size, entries), 0xffffffff);
  }
  int64_t tiles_per_part() const { return ceil_div(tiles, kMaxParts); }
  int64_t parts() const { return ceil_div(tiles, tiles_per_part()) + tables; }
};

// Takes arrays one after another from the scratch memory; with none given, only adds up their bytes.
class Carver {
 public:
  explicit Carver(void* begin) : begin_(static_cast<char*>(begin)) {}

  template <class X>
  X* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += ceil_div(count * static_cast<int64_t>(sizeof(X)), 16) * 16;
    return begin_ == nullptr ? nullptr : reinterpret_cast<X*>(begin_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

template <class K>
struct Plan {
  SelectWork<K> work{};
  int64_t zeroed;  // bytes from the start that must be 0
  int64_t bytes;

  Plan(const Sizes& sizes, int64_t k, void* scratch) {
    Carver carver(scratch);
    work.entries = sizes.entries;
    work.k = k;
    work.tiles_per_part = sizes.tiles_per_part();
    work.parts = sizes.parts();
    work.state = carver.take<SelectState<K>>(1);
    work.ties = carver.take<unsigned>(3 * work.parts);
    zeroed = carver.bytes();
    if (sizes.bracketed()) {
      work.sample_size = sizes.sample_size();
      work.ranks = sample_ranks(work.sample_size, sizes.entries, k);
      work.sample = carver.take<K>(work.sample_size);
      work.collects = !sizes.strict;
    }
    if (work.collects) {
      work.capacity = sizes.capacity();
      work.runs = carver.take<TileRun>(work.parts * work.tiles_per_part);
      work.few = carver.take<K>(work.capacity);
      work.places = carver.take<uint16_t>(work.capacity);
    }
    bytes = carver.bytes();
  }
};

// Calls f(0.0f) or f(0.0) by the type in which scores are ranked.
template <class F>
auto in_rank_type(bool wide, const F& f) {
  return wide ? f(0.0) : f(0.0f);
}

inline int64_t scratch_bytes(const Sizes& sizes) {
  if (sizes.entries == 0) return 0;
  return in_rank_type(sizes.wide,
                      [&](auto rank) { return Plan<Key<decltype(rank)>>(sizes, 1, nullptr).bytes; });
}

}  // namespace pruneops::cuda
