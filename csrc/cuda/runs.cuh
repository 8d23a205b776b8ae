// What a pass has collected, tile by tile: each tile has a run of keys and of the places where they lie in
// it.
#pragma once

#include "block_scan.cuh"
#include "plan.cuh"

namespace pruneops::cuda {

// Neighbouring tiles whose runs a warp has under way at a time.
constexpr int kRunTiles = 4;

// The run of a tile, whose first keys the lanes of a warp hold.
template <class K>
struct CollectedRun {
  static constexpr int kHeld = 2;  // keys of a lane
  const K* keys;
  const uint16_t* places;
  unsigned count;
  K held_keys[kHeld];
  unsigned held_places[kHeld];

  __device__ __forceinline__ void hold() {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (at(h) >= count) continue;
      held_keys[h] = keys[at(h)];
      held_places[h] = places[at(h)];
    }
  }
  // f(key, place) for the keys that this lane has.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (at(h) < count) f(held_keys[h], held_places[h]);
    }
#pragma unroll 1
    for (unsigned i = at(kHeld); i < count; i += kWarp) f(keys[i], unsigned(places[i]));
  }
  __device__ __forceinline__ unsigned count_equal(K threshold) const {
    unsigned equal = 0;
    for_each([&](K key, unsigned) { equal += key == threshold; });
    return equal;
  }

 private:
  static __device__ __forceinline__ unsigned at(int h) { return threadIdx.x % kWarp + h * kWarp; }
};

// f(run, number of the tile) for those of the tiles [first, last) of which anything was collected. Every lane
// of the warp calls it.
template <class K, class F>
__device__ __forceinline__ void for_each_run(const SelectWork<K>& work, int64_t first, int64_t last,
                                             const F& f) {
#pragma unroll 1
  for (int64_t number = first; number < last; number += kRunTiles) {
    CollectedRun<K> runs[kRunTiles];
#pragma unroll
    for (int r = 0; r < kRunTiles; ++r) {
      const TileRun own = number + r < last ? work.runs[number + r] : TileRun{0, 0};
      runs[r].keys = work.few + own.begin;
      runs[r].places = work.places + own.begin;
      runs[r].count = own.count;
    }
#pragma unroll
    for (int r = 0; r < kRunTiles; ++r) runs[r].hold();
#pragma unroll
    for (int r = 0; r < kRunTiles; ++r) {
      if (runs[r].count > 0) f(runs[r], number + r);
    }
  }
}

// The same for the tiles of a table, over all warps.
template <int64_t kMost, class K, class F>
__device__ __forceinline__ void for_each_run(const Table<SelectTensor, kMost>& table,
                                             const SelectWork<K>& work, const F& f) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps * kRunTiles;
  const int64_t end = table.base_tile + table.tiles();
  for (int64_t first = table.base_tile + warp * kRunTiles; first < end; first += step) {
    for_each_run(work, first, min64(first + kRunTiles, end), f);
  }
}

// A bit for each entry of a tile, shared by a warp.
using TileBits = unsigned[kTile / 32];

// Marks the entries of a run for which wanted(key, place) holds, and no others.
template <class K, class F>
__device__ __forceinline__ void mark(const CollectedRun<K>& run, TileBits& bits, const F& wanted) {
  __syncwarp();
  for (unsigned w = threadIdx.x % kWarp; w < kTile / 32; w += kWarp) bits[w] = 0;
  __syncwarp();
  run.for_each([&](K key, unsigned place) {
    if (wanted(key, place)) atomicOr(&bits[place / 32], 1u << (place % 32));
  });
  __syncwarp();
}

// The place behind the first `wanted` entries that are marked; there are as many, and at least one.
__device__ __forceinline__ unsigned end_of_first(const TileBits& bits, int wanted) {
  constexpr unsigned kOwn = kTile / 32 / kWarp;
  unsigned w = threadIdx.x % kWarp * kOwn, end = 0;
  int own = 0;
#pragma unroll
  for (unsigned i = 0; i < kOwn; ++i) own += __popc(bits[w + i]);
  int before = warp_scan(own).before;
  if (before < wanted && wanted <= before + own) {
    for (; before + __popc(bits[w]) < wanted; ++w) before += __popc(bits[w]);
    unsigned word = bits[w];
    for (; before + 1 < wanted; ++before) word &= word - 1;
    end = w * 32 + __ffs(word);
  }
  return __reduce_add_sync(kAllLanes, end);
}

// Keeps of a tile's run the entries for which keep(key, place) holds, where the pass has kept those from
// `split` on.
template <class K, class F>
__device__ __forceinline__ void patch_tile(const SelectTensor& t, int64_t begin, const CollectedRun<K>& run,
                                           K split, TileBits& bits, const F& keep) {
  const auto is_wrong = [&](K key, unsigned place) { return keep(key, place) != (key >= split); };
  if (!t.packed) {
    run.for_each([&](K key, unsigned place) {
      if (is_wrong(key, place)) t.mask[begin + place] = key < split;
    });
    return;
  }
  // No two lanes write one byte.
  mark(run, bits, is_wrong);
  for (unsigned w = threadIdx.x % kWarp; w < kTile / 32; w += kWarp) {
    for (int b = 0; b < 4; ++b) {
      const unsigned byte = (bits[w] >> (b * 8)) & 0xff;
      if (byte != 0) t.mask[begin / 8 + w * 4 + b] ^= static_cast<uint8_t>(byte);
    }
  }
}

}  // namespace pruneops::cuda
