// The pass over a bracket: writes masks, counts, and collects what is strictly inside.
#pragma once

#include <math.h>

#include "sample.cuh"

namespace pruneops::cuda {

// Ties with the ends of a bracket among the entries that a warp has of a tile: those of the high end count
// from bit 16.
constexpr unsigned kLowTie = 1, kHighTie = 1 << 16;
static_assert(kTile / kWarps < kHighTie, "the ties of a warp");

// Parts scores by a bracket. Nearly all are told apart by two operations, of which none makes a key: a
// comparison with the split, and the distance to the middle. Subtraction rounds monotonously, so that no
// score between the ends is farther from the middle than they are.
template <class T>
struct Sieve {
  using K = Key<T>;
  const Bracket<K>& bracket;  // in shared memory, as it is seldom looked at
  bool keeps_all;
  bool is_one;  // score for both ends: nothing but its ties is to be found
  T split;      // NaN, which no score reaches, where there is no high end
  T middle;
  T reach;  // infinite where an end is no finite number

  // The ends are keys of scores, or right beside them, or beyond all.
  __device__ explicit Sieve(const Bracket<K>& ends)
      : bracket(ends),
        keeps_all(ends.high == 0),
        is_one(ends.low == ends.high),
        split(key_to_score<T>(split_of<T>(ends))) {
    const T low = key_to_score<T>(bracket.low), high = key_to_score<T>(bracket.high);
    middle = low + (high - low) / 2;
    reach = fmax(fabs(low - middle), fabs(high - middle));
    if (is_finite(low) && is_finite(high) && is_finite(reach)) return;
    middle = T(0);
    reach = static_cast<T>(INFINITY);
  }
  __device__ __forceinline__ MaskWords keep(const T (&scores)[kVector]) const {
    return mask_where([&](int i) { return scores[i] >= split; }, keeps_all ? MaskWords::kOnes : 0);
  }
  __device__ __forceinline__ MaskWords ties(const T (&scores)[kVector]) const {
    if (keeps_all) return mask_where([&](int i) { return scores[i] != scores[i]; });
    return mask_where([&](int i) { return scores[i] == split; });
  }
  // Whether a vector has neither ties with an end nor keys between.
  __device__ __forceinline__ bool is_far(const T (&scores)[kVector]) const {
    T nearest = fabs(scores[0] - middle);
#pragma unroll
    for (int i = 1; i < kVector; ++i) nearest = fmin(nearest, fabs(scores[i] - middle));
    return nearest > reach;
  }
  // The ties of a score with the ends; inside(key) where it is strictly between them.
  template <class F>
  __device__ __forceinline__ unsigned look(T score, const F& inside) const {
    const K key = sort_key(score);
    if (key < bracket.low || key > bracket.high) return 0;
    if (key == bracket.low) return kLowTie;
    if (key == bracket.high) return kHighTie;
    inside(key);
    return 0;
  }
};

// The sieve for pairs of bfloat16, whose vectors stay as they lie in memory but where they are near.
struct PairEnds {
  int are_numbers;  // and no bool, behind which there would be bytes that nobody writes
  uint32_t split;
  uint32_t low;
  uint32_t behind;  // the high end

  template <class T>
  __device__ void find(const Bracket<Key<T>>& ends) {
    const auto from = [](Key<T> key) { return pair_from(static_cast<float>(key_to_score<T>(key))); };
    are_numbers = is_finite(key_to_score<T>(ends.low)) && is_finite(key_to_score<T>(ends.high));
    split = from(split_of<T>(ends));
    low = from(ends.low);
    behind = from(static_cast<Key<T>>(ends.high + 1));
  }
};

// Vectors of a warp that are near the bracket, to be looked at by all its lanes, a score each: in the lanes
// that they are found in, eight scores would be looked at one after another, while most lanes wait.
template <class T>
struct NearVectors {
  static constexpr unsigned kCapacity = sizeof(T) == sizeof(float) ? 2 * kWarp : kWarp;
  T scores[kCapacity * kVector];
  uint16_t places[kCapacity];
};

// Every lane of the warp calls these.
template <class T>
class NearQueue {
 public:
  __device__ __forceinline__ explicit NearQueue(NearVectors<T>& vectors) : vectors_(vectors) {}

