// One-pass selection: see math/bracket.h. Extra memory: the sample, and what is collected inside of the
// bracket.
#pragma once

#include "../../math/search.h"
#include "sample.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Where a pass over fewer entries is cheaper than sampling.
constexpr int64_t kBracketFrom = 1 << 18;

// Of how many entries one is sampled, at most 2^18 of them, and of more than 2^28 entries one of 2^10: what
// is collected stays below 0.06 bytes for each, 3 % of bfloat16 scores.
int64_t most_sampled(int64_t total) {
  return total < (1 << 28) ? 1 << 18 : total >> 10;
}
// Where memory must not grow with the tensors.
constexpr int64_t kFewSampled = 1 << 16;
constexpr int64_t kFewCollected = 1 << 16;

int64_t sample_size(int64_t total, int64_t most) {
  return min64(total / 64, most);
}

// A part is a run of tiles that one task passes over; their number does not depend on the threads.
constexpr int64_t kParts = 256;

struct Part {
  BracketCounts counts;
  int32_t first_page;  // -1 where nothing was collected
  int32_t last_page;
  int32_t last_size;
};

// Keys and their bits in the masks, collected by all parts, in pages that each part takes as it needs them:
// it does not matter where in the data they lie.
template <class K>
class Collected {
 public:
  static constexpr int32_t kPage = 1024;

  explicit Collected(int64_t capacity)
      : pages_(static_cast<int32_t>(ceil_div(capacity, kPage))),
        taken_(0),
        keys_(int64_t(pages_) * kPage),
        places_(int64_t(pages_) * kPage),
        next_(pages_) {}

  // False where no page is left.
  bool add(Part& part, K key, uint64_t place) {
    if (part.last_page < 0 || part.last_size == kPage) {
      // Looked at first, so that failures do not count on and on.
      if (__atomic_load_n(&taken_, __ATOMIC_RELAXED) >= pages_) return false;
      const int32_t page = __atomic_fetch_add(&taken_, 1, __ATOMIC_RELAXED);
      if (page >= pages_) return false;
      next_[page] = -1;
      (part.last_page < 0 ? part.first_page : next_[part.last_page]) = page;
      part.last_page = page;
      part.last_size = 0;
    }
    const int64_t at = int64_t(part.last_page) * kPage + part.last_size++;
    keys_[at] = key;
    places_[at] = place;
    return true;
  }

  // f(key, bit of the mask) in the order in which the part added them; where f writes masks, they are asked
  // for early, as each is a miss of every cache.
  template <bool kWritesMasks, class F>
  void for_part(const Part& part, const F& f) {
    constexpr int64_t kEarly = 16;
    for (int32_t page = part.first_page; page >= 0; page = next_[page]) {
      const int64_t begin = int64_t(page) * kPage;
      const int64_t end = begin + (page == part.last_page ? part.last_size : kPage);
      for (int64_t i = begin; i < end; ++i) {
        if (kWritesMasks) {
          __builtin_prefetch(reinterpret_cast<const void*>(places_[min64(i + kEarly, end - 1)] / 8), 1);
        }
        f(keys_[i], places_[i]);
      }
    }
  }

 private:
  int32_t pages_;
  int32_t taken_;
  Buffer<K> keys_;
  Buffer<uint64_t> places_;
  Buffer<int32_t> next_;
};

// Counts of keys around a bracket, and of the first digits of those strictly inside.
template <class K>
struct BracketDigits {
  Bracket<K> bracket;
  BracketCounts counts{};
  int64_t digits[Search<K>::kBins] = {};

  explicit BracketDigits(const Bracket<K>& b) : bracket(b) {}

  void add(const K* inside, const BracketCounts& some) {
    const auto search =
        start_search(0, static_cast<K>(bracket.low + 1), static_cast<K>(bracket.high - 1), 0, 0);
    counts = counts + some;
    for (int64_t i = 0; i < some.between; ++i) ++digits[search.digit(inside[i], 0)];
  }
};

