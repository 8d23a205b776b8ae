// Exact selection in each row. A row is read once where it fits into the registers of a warp or of a block
// that has as many warps as it needs; longer ones are read for every threshold that is counted, and few very
// long ones are selected as tensors (rows.cu).
#pragma once

#include "../math/bracket.h"
#include "../math/row_search.h"
#include "block_scan.cuh"
#include "words.cuh"

namespace pruneops::cuda {

// Warps of the largest block that holds a row, and vectors of each of its threads.
constexpr int kRowWarps = 14;
template <class T>
constexpr int kRowVectors = sizeof(T) == sizeof(float) ? 8 : 4;
// Cells (see Cut) of a lane.
constexpr int kRowCells = (kRowWarps * kRowVectors<float> + kWarp - 1) / kWarp;

__device__ __forceinline__ int warp_lane() {
  return threadIdx.x % kWarp;
}

// ---- scores at hand

// The threads that share a row: those of a warp, or of a block.
struct WarpThreads {
  static __device__ __forceinline__ int own() { return warp_lane(); }
  static __device__ __forceinline__ int all() { return kWarp; }
};
struct BlockThreads {
  static __device__ __forceinline__ int own() { return threadIdx.x; }
  static __device__ __forceinline__ int all() { return blockDim.x; }
};

// Hides where a number comes from: what follows from it is computed anew, and fills no registers until then.
__device__ __forceinline__ void forget(int& number) {
  asm volatile("" : "+r"(number));
}
__device__ __forceinline__ void forget(int64_t& number) {
  asm volatile("" : "+l"(number));
}

// Where the vectors lie that these threads hold: vector v of a thread behind those of all threads before v.
template <class Threads>
struct HeldPlaces {
  int64_t begin;
  int size;

  __device__ __forceinline__ int64_t at(int v) const { return begin + first(v); }
  // Entries of vector v: fewer, or none, at the end of what is held.
  __device__ __forceinline__ int left(int v) const {
    const int behind = size - first(v);
    return behind < 0 ? 0 : behind < kVector ? behind : kVector;
  }
  // The same, for the mask.
  __device__ __forceinline__ HeldPlaces anew() const {
    HeldPlaces same = *this;
    forget(same.size);
    forget(same.begin);
    return same;
  }
  // How far behind the start vector v lies.
  __device__ __forceinline__ int first(int v) const {
    return (v * Threads::all() + Threads::own()) * kVector;
  }
};

// Consecutive scores in the registers of these threads. Behind the last one stands NaN, which is below every
// threshold.
template <class T, class Threads, int kCount>
struct HeldScores {
  static constexpr int kVectors = kCount;
  static constexpr int kPerThread = kCount * kVector;

  T scores[kCount][kVector];
  HeldPlaces<Threads> places;

  __device__ __forceinline__ HeldScores(const SelectTensor& t, Metric metric, int64_t begin, int size)
      : places{begin, size} {
    // A row may begin and end anywhere.
    const bool whole = begin % kVector == 0 && size % kVector == 0 && is_aligned(t.weight, 16);
    const bool scaled = metric == Metric::wanda && t.cols % kVector == 0 && is_aligned(t.norm, 16);
    if (whole && (metric == Metric::stored || metric == Metric::magnitude || scaled)) {
      load_whole_vectors(t);
      if (metric == Metric::magnitude) take_magnitudes();
      if (metric == Metric::wanda) scale(t);
    } else {
      load_vectors(t, metric);
    }
    if (padding() > 0) pad();
  }
  // Places behind the last score.
  __device__ __forceinline__ int padding() const { return kPerThread * Threads::all() - places.size; }