  // Whether the vectors of all lanes may not fit.
  __device__ __forceinline__ bool is_full() const { return count_ > vectors_.kCapacity - kWarp; }
  // Takes the vectors of the lanes that are near; scores_of(scores) makes the scores of one.
  template <class F>
  __device__ __forceinline__ void take(bool is_near, unsigned place, const F& scores_of) {
    const unsigned lanes = __ballot_sync(kAllLanes, is_near);
    if (lanes == 0) return;
    if (is_near) {
      const unsigned at = count_ + __popc(lanes & ((1u << (threadIdx.x % kWarp)) - 1));
      T scores[kVector];
      scores_of(scores);
#pragma unroll
      for (int i = 0; i < kVector; ++i) vectors_.scores[at * kVector + i] = scores[i];
      vectors_.places[at] = static_cast<uint16_t>(place);
    }
    count_ += __popc(lanes);
  }
  // f(score, place) for all scores of what was taken.
  template <class F>
  __device__ __forceinline__ void look(const F& f) {
    if (count_ == 0) return;
    __syncwarp();
#pragma unroll 1
    for (unsigned i = threadIdx.x % kWarp; i < count_ * kVector; i += kWarp) {
      f(vectors_.scores[i], vectors_.places[i / kVector] + i % kVector);
    }
    __syncwarp();
    count_ = 0;
  }

 private:
  NearVectors<T>& vectors_;
  unsigned count_ = 0;
};

// What is found inside the bracket in a tile, before it has its place in memory.
template <class K>
struct Stage {
  static constexpr unsigned kCapacity = 512;
  K keys[kCapacity];
  uint16_t places[kCapacity];
  unsigned count;          // of what was found, which may be more
  unsigned again;          // of what is found again then
  int64_t number;          // of the tile
  unsigned long long run;  // where the keys go

  __device__ __forceinline__ void clear() { count = again = 0; }
  __device__ __forceinline__ void add(K key, unsigned place) {
    const unsigned next = atomicInc(&count, ~0u);
    if (next >= kCapacity) return;
    keys[next] = key;
    places[next] = static_cast<uint16_t>(place);
  }
};

// Writes what is found in the tiles of a block. While a tile fills its stage, the one before it waits for its
// place in memory, so that a tile costs one barrier, behind which
//   the stage of this tile is complete, and its place is asked for,
//   that of the tile before has its place, and is written,
//   and that of the second tile before has been written, and is cleared for the second tile after.
// Every thread of the block calls these.
template <class T, class Source>
class Runs {
 public:
  using K = Key<T>;
  using Tensor = typename Source::Tensor;
  static constexpr unsigned kStages = 4;
  struct Shared {
    Stage<K> stages[kStages];
  };

  __device__ __forceinline__ Runs(Shared& shared, const SelectWork<K>& work, const Bracket<K>&)
      : shared_(shared), work_(work) {
    if (threadIdx.x == 0) {
      for (Stage<K>& stage : shared.stages) stage.clear();
    }
  }
  // A key inside the bracket, and where it lies in the present tile.
  __device__ __forceinline__ void add(K key, unsigned place) { at(0).add(key, place); }
  __device__ __forceinline__ void end_tile(const Table<Tensor>& table, int64_t number, const Source& source,
                                           const Sieve<T>& sieve) {
    meet();
    if (threadIdx.x == 0) {
      Stage<K>& own = at(0);
      own.number = number;
      const unsigned long long count = own.count;
      place_ = count > 0 ? atomicAdd(&work_.state->between, count) : 0;
      at(2).clear();
    }
    write(at(kStages - 1), table, source, sieve);
    ++turn_;
  }
  __device__ __forceinline__ void end(const Table<Tensor>& table, const Source& source,
                                      const Sieve<T>& sieve) {
    if (turn_ == 0) return;
    meet();
    write(at(kStages - 1), table, source, sieve);
  }

 private:
  Shared& shared_;
  const SelectWork<K>& work_;
  unsigned turn_ = 0;
  unsigned long long place_;  // of the run before, in the first thread

