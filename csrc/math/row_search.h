// The k-th smallest score of a row from counts of what lies below thresholds, for rows that are at hand while
// they are searched. The first threshold is a quantile of a small sample; later ones are interpolated between
// the closest two (regula falsi), a little beyond the wanted rank, so that the farther of the two moves as
// well. A score that is in the sample twice has many ties: once it is known to be low enough, the next
// threshold is right above it. Where a threshold parts nothing, few values are left: the two then move to the
// lowest and the highest score in between. Where three steps have not halved what is left, the next one
// halves the keys, which ends every row.
#pragma once

#include "dtype.h"
#include "metric.h"
#include "order.h"

namespace pruneops {

// Sorted scores of a row, one for each lane of a warp.
constexpr int kRowSample = 32;

// About the square root of a number that is not negative.
PRUNEOPS_HD float rough_root(float x) {
  return bit_cast<float>((bit_cast<uint32_t>(x) >> 1) + 0x1fbd1df5u);
}

// The low bits of a key that tell no two scores of a dtype apart, stored or their magnitudes.
template <class T>
PRUNEOPS_HD Key<T> fine_bits(Metric metric, Dtype dtype) {
  if (metric != Metric::stored && metric != Metric::magnitude) return 0;
  const int kept = dtype == Dtype::bf16 ? 7 : dtype == Dtype::f16 ? 10 : dtype == Dtype::f32 ? 23 : 52;
  const int bits = (sizeof(T) == sizeof(float) ? 23 : 52) - kept;
  return bits > 0 ? static_cast<Key<T>>((Key<T>(1) << bits) - 1) : Key<T>(0);
}

template <class T>
struct RowSearch {
  using K = Key<T>;
  // NaN stands right below -inf here, and what is above all right above +inf; the score of both is NaN.
  static constexpr K kTop = K(1) << (sizeof(K) * 8 - 1);
  static constexpr K kAboveAll =
      (kTop | static_cast<K>(sizeof(T) == 4 ? 0x7f800000u : 0x7ff0000000000000u)) + 1;
  static constexpr K kNan = static_cast<K>(~kAboveAll);

  int k;    // rank from 1
  int row;  // scores
  K fine;   // the low bits of keys that tell no two scores apart, but for NaN and -inf
  // The k-th smallest lies in [low, high), and so many scores below each.
  K low = kNan;
  K high = kAboveAll;
  int below = 0;
  int up_to;
  K next = 0;            // the threshold to count below
  int place;             // of the last one that came from the sample, from 1
  int slow = 0;          // steps in turn that have not halved what is left
  bool stalled = false;  // whether the last one has parted nothing

  template <class Sample>
  PRUNEOPS_HD RowSearch(int rank, int size, K fine_bits, const Sample& sample)
      : k(rank), row(size), fine(fine_bits), up_to(size) {
    place = static_cast<int>(share(rank) + 0.5f);
    place = place < 1 ? 1 : place > kRowSample ? kRowSample : place;
    aim(sample(place));
  }

  static PRUNEOPS_HD T score(K key) { return key_to_score<T>(key); }
  static PRUNEOPS_HD K stand(T score) {
    const K key = sort_key(score);
    return key < kNan ? kNan : key;
  }

  PRUNEOPS_HD int left() const { return up_to - below; }
  // Whether NaN lies below what is left, if any is there.
  PRUNEOPS_HD bool knows_low() const { return low != kNan; }

  // Scores from `high` on are kept then, and of those at `low` as many as ties_kept().
  PRUNEOPS_HD bool decided() const {
    return up_to == k || (low == kNan ? static_cast<K>(high - 1) : highest_inside()) <= low;
  }
  PRUNEOPS_HD int ties_kept() const { return up_to - k; }

  // Takes how many scores lie below `next`.
  PRUNEOPS_HD void take(int count) {
    const int before = up_to - below;
    if (count < k) {
      low = next;
      below = count;
    } else {
      high = next;
      up_to = count;
    }
    const int left = up_to - below;
    stalled = left == before;
    slow = 2 * left > before ? slow + 1 : 0;
  }

  // The next threshold; false where take_ends() must come first.
  template <class Sample>
  PRUNEOPS_HD bool plan(const Sample& sample) {
    const bool from_low = low != kNan;
    if (stalled) return false;
    if (from_low && place < kRowSample && low == sample(place) && low == sample(place + 1)) {
      aim(static_cast<K>(low + 1));
      return true;
    }
    if (slow >= 3 || (from_low && high != kAboveAll)) {
      interpolate();
      return true;
    }
    const float distance = share(from_low ? k - below : up_to - k);
    const int step = 1 + static_cast<int>(distance + rough_root(distance));
    const int next_place = from_low ? place + step : place - step;
    if (next_place < 1 || next_place > kRowSample) return false;
    place = next_place;
    aim(sample(place));
    return true;
  }

  // Takes the lowest and the highest score in between, but for NaN, and plans. Without a known low end the
  // lowest becomes the threshold: how many NaN lie below is not known.
  PRUNEOPS_HD void take_ends(T lowest, T highest) {
    const K first = stand(lowest), last = stand(highest);
    if (last < high) high = static_cast<K>(last + 1);
    if (low == kNan) return aim(first);
    low = first;
    if (stalled && slow < 3) {
      aim(2 * (k - below) <= up_to - below ? static_cast<K>(low + 1) : static_cast<K>(high - 1));
    } else {
      interpolate();
    }
  }

 private:
  PRUNEOPS_HD float share(int ranks) const {
    return static_cast<float>(ranks) * (static_cast<float>(kRowSample) / static_cast<float>(row));
  }
  PRUNEOPS_HD void aim(K key) {
    next = key < high ? static_cast<K>(key & ~fine) : highest_inside();
    if (next <= low) next = static_cast<K>((low == kNan ? low : low | fine) + 1);
  }
  PRUNEOPS_HD K highest_inside() const { return static_cast<K>((high - 1) & ~fine); }
  PRUNEOPS_HD void interpolate() {
    if (slow >= 3) {
      slow = 0;
      return aim(static_cast<K>(low + (high - low) / 2));
    }
    const auto from_low = static_cast<float>(k - below), from_high = static_cast<float>(up_to - k);
    const float beyond = 0.4f * rough_root(from_low < from_high ? from_low : from_high);
    const float rank = from_low < from_high ? from_low + beyond : from_low - beyond;
    const T first = score(low), last = score(high);
    aim(sort_key(first + (last - first) * static_cast<T>(rank / (from_low + from_high))));
  }
};

}  // namespace pruneops