void add_counts(const BracketCounts& local, BracketCounts& counts) {
  __atomic_fetch_add(&counts.below, local.below, __ATOMIC_RELAXED);
  __atomic_fetch_add(&counts.at_low, local.at_low, __ATOMIC_RELAXED);
  __atomic_fetch_add(&counts.between, local.between, __ATOMIC_RELAXED);
  __atomic_fetch_add(&counts.at_high, local.at_high, __ATOMIC_RELAXED);
}

template <class T, class Keys>
BracketDigits<Key<T>> count_bracket(const SelectTensor* tensors, SelectTiles& tiles, const Keys& source,
                                    const Bracket<Key<T>>& bracket, const Pool& pool) {
  using K = Key<T>;
  BracketDigits<K> all(bracket);
  parallel(pool, tiles.tiles(), [&](int64_t first, int64_t last) {
    BracketDigits<K> own(bracket);
    tiles.for_range(first, last, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
      T buffer[kChunk];
      K keys[kChunk], inside[kChunk + kCompactRoom];
      for (int64_t at = begin; at < begin + length; at += kChunk) {
        const int64_t n = min64(kChunk, begin + length - at);
        keys_of_scores(source.take(&tensor - tensors, at, n, buffer), n, keys);
        own.add(inside, compact(keys, n, bracket, inside));
      }
    });
    add_counts(own.digits, Search<K>::kBins, all.digits);
    add_counts(own.counts, all.counts);
  });
  return all;
}

// Narrows a bracket by counting reads, usually one, until it holds the k-th smallest and at most `capacity`
// keys strictly inside, or is one key.
template <class T, class Keys>
Bracket<Key<T>> narrow_bracket(const SelectTensor* tensors, SelectTiles& tiles, const Keys& source, int64_t k,
                               Bracket<Key<T>> bracket, int64_t capacity, const Pool& pool) {
  using K = Key<T>;
  Bracket<K> outer = whole_bracket<K>();
  for (;;) {
    const auto counted = count_bracket<T>(tensors, tiles, source, bracket, pool);
    const Found found = find_rank(counted.counts, k);
    if (found == Found::missed) {
      bracket = outer = beside(outer, bracket, counted.counts, k);
      continue;
    }
    auto search = search_after(counted.counts, bracket, k, 0, Among::all);
    if (found == Found::between) search.decide(0, counted.digits);
    const K low = search.key(), width = (K(1) << search.shift(0)) - 1;
    // The last digit may reach past the bracket.
    outer = bracket = {low, bracket.high - low > width ? static_cast<K>(low + width) : bracket.high};
    if (bracket.low == bracket.high || search.selection.equal <= capacity) return bracket;
  }
}

// One selection by bracket over the tiles of `tensors`, with or without writing masks.
template <class T, class Keys>
class BracketSelection {
 public:
  using K = Key<T>;

  BracketSelection(const SelectTensor* tensors, SelectTiles& tiles, const Keys& source, int64_t k,
                   const Bracket<K>& bracket, int64_t capacity, const Pool& pool)
      : tensors_(tensors),
        tiles_(tiles),
        source_(source),
        k_(k),
        pool_(pool),
        parts_count_(min64(kParts, tiles.tiles())),
        parts_(parts_count_),
        // Each part may leave a page partly empty.
        collected_(capacity + parts_count_ * Collected<K>::kPage),
        bracket_(bracket),
        past_(exceeds_caches(tiles.entries())) {}

  // Runs the pass. False where the bracket misled: then nothing is decided, and masks hold anything.
  bool run(bool write_masks) {
    pass(write_masks);
    BracketCounts counts{};
    for (int64_t p = 0; p < parts_count_; ++p) counts = counts + parts_[p].counts;
    found_ = find_rank(counts, k_);
    if (overflow_ || found_ == Found::missed) return false;
    auto search = search_after(counts, bracket_, k_, 0, Among::collected);
    for (int round = 0; search.width(round) > 0; ++round) decide_among_collected(search, round);
    selection_ = search.found();
    return true;
  }

  K threshold() const { return selection_.prefix; }