  // That of so many tiles later, or of kStages fewer.
  __device__ __forceinline__ Stage<K>& at(unsigned later) const {
    return shared_.stages[(turn_ + later) % kStages];
  }
  __device__ __forceinline__ void meet() {
    if (threadIdx.x == 0 && turn_ > 0) {
      Stage<K>& before = at(kStages - 1);
      before.run = place_;
      work_.runs[before.number] = {static_cast<unsigned>(place_), before.count};
    }
    __syncthreads();
  }
  // A stage that did not hold all is written from its tile.
  __device__ __forceinline__ void write(Stage<K>& stage, const Table<Tensor>& table, const Source& source,
                                        const Sieve<T>& sieve) const {
    const unsigned count = stage.count;
    if (count == 0) return;
    const auto first = static_cast<int64_t>(stage.run);
    if (first + count > work_.capacity) return;
    if (count <= stage.kCapacity) {
      for (unsigned i = threadIdx.x; i < count; i += kThreads) {
        work_.few[first + i] = stage.keys[i];
        work_.places[first + i] = stage.places[i];
      }
      return;
    }
    visit_flat_tile(table, stage.number, [&](const Tensor& t, int64_t begin, int64_t end) {
      const auto collect = [&](const auto& batch, const auto& held) {
#pragma unroll
        for (int v = 0; v < batch.kSize; ++v) {
          T scores[kVector];
          held.take(v, scores);
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            if (i >= batch.size(v)) continue;
            sieve.look(scores[i], [&](K key) {
              const unsigned again = atomicInc(&stage.again, ~0u);
              if (again >= count) return;
              const int64_t next = first + again;
              work_.few[next] = key;
              work_.places[next] = static_cast<uint16_t>(batch.at(v) + i - begin);
            });
          }
        }
      };
      source.template pass_again<T>(t, begin, end, collect);
    });
  }
};

__device__ __forceinline__ void add_warp_total(unsigned own, unsigned long long& total) {
  const unsigned sum = __reduce_add_sync(kAllLanes, own);
  if (threadIdx.x % kWarp == 0 && sum > 0) atomicAdd(&total, static_cast<unsigned long long>(sum));
}

// Counts the first digits of what is inside the bracket instead.
template <class T, class Source>
class InsideCounts {
 public:
  using K = Key<T>;
  using Tensor = typename Source::Tensor;
  struct Shared {
    unsigned counts[Search<K>::kBins];
  };

  __device__ __forceinline__ InsideCounts(Shared& shared, const SelectWork<K>& work, const Bracket<K>& ends)
      : shared_(shared),
        work_(work),
        digits_(start_search(work.k, static_cast<K>(ends.low + 1), static_cast<K>(ends.high - 1), 0, 0)) {
    clear_counts(shared.counts);
  }
  __device__ __forceinline__ void add(K key, unsigned) {
    ++between_;
    atomicAdd(&shared_.counts[digits_.digit(key, 0)], 1u);
  }
  __device__ __forceinline__ void end_tile(const Table<Tensor>&, int64_t, const Source&,
                                           const Sieve<T>&) const {}
  __device__ __forceinline__ void end(const Table<Tensor>&, const Source&, const Sieve<T>&) const {
    __syncthreads();
    add_warp_total(between_, work_.state->between);
    add_counts(shared_.counts, work_.state->inside_counts);
  }

 private:
  Shared& shared_;
  const SelectWork<K>& work_;
  const Search<K> digits_;
  unsigned between_ = 0;
};

// Blocks of the pass that shall fit a multiprocessor.
template <class T, class Source, bool kCollect>
constexpr int kPassBlocks = sizeof(T) == sizeof(double) ? 1 : 2 + kCollect + kIsStored<Source>;

// Ties of a warp with the ends: of the part that its tile lies in, and of its block.
template <class K>
__device__ __forceinline__ void add_ties(const SelectWork<K>& work, int64_t number, unsigned ties,
                                         unsigned long long (&of_block)[2]) {
  ties = __reduce_add_sync(kAllLanes, ties);
  if (threadIdx.x % kWarp != 0 || ties == 0) return;
  const int64_t part = work.part_of(number);
  const unsigned own[] = {ties % kHighTie, ties / kHighTie};
#pragma unroll
  for (int end = 0; end < 2; ++end) {
    if (own[end] == 0) continue;
    atomicAdd(&work.ties_of(end == 0 ? Ties::low : Ties::high)[part], own[end]);
    atomicAdd(&of_block[end], static_cast<unsigned long long>(own[end]));
  }
}

