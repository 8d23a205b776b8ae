// Selection among scores that lie in an array, by counts of what lies below thresholds: math/row_search.h.
// Where little is left between the two closest thresholds it is copied side by side, and only that is
// counted.
#pragma once

#include "../../math/row_search.h"
#include "compact.h"
#include "tiles.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Where the sample of n scores lies: the same for all arrays of that length.
class SamplePlaces {
 public:
  explicit SamplePlaces(int64_t n) {
    for (int j = 0; j < kRowSample; ++j) places_[j] = min64(sample_position(j, kRowSample, n), n - 1);
  }
  int64_t operator[](int j) const { return places_[j]; }

 private:
  int64_t places_[kRowSample];
};

// A few scores of an array by their rank from 1. Where two of them lie close together either may come first.
template <class T>
class SortedSample {
 public:
  using K = Key<T>;

  SortedSample(const T* scores, const SamplePlaces& places) {
    K drawn[kRowSample], apart[kRowSample], rank[kRowSample] = {};
    for (int j = 0; j < kRowSample; ++j) {
      drawn[j] = RowSearch<T>::stand(scores[places[j]]);
      apart[j] = (drawn[j] & ~K(kRowSample - 1)) | static_cast<K>(j);
    }
    for (int j = 0; j < kRowSample; ++j) {
      for (int i = 0; i < kRowSample; ++i) rank[i] += apart[j] < apart[i];
    }
    for (int i = 0; i < kRowSample; ++i) keys_[rank[i]] = drawn[i];
  }

  K operator()(int place) const { return keys_[place - 1]; }

 private:
  K keys_[kRowSample];
};

template <class T>
int32_t count_from(const T* scores, int64_t n, T threshold) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += scores[i] >= threshold;
  return count;
}

// Writes what is left of a search among n scores side by side; how many that are.
template <class T>
int64_t copy_left(const T* scores, int64_t n, const RowSearch<T>& search, T* inside) {
  const T low = RowSearch<T>::score(search.low), high = RowSearch<T>::score(search.high);
  T* next = inside;
  for (int64_t at = 0; at < n; at += kWord) {
    const int64_t some = min64(kWord, n - at);
    const uint64_t from_low = search.knows_low() ? at_least(scores + at, some, low) : first_bits(some);
    const uint64_t left = from_low & ~at_least(scores + at, some, high);
    compact_word(scores + at, some, left, next);
    next += __builtin_popcountll(left);
  }
  return next - inside;
}

// Of what is left of a search among n scores, but for NaN, the lowest and the highest.
template <class T>
void find_ends(const T* scores, int64_t n, const RowSearch<T>& search, T& lowest, T& highest) {
  using Search = RowSearch<T>;
  constexpr Key<T> kLowest = Search::kNan + 1, kHighest = Search::kAboveAll - 1;
  const Key<T> low = search.knows_low() ? search.low : kLowest, high = search.high;
  Key<T> first = kHighest, last = kLowest;
  for (int64_t i = 0; i < n; ++i) {
    const Key<T> key = sort_key(scores[i]);
    const Key<T> from_low = key >= low ? key : kHighest, below_high = key < high ? key : kLowest;
    first = from_low < first ? from_low : first;
    last = below_high > last ? below_high : last;
  }
  lowest = Search::score(first);
  highest = Search::score(last);
}

// Searches arrays of n scores, 0 < n < 2^31; `fine` is as in RowSearch.
template <class T>
class ArraySearch {
 public:
  ArraySearch(int64_t n, Key<T> fine)
      : n_(n), fine_(fine), places_(n), spare_(n / kCopyShare + kCompactRoom) {}

  int64_t size() const { return n_; }

  // The decided search for the k-th smallest, 0 < k <= n.
  RowSearch<T> find(const T* scores, int64_t k) {
    using Search = RowSearch<T>;
    const SortedSample<T> sample(scores, places_);
    Search search(static_cast<int>(k), static_cast<int>(n_), fine_, sample);
    counted_ = scores;
    left_ = n_;
    int64_t before = 0;  // scores below those that are still counted
    const auto count = [&] {
      const int32_t above = count_from(counted_, left_, Search::score(search.next));
      search.take(static_cast<int>(before + left_ - above));
    };
    for (count(); !search.decided(); count()) {
      if (left_ >= kCopyFrom && search.left() <= left_ / kCopyShare) {
        before = search.below;
        left_ = copy_left(counted_, left_, search, spare_.data());
        counted_ = spare_.data();
      }
      if (search.plan(sample)) continue;
      T lowest, highest;
      find_ends(counted_, left_, search, lowest, highest);
      search.take_ends(lowest, highest);
      if (search.decided()) break;
    }
    return search;
  }

  // The key of the k-th smallest, 0 < k <= n: the highest of what is left of its search.
  Key<T> kth_key(const T* scores, int64_t k) {
    const Key<T> high = find(scores, k).high;
    Key<T> highest = 0;
    for (int64_t i = 0; i < left_; ++i) {
      const Key<T> key = sort_key(counted_[i]), below_high = key < high ? key : 0;
      highest = below_high > highest ? below_high : highest;
    }
    return highest;
  }

 private:
  // Fewer are counted as fast as they are copied, and what is left must be this share of them at most.
  static constexpr int64_t kCopyFrom = 1 << 10;
  static constexpr int64_t kCopyShare = 4;

  int64_t n_;
  Key<T> fine_;
  SamplePlaces places_;
  Buffer<T> spare_;
  const T* counted_ = nullptr;  // where the scores lie that a search still counts,
  int64_t left_ = 0;            // and how many they are
};

// Which of n scores are kept: those from a threshold on, and the first of those that tie right below it.
template <class T>
class ArraySelection {
 public:
  // Prunes the k lowest, 0 < k < n, and all that tie with the highest of them where `prune_ties`.
  ArraySelection(ArraySearch<T>& search, const T* scores, int64_t k, bool prune_ties) : cut_(0) {
    const auto found = search.find(scores, k);
    from_ = RowSearch<T>::score(found.high);
    tie_ = RowSearch<T>::score(found.low);
    ties_are_nan_ = !found.knows_low();
    if (!prune_ties && found.ties_kept() > 0) {
      cut_ = place_behind_tie(scores, search.size(), found.ties_kept());
    }
  }

  // A bit for each of n scores from the place `at` on; n is at most kWord.
  uint64_t kept(const T* scores, int64_t at, int64_t n) const {
    const uint64_t above = at_least(scores + at, n, from_), before_cut = first_bits(cut_ - at);
    return before_cut == 0 ? above : above | (from_tie(scores + at, n) & before_cut);
  }

 private:
  uint64_t from_tie(const T* scores, int64_t n) const {
    return ties_are_nan_ ? first_bits(n) : at_least(scores, n, tie_);
  }

  // The place behind the tie number `kept`.
  int64_t place_behind_tie(const T* scores, int64_t n, int64_t kept) const {
    for (int64_t at = 0; at < n; at += kWord) {
      const int64_t some = min64(kWord, n - at);
      uint64_t ties = from_tie(scores + at, some) & ~at_least(scores + at, some, from_);
      const int64_t here = __builtin_popcountll(ties);
      if (here >= kept) {
        for (; kept > 1; --kept) ties &= ties - 1;
        return at + __builtin_ctzll(ties) + 1;
      }
      kept -= here;
    }
    return n;
  }

  T from_;
  T tie_;
  bool ties_are_nan_;
  int64_t cut_;
};

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
