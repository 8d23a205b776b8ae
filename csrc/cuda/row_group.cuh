// What the threads that share a row agree on: sums, ends, and where the first ties end.
#pragma once

#include "block_scan.cuh"
#include "row_scores.cuh"

namespace pruneops::cuda {

// Cells (see RowCut) of a lane.
constexpr int kRowCells = (kRowWarps * kPairVectors + kWarp - 1) / kWarp;

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
struct RowCut {
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
  __device__ __forceinline__ RowCut cut(const int (&ties)[kCount], int first_ties) {
    RowCut cut{0, first_ties, 0};
#pragma unroll
    for (int v = 0; v < kCount; v += 2) {
      // Two cells in a sum: no lane has more than kVector ties of either.
      const int both = warp_sum(ties[v] | (v + 1 < kCount ? ties[v + 1] << 16 : 0));
#pragma unroll
      for (int own : {both & 0xffff, both >> 16}) {
        cut.total += own;
        cut.pass(own, cut.total, first_ties);
      }
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
  __device__ __forceinline__ RowCut cut(const int (&ties)[kCount], int first_ties) {
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
    RowCut lane{0, 0, 0};
    int up_to = scan.before;
#pragma unroll
    for (int c = 0; c < kRowCells; ++c) lane.pass(own[c], up_to += own[c], first_ties);
    return {warp_sum(lane.cell), first_ties + warp_sum(lane.rest), scan.total};
  }
};

}  // namespace pruneops::cuda