 private:
  // What is loaded in so many ways stands in a loop, once: vectors enter behind those before them.
  __device__ __forceinline__ void load_vectors(const SelectTensor& t, Metric metric) {
#pragma unroll 1
    for (int v = 0; v < kCount; ++v) {
      T next[kVector] = {};
      if (places.left(v) > 0) load_scores(t, metric, places.at(v), places.left(v), next);
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) scores[u][i] = u + 1 < kCount ? scores[u + 1][i] : next[i];
      }
    }
  }
  // With all loads under way before the first is used.
  __device__ __forceinline__ void load_whole_vectors(const SelectTensor& t) {
    visit_dtype_of<T>(t.weight_dtype, [&](auto element) {
      RawVector<decltype(element)> raw[kCount];
#pragma unroll
      for (int v = 0; v < kCount; ++v) {
        raw[v] = {};
        if (places.left(v) > 0) raw[v].load(t.weight, places.at(v));
      }
#pragma unroll
      for (int v = 0; v < kCount; ++v) raw[v].convert(scores[v]);
    });
  }
  __device__ __forceinline__ void take_magnitudes() {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) scores[v][i] = magnitude_of(scores[v][i]);
    }
  }
  // A row lies within one of the tensor, as far behind its start as in the norms.
  __device__ __forceinline__ void scale(const SelectTensor& t) {
    const float* norms = t.norm + (places.size == t.cols ? 0 : places.begin % t.cols);
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      if (places.left(v) == 0) continue;
      Vector<float> norm;
      norm.load(norms + places.first(v));
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        scores[v][i] = element_value<T>(Metric::wanda, scores[v][i], T(0), static_cast<T>(norm.words[i]));
      }
    }
  }
  __device__ __forceinline__ void pad() {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (i >= places.left(v)) scores[v][i] = RowSearch<T>::score(RowSearch<T>::kNan);
      }
    }
  }
};

// A row that its threads hold,
template <class T, class Threads, int kCount>
struct HeldRow {
  using Type = T;
  HeldScores<T, Threads, kCount> held;

  template <class F>
  __device__ __forceinline__ void for_each_part(const F& f) const {
    f(held);
  }
  __device__ __forceinline__ int padding() const { return held.padding(); }
};

// or that is nowhere but in memory.
template <class T>
struct MemoryRow {
  using Type = T;
  using Part = HeldScores<T, BlockThreads, kRowVectors<T> / 4>;
  const SelectTensor& tensor;
  Metric metric;
  int64_t begin;
  int size;

  template <class F>
  __device__ __forceinline__ void for_each_part(const F& f) const {
    for (int at = 0; at < size; at += step()) {
      f(Part(tensor, metric, begin + at, size - at < step() ? size - at : step()));
    }
  }
  __device__ __forceinline__ int padding() const { return (size + step() - 1) / step() * step() - size; }

 private:
  __device__ __forceinline__ int step() const { return Part::kPerThread * BlockThreads::all(); }
};

// ---- numbers of several threads

__device__ __forceinline__ int warp_sum(int own) {
  return static_cast<int>(__reduce_add_sync(kAllLanes, static_cast<unsigned>(own)));
}

// The lowest or, with `highest`, the highest of the lanes' numbers.
template <class T>
__device__ __forceinline__ T warp_end(T own, bool highest) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, own, distance);
    if (highest ? other > own : other < own) own = other;
  }
  return own;
}

// Where a row's first ties end: in a cell, which is a vector of each lane of a warp, behind so many ties of
// it.
struct Cut {
  int cell;
  int rest;
  int total;  // ties of all cells

  // The next cell, and the ties up to its end: those of whole cells go by.
  __device__ __forceinline__ void pass(int ties, int up_to, int first_ties) {
    if (up_to > first_ties) return;
    ++cell;
    rest -= ties;
  }
};

// What the threads of a row agree on: those of a warp,
struct WarpGroup {
  __device__ __forceinline__ int cell(int v) const { return v; }
  __device__ __forceinline__ int sum(int own) { return warp_sum(own); }
  template <class T>
  __device__ __forceinline__ void ends(T& lowest, T& highest) {
    lowest = warp_end(lowest, false);
    highest = warp_end(highest, true);
  }
  template <int kCount>
  __device__ __forceinline__ Cut cut(const int (&ties)[kCount], int first_ties) {
    Cut cut{0, first_ties, 0};
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      const int own = warp_sum(ties[v]);
      cut.total += own;
      cut.pass(own, cut.total, first_ties);
    }
    return cut;
  }
};

// Shared memory that is written in turns: between two uses of one half lies the barrier of the other.
template <class T>
struct RowShared {
  int sums[2][kRowWarps];
  T ends[2][2][kRowWarps];
  int cells[2][kRowCells * kWarp];
};

// or of a block. Every thread calls these, and gets the same.
template <class T>
struct BlockGroup {
  RowShared<T>& shared;
  int turn = 0;