// Writes masks and collects what is inside the bracket; without kCollect, counts the first digits of that.
template <class T, class Source, bool kCollect>
__global__ void __launch_bounds__(kThreads, (kPassBlocks<T, Source, kCollect>))
    pass_kernel(const __grid_constant__ Table<typename Source::Tensor> table, const Source source,
                const SelectWork<Key<T>> work) {
  using K = Key<T>;
  using Inside = std::conditional_t<kCollect, Runs<T, Source>, InsideCounts<T, Source>>;
  __shared__ Deciding<K> deciding;
  __shared__ Bracket<K> bracket;
  __shared__ PairEnds pair_ends;
  __shared__ unsigned long long ties_of_block[2];  // with the low end, and with the high one
  __shared__ NearVectors<T> near[kWarps];
  __shared__ typename Inside::Shared found;
  const Bracket<K> ends = find_bracket(work, deciding);
  if (is_first_thread()) work.state->bracket = ends;
  if (threadIdx.x == 0) {
    bracket = ends;
    pair_ends.find<T>(ends);
    ties_of_block[0] = ties_of_block[1] = 0;
  }
  Inside inside(found, work, ends);
  __syncthreads();
  const Sieve<T> sieve(bracket);
  unsigned kept = 0;
  for_each_flat_tile(table, [&](const auto& t, int64_t begin, int64_t end, int64_t number) {
    unsigned ties = 0;
    const auto part = [&](const auto& batch, const auto& held) {
      MaskWords masks[batch.kSize];
      const auto first = static_cast<unsigned>(batch.begin - begin);
      NearQueue<T> queue(near[threadIdx.x / kWarp]);
      // parts(v, mask) says whether vector v is near, and makes its mask.
      const auto pass = [&](const auto& parts) {
#pragma unroll
        for (int v = 0; v < batch.kSize; ++v) {
          const bool is_near = parts(v, masks[v]);
          queue.take(is_near, first + batch.offset(v), [&](auto& scores) { held.take(v, scores); });
          if (v + 1 < batch.kSize && !queue.is_full()) continue;
          queue.look([&](T score, unsigned place) {
            if (!batch.kAreWhole && begin + place >= end) return;
            ties += sieve.look(score, [&](K key) {
              kept -= score >= sieve.split;
              inside.add(key, place);
            });
          });
        }
      };
      if (sieve.is_one) {
#pragma unroll
        for (int v = 0; v < batch.kSize; ++v) {
          T scores[kVector];
          held.take(v, scores);
          masks[v] = sieve.keep(scores);
          ties += kLowTie * sieve.ties(scores).count(batch.size(v));
        }
      } else if (held.kArePairs && pair_ends.are_numbers) {
        if constexpr (held.kArePairs) {
          const PairEnds ends = pair_ends;
          pass([&](int v, MaskWords& mask) {
            mask = mask_from(held.pairs(v), ends.split);
            return any_between(held.pairs(v), ends.low, ends.behind);
          });
        }
      } else {
        pass([&](int v, MaskWords& mask) {
          T scores[kVector];
          held.take(v, scores);
          mask = sieve.keep(scores);
          return batch.size(v) > 0 && !sieve.is_far(scores);
        });
      }
      kept += count_kept(batch, masks);
      if (kCollect && t.mask != nullptr) store_masks(t, batch, masks);
    };
    source.template pass_over<T>(t, begin, end, part);
    add_ties(work, number, ties, ties_of_block);
    inside.end_tile(table, number, source, sieve);
  });
  inside.end(table, source, sieve);
  add_warp_total(kept, work.state->kept);
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&work.state->at_low, ties_of_block[0]);
    atomicAdd(&work.state->at_high, ties_of_block[1]);
  }
}

}  // namespace pruneops::cuda
