// A stratified sample of a list's scores, and what brackets the k-th smallest of all by it.
#pragma once

#include <math.h>

#include "array.h"
#include "source.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// So many runs of `length` neighbours, at most kRun, each from a random place of its own equal stretch of the
// list.
template <class T, class Keys>
class Sample {
 public:
  using K = Key<T>;

  Sample(const SelectTensor* tensors, int64_t count, int64_t total, const Keys& source, int64_t runs,
         int64_t length, const Pool& pool)
      : tensors_(tensors),
        total_(total),
        source_(source),
        runs_(runs),
        length_(length),
        fine_(fine_bits_of<T>(tensors, count, source.metric)),
        pool_(pool),
        ends_(count),
        scores_(runs * length) {
    int64_t end = 0;
    for (int64_t i = 0; i < count; ++i) ends_[i] = end += tensors[i].numel;
    parallel(pool, runs, [&](int64_t first, int64_t last) { draw(first, last); });
  }

  int64_t size() const { return runs_ * length_; }

  // Ranks in the sample that bracket the k-th smallest of all, 3 standard deviations to each side. Scores of
  // a run may be alike, so the variance is that between neighbouring runs (von Neumann et al., 1941): of how
  // many lie below the wanted rank, or up to it, where many tie with it.
  SampleRanks ranks(int64_t k) {
    const double share = static_cast<double>(k) / static_cast<double>(total_);
    const double rank = share * static_cast<double>(size());
    Buffer<T> some(runs_);
    for (int64_t run = 0; run < runs_; ++run) some[run] = scores_[run * length_];
    const int64_t middle = static_cast<int64_t>(share * static_cast<double>(runs_));
    const K key = ArraySearch<T>(runs_, fine_).kth_key(some.data(), middle < 1 ? 1 : middle);
    const double margin = 3.0 * sqrt(variance_around(key)) + static_cast<double>(2 * length_);
    const auto low = static_cast<int64_t>(rank - margin), high = static_cast<int64_t>(rank + margin) + 1;
    return {low < 1 ? 0 : low, high > size() ? size() + 1 : high};
  }

  Bracket<K> bracket(const SampleRanks& ranks) {
    Bracket<K> bracket = whole_bracket<K>();
    parallel(pool_, 2, [&](int64_t first, int64_t last) {
      for (int64_t side = first; side < last; ++side) {
        const int64_t rank = side == 0 ? ranks.low : ranks.high;
        if (rank < 1 || rank > size()) continue;
        const K key = ArraySearch<T>(size(), fine_).kth_key(scores_.data(), rank);
        (side == 0 ? bracket.low : bracket.high) = key;
      }
    });
    return bracket;
  }

 private:
  // Each run is a miss of every cache: it is asked for long before it is used.
  void draw(int64_t first, int64_t last) {
    constexpr int64_t kEarly = 64;
    int64_t tensor = 0, tensor_of[kEarly], at[kEarly];
    for (int64_t i = first; i < last + kEarly; ++i) {
      const int64_t place = i % kEarly;
      if (i - kEarly >= first) take(tensor_of[place], at[place], &scores_[(i - kEarly) * length_]);
      if (i >= last) continue;
      // Within a line, and not past the end.
      const int64_t position = min64(sample_position(i, runs_, total_) / length_ * length_, total_ - length_);
      while (position >= ends_[tensor]) ++tensor;
      tensor_of[place] = tensor;
      at[place] = position - (ends_[tensor] - tensors_[tensor].numel);
      source_.prefetch(tensor, at[place]);
    }
  }

  // A run from an entry of a tensor on, which may end in one of the next tensors.
  void take(int64_t tensor, int64_t at, T* scores) {
    for (int64_t left = length_; left > 0; ++tensor, at = 0) {
      const int64_t n = min64(left, tensors_[tensor].numel - at);
      source_.peek(tensor, at, n, scores);
      scores += n;
      left -= n;
    }
  }

  double variance_around(K key) {
    int64_t below = 0, up_to = 0;
    parallel(pool_, runs_ - 1, [&](int64_t first, int64_t last) {
      int64_t own_below = 0, own_up_to = 0;
      Around before = around(first, key);
      for (int64_t run = first + 1; run <= last; ++run) {
        const Around here = around(run, key);
        own_below += (here.below - before.below) * (here.below - before.below);
        own_up_to += (here.up_to - before.up_to) * (here.up_to - before.up_to);
        before = here;
      }
      __atomic_fetch_add(&below, own_below, __ATOMIC_RELAXED);
      __atomic_fetch_add(&up_to, own_up_to, __ATOMIC_RELAXED);
    });
    return 0.5 * static_cast<double>(below > up_to ? below : up_to);
  }

  // How many of a run lie below a key, and how many up to it.
  struct Around {
    int64_t below;
    int64_t up_to;
  };
  Around around(int64_t run, K key) {
    int32_t below = 0, up_to = 0;
    const T* scores = &scores_[run * length_];
    for (int64_t i = 0; i < length_; ++i) {
      const K other = sort_key(scores[i]);
      below += other < key;
      up_to += other <= key;
    }
    return {below, up_to};
  }

  const SelectTensor* tensors_;
  int64_t total_;
  const Keys& source_;
  int64_t runs_;
  int64_t length_;
  K fine_;
  const Pool& pool_;
  Buffer<int64_t> ends_;
  Buffer<T> scores_;
};

// Keys that bracket the k-th smallest of all, unless the sample misleads, with hardly more inside than a
// sample of `points` single scores would leave. What costs time is the pages that a sample touches, so runs
// are sampled first: four times as many scores, on a sixteenth of the pages. Where scores of a run are so
// alike that they tell less than that, single scores are.
template <class T, class Keys>
Bracket<Key<T>> sample_bracket(const SelectTensor* tensors, int64_t count, int64_t total, const Keys& source,
                               int64_t k, int64_t points, const Pool& pool) {
  Sample<T, Keys> runs(tensors, count, total, source, points / 16, kRun, pool);
  const SampleRanks ranks = runs.ranks(k);
  const double inside = static_cast<double>(ranks.high - ranks.low) / static_cast<double>(runs.size());
  if (inside * sqrt(static_cast<double>(points)) <= 4.0) return runs.bracket(ranks);
  Sample<T, Keys> single(tensors, count, total, source, points, 1, pool);
  return single.bracket(single.ranks(k));
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
