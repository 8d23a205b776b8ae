// The scores of a row: in the registers of the threads that share it, or read again each time.
#pragma once

#include "../math/row_search.h"
#include "pairs.cuh"
#include "scores.cuh"

namespace pruneops::cuda {

// Rows of a block in which each warp has one of its own: few, as the block's registers are kept until all are
// done.
constexpr int kWarpRows = 2;
// Warps of the largest block that holds a row, and vectors of each of its threads; or vectors of pairs.
constexpr int kRowWarps = 14;
template <class T>
constexpr int kRowVectors = sizeof(T) == sizeof(float) ? 8 : 4;
constexpr int kPairVectors = 12;

__device__ __forceinline__ int warp_lane() {
  return threadIdx.x % kWarp;
}

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

// One of kRowSample scores of a row for each lane.
template <class T>
__device__ __forceinline__ T load_sample(const SelectTensor& t, Metric metric, int64_t begin, int row) {
  forget(row);
  const int place = static_cast<int>(min64(sample_position(warp_lane(), kRowSample, row), row - 1));
  T own[kVector];
  load_scores(t, metric, begin + place, 1, own);
  return own[0];
}

// Where the vectors lie that these threads hold: vector v of a thread behind those of all threads before v.
// kWhole: none of them is cut short.
template <class Threads, bool kWhole>
struct HeldPlaces {
  int64_t begin;
  int entries;

  __device__ __forceinline__ int64_t at(int v) const { return begin + offset(v); }
  // Entries of vector v: fewer, or none, at the end of what is held.
  __device__ __forceinline__ int size(int v) const {
    const int behind = entries - offset(v);
    if constexpr (kWhole) return behind > 0 ? kVector : 0;
    return behind < 0 ? 0 : behind < kVector ? behind : kVector;
  }
  __device__ __forceinline__ bool are_whole() const { return kWhole || entries % kVector == 0; }
  // The same, for the mask.
  __device__ __forceinline__ HeldPlaces anew() const {
    HeldPlaces same = *this;
    forget(same.entries);
    forget(same.begin);
    return same;
  }
  // How far behind the start vector v lies.
  __device__ __forceinline__ int offset(int v) const {
    return (v * Threads::all() + Threads::own()) * kVector;
  }
};

// What a vector has at a threshold, in the first bit of a byte for each entry, and above it, in the second.
struct RowMarks {
  uint32_t words[MaskWords::kWords];

  __device__ __forceinline__ MaskWords ties() const {
    return {{words[0] & MaskWords::kOnes, words[1] & MaskWords::kOnes}};
  }
  __device__ __forceinline__ MaskWords above() const {
    return {{words[0] >> 1 & MaskWords::kOnes, words[1] >> 1 & MaskWords::kOnes}};
  }
};

// Consecutive scores in the registers of these threads. Behind the last one stands NaN, which is below every
// threshold.
template <class T, class Threads, int kCount>
struct HeldScores {
  using Type = T;
  // Of a multiprocessor, at least, where each has a row.
  static constexpr int kWarps = sizeof(T) == sizeof(float) ? 20 : 16;
  static constexpr int kVectors = kCount;
  static constexpr int kPerThread = kCount * kVector;
  static constexpr bool kAlwaysCut = false;
  static constexpr bool kHoldsSample = false;

  T scores[kCount][kVector];
  HeldPlaces<Threads, false> places;

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
  __device__ __forceinline__ int padding() const { return kPerThread * Threads::all() - places.entries; }

  // Of this thread's. Additions of floats take no turns of the units that compare, and its counts are small.
  __device__ __forceinline__ int count_below(T threshold) const {
    float below = 0;
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (!(scores[v][i] >= threshold)) below += 1.0f;
      }
    }
    return static_cast<int>(below);
  }
  // The lowest score from `low` on and the highest below `high`, where one is farther out; all are, of a NaN.
  __device__ __forceinline__ void take_ends(T low, T high, T& lowest, T& highest) const {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (const T x : scores[v]) {
        if (!(x < low) && x < lowest) lowest = x;
        if (!(x >= high) && x > highest) highest = x;
      }
    }
  }
  // The mask of a vector. The addition is one instruction, with the comparison as its condition.
  __device__ __forceinline__ MaskWords keep_from(int v, T from) const {
    MaskWords mask = {};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (scores[v][i] >= from) mask.words[i / MaskWords::kBytes] += MaskWords::one(i);
    }
    return mask;
  }
  // What lies at a threshold, which is all below the next one where that is NaN, and from the next one on.
  __device__ __forceinline__ RowMarks marks(int v, T at, T from) const {
    const MaskWords above = keep_from(v, from), up = keep_from(v, at);
    RowMarks marks;
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) {
      marks.words[w] = (at != at ? MaskWords::kOnes : up.words[w]) + above.words[w];
    }
    return marks;
  }

 private:
  // What is loaded in so many ways stands in a loop, once: vectors enter behind those before them.
  __device__ __forceinline__ void load_vectors(const SelectTensor& t, Metric metric) {
#pragma unroll 1
    for (int v = 0; v < kCount; ++v) {
      T next[kVector] = {};
      if (places.size(v) > 0) load_scores(t, metric, places.at(v), places.size(v), next);
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
        if (places.size(v) > 0) raw[v].load(t.weight, places.at(v));
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
    const float* norms = t.norm + (places.entries == t.cols ? 0 : places.begin % t.cols);
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
      if (places.size(v) == 0) continue;
      Vector<float> norm;
      norm.load(norms + places.offset(v));
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
        if (i >= places.size(v)) scores[v][i] = RowSearch<T>::score(RowSearch<T>::kNan);
      }
    }
  }
};