  // Makes the masks of the pass, which hold what is not below `high`, those of the selection.
  void finish_masks(bool prune_ties) {
    const int64_t kept = prune_ties ? 0 : selection_.ties_kept();
    if (found_ == Found::between) return keep_collected(kept);
    if (found_ == Found::at_low && bracket_.low != bracket_.high) keep_collected(0);
    // The pass has kept the ties of `high` and pruned those of `low`; where that is wrong they are written
    // again.
    const bool were_kept = selection_.prefix == bracket_.high;
    const Cut cut = cut_ties(kept);
    const int64_t begin = were_kept ? cut.tile : 0;
    const int64_t end = were_kept ? tiles_.tiles() : min64(cut.tile + 1, tiles_.tiles());
    const auto& source = source_.again();
    parallel(pool_, end - begin, [&](int64_t first, int64_t last) {
      tiles_.for_range(
          begin + first, begin + last,
          [&](const SelectTensor& tensor, int64_t at, int64_t length, int64_t tile) {
            const int64_t kept_here = tile < cut.tile ? length : tile == cut.tile ? cut.offset : 0;
            write_ties(source, tensor, at, length, kept_here);
          });
    });
  }

 private:
  using Value = typename Keys::Value;

  // A word with something inside of the bracket, or at an end.
  struct Undecided {
    const Value* scores;
    int64_t word;
    int64_t n;
    uint64_t inside;
  };

