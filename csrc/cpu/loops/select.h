// What the selections over a list of tensors share: keys of tiles, counts, and writing masks.
#pragma once

#include "../../math/radix.h"
#include "../../math/row_search.h"
#include "bits.h"
#include "chunk.h"
#include "compact.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

using SelectTiles = FlatTiles<SelectTensor>;

// f(keys, length, offset in the tile) for the chunks of a tile.
template <class T, class F>
void for_keys(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t length, const F& f) {
  Key<T> keys[kChunk];
  for (int64_t done = 0; done < length; done += kChunk) {
    const int64_t n = min64(kChunk, length - done);
    key_chunk<T>(tensor, metric, begin + done, n, keys);
    f(keys, n, done);
  }
}

// The low bits of keys that tell no two scores of a list apart.
template <class T>
Key<T> fine_bits_of(const SelectTensor* tensors, int64_t count, Metric metric) {
  Key<T> fine = static_cast<Key<T>>(~Key<T>(0));
  for (int64_t i = 0; i < count; ++i) fine &= fine_bits<T>(metric, tensors[i].weight_dtype);
  return fine;
}

// Adds the counts of one thread to those of all.
void add_counts(const int64_t* local, int bins, int64_t* counts) {
  for (int b = 0; b < bins; ++b) {
    if (local[b] != 0) __atomic_fetch_add(&counts[b], local[b], __ATOMIC_RELAXED);
  }
}

// How many keys of each tensor share the prefix with each next digit; `counts` has R::kBins for each tensor.
template <class T>
void count_digits_as(const SelectTensor* tensors, int64_t count, Metric metric, Key<T> prefix, int round,
                     int64_t* counts, const Pool& pool) {
  using R = WideRadix<Key<T>>;
  memset(counts, 0, static_cast<size_t>(count * R::kBins) * sizeof(int64_t));
  SelectTiles tiles(tensors, count);
  tiles.for_all(pool, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
    int64_t local[2][R::kBins] = {};  // two, so that a run of equal keys does not wait for itself
    for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t) {
      for (int64_t i = 0; i < n; ++i) {
        if (R::matches(keys[i], prefix, round)) ++local[i & 1][R::digit(keys[i], round)];
      }
    });
    for (int b = 0; b < R::kBins; ++b) local[0][b] += local[1][b];
    add_counts(local[0], R::kBins, counts + (&tensor - tensors) * R::kBins);
  });
}

void count_digits(const SelectTensor* tensors, int64_t count, Metric metric, const int64_t* prefix, int round,
                  bool wide, int64_t* counts, const Pool& pool) {
  wide ? count_digits_as<double>(tensors, count, metric, static_cast<uint64_t>(*prefix), round, counts, pool)
       : count_digits_as<float>(tensors, count, metric, static_cast<uint32_t>(*prefix), round, counts, pool);
}

// Ties with the threshold are kept before this place and pruned from it on.
struct Cut {
  int64_t tile;
  int64_t offset;
};

template <class T>
int64_t count_equal(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t length, Key<T> key) {
  int64_t equal = 0;
  for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t) {
    for (int64_t i = 0; i < n; ++i) equal += keys[i] == key;
  });
  return equal;
}

// The place behind the tie number `kept` of the tiles [first, last): its tile from counts, its offset from
// keys.
template <class T>
Cut find_cut(SelectTiles& tiles, Metric metric, Key<T> key, int64_t kept, int64_t first, int64_t last,
             const Pool& pool) {
  Buffer<int64_t> ties(last - first);
  parallel(pool, last - first, [&](int64_t begin, int64_t end) {
    tiles.for_range(first + begin, first + end,
                    [&](const SelectTensor& tensor, int64_t at, int64_t length, int64_t tile) {
                      ties[tile - first] = count_equal<T>(tensor, metric, at, length, key);
                    });
  });
  Cut cut{first, 0};
  while (ties[cut.tile - first] < kept) kept -= ties[cut.tile++ - first];
  tiles.for_range(
      cut.tile, cut.tile + 1, [&](const SelectTensor& tensor, int64_t begin, int64_t length, int64_t) {
        for_keys<T>(tensor, metric, begin, length, [&](const Key<T>* keys, int64_t n, int64_t offset) {
          for (int64_t i = 0; i < n && kept > 0; ++i) {
            if (keys[i] == key && --kept == 0) cut.offset = offset + i + 1;
          }
        });
      });
  return cut;
}

// fill(bytes) makes the mask of the entries [begin, begin + n), a byte each: in place, or to be packed. n is
// at most kChunk, and begin a multiple of 8.
template <class F>
void put_mask(const SelectTensor& tensor, int64_t begin, int64_t n, const F& fill) {
  if (!tensor.packed) return fill(tensor.mask + begin);
  uint8_t bytes[kChunk];
  fill(bytes);
  pack_bits(bytes, n, tensor.mask + begin / 8);
}

// Writes the mask of the entries [begin, begin + n), one bit each from the lowest on, past the caches or not;
// n is at most kChunk, and begin a multiple of 8.
void put_words(const SelectTensor& tensor, int64_t begin, int64_t n, const uint64_t* words,
               bool past = false) {
  const auto* bits = reinterpret_cast<const uint8_t*>(words);
  if (tensor.packed) {
    memcpy(tensor.mask + begin / 8, bits, static_cast<size_t>(ceil_div(n, 8)));
  } else if (past) {
    uint8_t bytes[kChunk];
    unpack_bits(bits, 0, n, bytes);
    write_past_caches(bytes, n, tensor.mask + begin);
  } else {
    unpack_bits(bits, 0, n, tensor.mask + begin);
  }
}

// The address of an entry's mask in bits; the byte of a mask that is not packed is its lowest bit.
uint64_t mask_bit(const SelectTensor& tensor, int64_t entry) {
  const uint64_t begin = reinterpret_cast<uintptr_t>(tensor.mask);
  return tensor.packed ? begin * 8 + static_cast<uint64_t>(entry)
                       : (begin + static_cast<uint64_t>(entry)) * 8;
}

void keep_bit(uint64_t bit) {
  *reinterpret_cast<uint8_t*>(bit / 8) |= static_cast<uint8_t>(1u << (bit % 8));
}

// Writes `keep` into the masks of those of n entries from `begin` on that `bits` names; n is at most 64, and
// begin a multiple of 8.
void set_word(const SelectTensor& tensor, int64_t begin, int64_t n, uint64_t bits, bool keep) {
  if (bits == 0) return;
  if (tensor.packed) {
    uint64_t word = 0;
    memcpy(&word, tensor.mask + begin / 8, static_cast<size_t>(ceil_div(n, 8)));
    word = keep ? word | bits : word & ~bits;
    memcpy(tensor.mask + begin / 8, &word, static_cast<size_t>(ceil_div(n, 8)));
    return;
  }
  if (n == kWord) {
    uint8_t named[kWord], *const mask = tensor.mask + begin;
    unpack_bits(reinterpret_cast<const uint8_t*>(&bits), 0, kWord, named);
    for (int64_t i = 0; i < kWord; ++i) mask[i] = named[i] ? keep : mask[i];
    return;
  }
  for_bits(bits, [&](int i) { tensor.mask[begin + i] = keep; });
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