// Whether rows can be held so: bfloat16 scores in whole vectors, stored or their magnitudes.
inline bool are_pairs(const SelectTensor& t, Metric metric, int row) {
  return t.weight_dtype == Dtype::bf16 && (metric == Metric::stored || metric == Metric::magnitude) &&
         row % kVector == 0 && reinterpret_cast<uintptr_t>(t.weight) % 16 == 0;
}

// The same of those, two to a register as they lie in memory (pairs.cuh): a thread holds twice as many.
template <class Threads, int kCount>
struct HeldPairs {
  using Type = float;
  static constexpr int kWarps = kCount > 8 ? 16 : 24;
  static constexpr int kVectors = kCount;
  static constexpr int kPerThread = kCount * kVector;
  static constexpr int kPairs = kVector / 2;
  // Almost every row has ties at the threshold: one that has none takes their way too.
  static constexpr bool kAlwaysCut = true;
  static constexpr bool kHoldsSample = std::is_same_v<Threads, WarpThreads>;

  uint32_t pairs[kCount][kPairs];
  HeldPlaces<Threads, true> places;

  __device__ __forceinline__ HeldPairs(const SelectTensor& t, Metric metric, int64_t begin, int size)
      : places{begin, size} {
    if (padding() == 0) {  // nothing is to be NaN
#pragma unroll
      for (int v = 0; v < kCount; ++v) load(t, v);
    } else {
#pragma unroll
      for (int v = 0; v < kCount; ++v) {
#pragma unroll
        for (int p = 0; p < kPairs; ++p) pairs[v][p] = kPairOfNan;
        if (places.size(v) > 0) load(t, v);
      }
    }
    if (metric == Metric::magnitude) take_magnitudes();
  }
  __device__ __forceinline__ int padding() const { return kPerThread * Threads::all() - places.entries; }
  // A score of this lane: those of all are spread over the whole vectors, of which a row has one at least.
  __device__ __forceinline__ float sample() const {
    const int own = warp_lane() * (places.entries / (kWarp * kVector)) / kWarp;
    uint32_t pair = pairs[0][0];
#pragma unroll
    for (int v = 1; v < kCount; ++v) pair = own == v ? pairs[v][v % kPairs] : pair;
    return warp_lane() % 2 == 0 ? first_of(pair) : second_of(pair);
  }
  __device__ __forceinline__ int count_below(float threshold) const {
    return kPerThread - count_from(pairs, pair_from(threshold));
  }
  __device__ __forceinline__ void take_ends(float low, float high, float& lowest, float& highest) const {
    ends_between(pairs, low, high, lowest, highest);
  }
  __device__ __forceinline__ MaskWords keep_from(int v, float from) const {
    return mask_from(pairs[v], pair_from(from));
  }
  __device__ __forceinline__ RowMarks marks(int v, float at, float from) const {
    const uint32_t all = at != at ? ~0u : 0u, low = pair_from(at), high = pair_from(from);
    RowMarks marks;
#pragma unroll
    for (int w = 0; w < MaskWords::kWords; ++w) {
      const uint32_t one = pairs[v][2 * w], two = pairs[v][2 * w + 1];
      const uint32_t above = bytes_of(are_from(one, high), are_from(two, high));
      const uint32_t up = bytes_of(are_from(one, low), are_from(two, low)) | all;
      marks.words[w] = (up & ~above & MaskWords::kOnes) | (above & 2 * MaskWords::kOnes);
    }
    return marks;
  }

 private:
  __device__ __forceinline__ void load(const SelectTensor& t, int v) {
    RawVector<Element<Dtype::bf16>> raw;
    raw.load(t.weight, places.at(v));
#pragma unroll
    for (int p = 0; p < kPairs; ++p) pairs[v][p] = raw.words[p];
  }
  __device__ __forceinline__ void take_magnitudes() {
#pragma unroll
    for (int v = 0; v < kCount; ++v) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p) pairs[v][p] &= RawVector<Element<Dtype::bf16>>::kAllButSigns;
    }
  }
};

// A row that its threads hold,
template <class Held>
struct HeldRow {
  using Type = typename Held::Type;
  static constexpr bool kAlwaysCut = Held::kAlwaysCut;
  static constexpr bool kHoldsSample = Held::kHoldsSample;
  Held held;

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
  static constexpr bool kAlwaysCut = Part::kAlwaysCut, kHoldsSample = Part::kHoldsSample;
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

}  // namespace pruneops::cuda