  void pass(bool write_masks) {
    parallel(pool_, parts_count_, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        Part part{{}, -1, -1, 0};
        tiles_.for_range(part_begin(p), part_begin(p + 1),
                         [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
                           pass_tile(tensor, begin, begin + length, write_masks, part);
                         });
        parts_[p] = part;
      }
    });
  }

  int64_t part_begin(int64_t part) { return part * tiles_.tiles() / parts_count_; }

  // Counts the scores of a tile, collects what is strictly inside of the bracket and keeps what is not below
  // `high`. Words with something inside are put off until their chunk has been compared: which words those
  // are cannot be foreseen, and with each of them the processor would lose its view of the next loads. Flat,
  // as an update is.
  [[gnu::flatten]] void pass_tile(const SelectTensor& tensor, int64_t begin, int64_t end, bool write_masks,
                                  Part& part) {
    // Locals, which no write to a mask can change.
    const auto ends = ends_of(bracket_, [&](K key) { return source_.bound(key); });
    BracketCounts counts = part.counts;
    ReadAhead ahead = source_.ahead(&tensor - tensors_, begin);
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t n = min64(kChunk, end - at);
      T buffer[kChunk];
      uint64_t kept[kChunk / kWord];
      Undecided undecided[kChunk / kWord + 1];
      int64_t count = 0;
      for (int64_t done = 0; done < n; done += kPiece) {
        const int64_t piece = min64(kPiece, n - done);
        const Value* scores = source_.take(&tensor - tensors_, at + done, piece, buffer + done);
        for (int64_t i = 0; i < piece; i += kWord) {
          const int64_t some = min64(kWord, piece - i), word = (done + i) / kWord;
          ahead.ask_for(some);
          const Sides sides = sides_of(scores + i, some, ends);
          counts.below += __builtin_popcountll(sides.below);
          kept[word] = sides.above;
          undecided[count] = {scores + i, word, some, sides.inside};
          count += sides.inside != 0;
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const Undecided& u = undecided[i];
        const Places places = places_of(u.scores, u.n, u.inside, ends);
        places.count_into(counts);
        kept[u.word] |= places.ties_of_high;
        collect(u.scores, places.between, ends.low, tensor, at + u.word * kWord, part);
      }
      if (write_masks) put_words(tensor, at, n, kept, past_);
    }
    part.counts = counts;
  }

  // Collects those of the scores from an entry on that `bits` names.
  template <class Bound>
  void collect(const Value* scores, uint64_t bits, const Bound& bound, const SelectTensor& tensor,
               int64_t entry, Part& part) {
    for_bits(bits, [&](int i) {
      const bool has_room =
          collected_.add(part, sort_key(bound.value(scores[i])), mask_bit(tensor, entry + i));
      if (!has_room) __atomic_store_n(&overflow_, true, __ATOMIC_RELAXED);
    });
  }

  void decide_among_collected(Search<K>& search, int round) {
    int64_t digits[Search<K>::kBins] = {};
    parallel(pool_, parts_count_, [&](int64_t first, int64_t last) {
      int64_t local[Search<K>::kBins] = {};
      for_collected<false>(first, last, [&](int64_t, K key, uint64_t) {
        if (search.matches(key, round)) ++local[search.digit(key, round)];
      });
      add_counts(local, Search<K>::kBins, digits);
    });
    search.decide(round, digits);
  }

  template <bool kWritesMasks, class F>
  void for_collected(int64_t first_part, int64_t last_part, const F& f) {
    for (int64_t p = first_part; p < last_part; ++p) {
      collected_.template for_part<kWritesMasks>(parts_[p], [&](K key, uint64_t bit) { f(p, key, bit); });
    }
  }

  // Keeps the collected keys above the threshold, and the first `ties` of those that tie with it.
  void keep_collected(int64_t ties) {
    Buffer<int64_t> left(parts_count_);  // ties kept from a part on
    for (int64_t p = 0; p < parts_count_; ++p) left[p] = 0;
    parallel(pool_, parts_count_, [&](int64_t first, int64_t last) {
      for_collected<false>(first, last,
                           [&](int64_t p, K key, uint64_t) { left[p] += key == selection_.prefix; });
    });
    for (int64_t p = 0; p < parts_count_; ++p) {
      const int64_t here = left[p];
      left[p] = ties;
      ties -= here;
    }
    parallel(pool_, parts_count_, [&](int64_t first, int64_t last) {
      for_collected<true>(first, last, [&](int64_t p, K key, uint64_t bit) {
        const bool keep = key > selection_.prefix || (key == selection_.prefix && left[p]-- > 0);
        if (keep) keep_bit(bit);
      });
    });
  }

  // Writes the masks of the ties among `length` entries from `begin` on: kept among the first `kept` entries,
  // pruned among the others.
  template <class Again>
  [[gnu::flatten]] void write_ties(const Again& source, const SelectTensor& tensor, int64_t begin,
                                   int64_t length, int64_t kept) {
    const auto bound = source.bound(selection_.prefix);
    T buffer[kPiece];
    ReadAhead ahead = source.ahead(&tensor - tensors_, begin);
    for (int64_t at = 0; at < length; at += kPiece) {
      const int64_t n = min64(kPiece, length - at);
      const auto* scores = source.take(&tensor - tensors_, begin + at, n, buffer);
      for (int64_t i = 0; i < n; i += kWord) {
        const int64_t some = min64(kWord, n - i);
        ahead.ask_for(some);
        const uint64_t ties = ties_of(scores + i, some, bound), first = first_bits(kept - at - i);
        set_word(tensor, begin + at + i, some, ties & first, true);
        set_word(tensor, begin + at + i, some, ties & ~first, false);
      }
    }
  }

  // The place behind the tie number `kept`, from the counts of the parts and the keys of one part.
  Cut cut_ties(int64_t kept) {
    if (kept == 0) return {0, 0};
    if (kept == selection_.equal) return {tiles_.tiles(), 0};
    int64_t part = 0;
    const auto ties_of = [&](int64_t p) {
      return found_ == Found::at_low ? parts_[p].counts.at_low : parts_[p].counts.at_high;
    };
    while (ties_of(part) < kept) kept -= ties_of(part++);
    return find_cut<T>(tiles_, source_.metric, selection_.prefix, kept, part_begin(part),
                       part_begin(part + 1), pool_);
  }

  const SelectTensor* tensors_;
  SelectTiles& tiles_;
  const Keys& source_;
  int64_t k_;
  const Pool& pool_;
  int64_t parts_count_;
  Buffer<Part> parts_;
  Collected<K> collected_;
  Bracket<K> bracket_;
  bool past_;  // whether bool masks are written past the caches
  Selection<K> selection_{};
  Found found_ = Found::missed;
  bool overflow_ = false;
};

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