  __device__ __forceinline__ int warp() const { return threadIdx.x / kWarp; }
  __device__ __forceinline__ int warps() const { return blockDim.x / kWarp; }
  __device__ __forceinline__ int cell(int v) const { return v * warps() + warp(); }
  __device__ __forceinline__ int sum(int own) {
    auto& sums = shared.sums[turn ^= 1];
    own = warp_sum(own);
    if (warp_lane() == 0) sums[warp()] = own;
    __syncthreads();
    return warp_sum(warp_lane() < warps() ? sums[warp_lane()] : 0);
  }
  __device__ __forceinline__ void ends(T& lowest, T& highest) {
    auto& ends = shared.ends[turn ^= 1];
    lowest = warp_end(lowest, false);
    highest = warp_end(highest, true);
    if (warp_lane() == 0) {
      ends[0][warp()] = lowest;
      ends[1][warp()] = highest;
    }
    __syncthreads();
    const int lane = warp_lane() < warps() ? warp_lane() : 0;
    lowest = warp_end(ends[0][lane], false);
    highest = warp_end(ends[1][lane], true);
  }
  template <int kCount>
  __device__ __forceinline__ Cut cut(const int (&ties)[kCount], int first_ties) {
    auto& cells = shared.cells[turn ^= 1];
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      const int own = warp_sum(ties[v]);
      if (warp_lane() == 0) cells[cell(v)] = own;
    }
    __syncthreads();
    int own[kRowCells], sum = 0;
#pragma unroll
    for (int c = 0; c < kRowCells; ++c) {
      const int place = warp_lane() * kRowCells + c;
      sum += own[c] = place < warps() * kCount ? cells[place] : 0;
    }
    const auto scan = warp_scan(sum);
    Cut lane{0, 0, 0};
    int up_to = scan.before;
#pragma unroll
    for (int c = 0; c < kRowCells; ++c) lane.pass(own[c], up_to += own[c], first_ties);
    return {warp_sum(lane.cell), first_ties + warp_sum(lane.rest), scan.total};
  }
};

// ---- the search

// The sample of a row, sorted over the lanes of each warp: the same in all (bitonic, Batcher 1968).
template <class T>
__device__ __forceinline__ Key<T> sorted_sample(const SelectTensor& t, Metric metric, int64_t begin,
                                                int row) {
  const int lane = warp_lane();
  forget(row);
  const int place = static_cast<int>(min64(sample_position(lane, kRowSample, row), row - 1));
  T own[kVector];
  load_scores(t, metric, begin + place, 1, own);
  Key<T> key = RowSearch<T>::stand(own[0]);
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2) {
#pragma unroll
    for (int distance = size / 2; distance > 0; distance /= 2) {
      const Key<T> other = __shfl_xor_sync(kAllLanes, key, distance);
      const bool takes_higher = ((lane & distance) != 0) != ((lane & size) != 0);
      key = takes_higher == (other > key) ? other : key;
    }
  }
  return key;
}

// Additions of floats take no turns of the units that compare; a thread's counts are small.
template <class Row, class T>
__device__ __forceinline__ int count_below(const Row& row, T threshold) {
  float own = 0;
  row.for_each_part([&](const auto& held) {
#pragma unroll
    for (int v = 0; v < held.kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (!(held.scores[v][i] >= threshold)) own += 1.0f;
      }
    }
  });
  return static_cast<int>(own);
}

// The lowest and the highest score of this thread from `low` on and below `high`; all are, of a NaN.
template <class Row, class T>
__device__ __forceinline__ void find_ends(const Row& row, T low, T high, T& lowest, T& highest) {
  row.for_each_part([&](const auto& held) {
#pragma unroll
    for (int v = 0; v < held.kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const T x = held.scores[v][i];
        if (!(x < low) && x < lowest) lowest = x;
        if (!(x >= high) && x > highest) highest = x;
      }
    }
  });
}

template <class Row, class Group>
__device__ __forceinline__ auto search_row(const Row& row, int k, int size, Key<typename Row::Type> fine,
                                           Key<typename Row::Type> sample, Group& group) {
  using T = typename Row::Type;
  using Search = RowSearch<T>;
  const auto sample_at = [=](int place) { return __shfl_sync(kAllLanes, sample, place - 1); };
  Search search(k, size, fine, sample_at);
  while (true) {
    search.take(group.sum(count_below(row, Search::score(search.next))) - row.padding());
    if (search.decided()) return search;
    if (search.plan(sample_at)) continue;
    T lowest = Search::score(Search::kAboveAll - 1), highest = -lowest;
    find_ends(row, Search::score(search.low), Search::score(search.high), lowest, highest);
    group.ends(lowest, highest);
    search.take_ends(lowest, highest);
    if (search.decided()) return search;
  }
}

// ---- the mask

// The addition is one instruction, with the comparison as its condition.
template <class T>
__device__ __forceinline__ MaskWords keep_from(const T (&scores)[kVector], T from) {
  MaskWords mask = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (scores[i] >= from) mask.words[i / MaskWords::kBytes] += MaskWords::one(i);
  }
  return mask;
}

template <class Held, class T>
__device__ __forceinline__ void write_from(const SelectTensor& t, const Held& held, T from) {
  const auto places = held.places.anew();
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) {
    if (places.left(v) > 0) store_mask(t, places.at(v), places.left(v), keep_from(held.scores[v], from));
  }
}

// Of the entries of a mask, keeps the first. In a loop, as this is done in one cell of a row.
__device__ __forceinline__ void keep_first(MaskWords& mask, int entries) {
  uint64_t others = mask.words[0] | static_cast<uint64_t>(mask.words[1]) << 32;
#pragma unroll 1
  for (; entries > 0 && others != 0; --entries) others &= others - 1;
  mask.words[0] ^= static_cast<uint32_t>(others);
  mask.words[1] ^= static_cast<uint32_t>(others >> 32);
}

__device__ __forceinline__ uint32_t ties_of(uint32_t marks) {
  return (marks >> 1) & ~marks & MaskWords::kOnes;
}

// Keeps also the first ties of the k-th smallest score, so many of those that are held; how many are left to
// be kept behind them.
template <class Held, class T, class Group>
__device__ __forceinline__ int write_cut(const SelectTensor& t, const Held& held, const RowSearch<T>& found,
                                         int first_ties, Group& group) {
  const T from = RowSearch<T>::score(found.high), at = RowSearch<T>::score(found.low);
  // Bytes of 3 above the threshold, of 2 at it, and of 0 below: every score is from NaN on.
  MaskWords marks[Held::kVectors];
  int own[Held::kVectors] = {};
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) {
    const MaskWords above = keep_from(held.scores[v], from), up = keep_from(held.scores[v], at);
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) {
      marks[v].words[w] = above.words[w] + 2 * (at != at ? MaskWords::kOnes : up.words[w]);
      own[v] += __popc(ties_of(marks[v].words[w]));
    }
  }
  const Cut cut = group.cut(own, first_ties);
  const auto places = held.places.anew();
#pragma unroll
  for (int v = 0; v < held.kVectors; ++v) {
    MaskWords keep, ties;
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) ties.words[w] = ties_of(marks[v].words[w]);
    if (group.cell(v) == cut.cell) keep_first(ties, cut.rest - warp_scan(own[v]).before);
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) {
      keep.words[w] =
          (marks[v].words[w] & MaskWords::kOnes) | (group.cell(v) <= cut.cell ? ties.words[w] : 0);
    }
    if (places.left(v) > 0) store_mask(t, places.at(v), places.left(v), keep);
  }
  return cut.total < first_ties ? first_ties - cut.total : 0;
}

// Prunes the k lowest of a row, 0 < k < row. Every thread of the group calls it.
template <class Row, class Group>
__device__ __forceinline__ void select_row(const SelectTensor& t, Metric metric, const Row& row,
                                           int64_t begin, int size, int k, Group& group) {
  using T = typename Row::Type;
  const auto found = search_row(row, k, size, fine_bits<T>(metric, t.weight_dtype),
                                sorted_sample<T>(t, metric, begin, size), group);
  int first_ties = found.ties_kept();
  row.for_each_part([&](const auto& held) {
    if (first_ties > 0) {
      first_ties = write_cut(t, held, found, first_ties, group);
    } else {
      write_from(t, held, RowSearch<T>::score(found.high));
    }
  });
}

// ---- a warp, or a block, for each row. What is not selected as a tensor has fewer than 2^31 entries.

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    warp_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  WarpGroup group;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps * row;
  for (int64_t begin = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * row;
       begin < t.numel; begin += step) {
    const HeldRow<T, WarpThreads, kCount> held{{t, metric, begin, row}};
    select_row(t, metric, held, begin, row, k, group);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowWarps* kWarp)
    block_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  __shared__ RowShared<T> shared;
  BlockGroup<T> group{shared};
  const int64_t step = static_cast<int64_t>(gridDim.x) * row;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * row; begin < t.numel; begin += step) {
    const HeldRow<T, BlockThreads, kRowVectors<T>> held{{t, metric, begin, row}};
    select_row(t, metric, held, begin, row, k, group);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    memory_rows_kernel(const SelectTensor t, const Metric metric, const int row, const int k) {
  __shared__ RowShared<T> shared;
  BlockGroup<T> group{shared};
  const int64_t step = static_cast<int64_t>(gridDim.x) * row;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * row; begin < t.numel; begin += step) {
    select_row(t, metric, MemoryRow<T>{t, metric, begin, row}, begin, row, k, group);
  }
}

}  // namespace pruneops::cuda
