// Many tensors in one launch: their table travels by value as a kernel parameter. So it needs no device
// memory, no copy and no cache of pointers, and a CUDA graph captures it with the launch.
#pragma once

#include <type_traits>

#include "../math/tensors.h"
#include "launch.h"

namespace pruneops::cuda {

// Parameters of a kernel may take 32,764 bytes; the rest is left for its other arguments.
constexpr int64_t kTableBytes = 31 * 1024;

template <class Tensor>
constexpr int64_t kManyTensors = (kTableBytes - 32) / static_cast<int64_t>(sizeof(Tensor) + sizeof(int64_t));
// A launch takes twice as long with all that, so kernels that small calls wait for have one for few tensors
// too.
constexpr int64_t kFewTensors = 8;

template <class Tensor, int64_t kMost = kManyTensors<Tensor>>
struct Table {
  static constexpr int64_t kCapacity = kMost;

  int64_t count;
  int64_t base_tile;  // tiles of the tables before this one
  int64_t first_tile[kCapacity + 1];
  Tensor tensors[kCapacity];

  PRUNEOPS_HD int64_t tiles() const { return first_tile[count]; }

  // The tensor that a tile of this table lies in.
  PRUNEOPS_HD int64_t tensor_of(int64_t tile) const {
    int64_t low = 0, high = count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (first_tile[middle] <= tile) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Entries of a flat tensor that a block works on at a time.
constexpr int64_t kTile = 8192;

template <class Tensor>
int64_t flat_tiles(const Tensor& tensor) {
  return ceil_div(tensor.size(), kTile);
}

// f(tensor, tile of that tensor, tile of all tables) for the tiles of this thread block.
template <class Tensor, int64_t kMost, class F>
__device__ __forceinline__ void for_each_tile(const Table<Tensor, kMost>& table, const F& f) {
  for (int64_t tile = blockIdx.x; tile < table.tiles(); tile += gridDim.x) {
    const int64_t index = table.tensor_of(tile);
    f(table.tensors[index], tile - table.first_tile[index], table.base_tile + tile);
  }
}

// f(tensor, begin, end) for one tile of flat tensors, by its number among those of all tables.
template <class Tensor, int64_t kMost, class F>
__device__ __forceinline__ void visit_flat_tile(const Table<Tensor, kMost>& table, int64_t number,
                                                const F& f) {
  const int64_t tile = number - table.base_tile, index = table.tensor_of(tile);
  const Tensor& t = table.tensors[index];
  const int64_t begin = (tile - table.first_tile[index]) * kTile;
  f(t, begin, min64(begin + kTile, t.size()));
}

// f(tensor, begin, end, tile of all tables) for the tiles of flat tensors.
template <class Tensor, int64_t kMost, class F>
__device__ __forceinline__ void for_each_flat_tile(const Table<Tensor, kMost>& table, const F& f) {
  for_each_tile(table, [&](const Tensor& t, int64_t tile, int64_t number) {
    f(t, tile * kTile, min64((tile + 1) * kTile, t.size()), number);
  });
}

// f(table) for tables that hold all tensors with tiles and for which `chosen` holds, in order. `tensors[i]`
// is tensor i. The numbers of the tiles of a table start at a multiple of `align`.
template <int64_t kMost, class Tensors, class TilesOf, class Chosen, class F>
cudaError_t for_each_table_of(const Tensors& tensors, int64_t count, const TilesOf& tiles_of,
                              const Chosen& chosen, const F& f, int64_t align) {
  Table<std::decay_t<decltype(tensors[0])>, kMost> table;
  table.base_tile = 0;
  for (int64_t next = 0; next < count;) {
    table.count = 0;
    table.first_tile[0] = 0;
    for (; next < count && table.count < table.kCapacity; ++next) {
      const auto& tensor = tensors[next];
      if (!chosen(tensor)) continue;
      const int64_t tiles = tiles_of(tensor);
      if (tiles == 0) continue;
      table.tensors[table.count] = tensor;
      table.first_tile[table.count + 1] = table.first_tile[table.count] + tiles;
      ++table.count;
    }
    if (table.count == 0) continue;
    PRUNEOPS_RETURN_IF_ERROR(f(table));
    table.base_tile = ceil_div(table.base_tile + table.tiles(), align) * align;
  }
  return cudaSuccess;
}

template <class Tensors, class TilesOf, class Chosen, class F>
cudaError_t for_each_table(const Tensors& tensors, int64_t count, const TilesOf& tiles_of,
                           const Chosen& chosen, const F& f, int64_t align = 1) {
  constexpr int64_t kMany = kManyTensors<std::decay_t<decltype(tensors[0])>>;
  return for_each_table_of<kMany>(tensors, count, tiles_of, chosen, f, align);
}

// The same, with a small table where few tensors are given.
template <class Tensors, class TilesOf, class Chosen, class F>
cudaError_t for_each_fitting_table(const Tensors& tensors, int64_t count, const TilesOf& tiles_of,
                                   const Chosen& chosen, const F& f, int64_t align = 1) {
  if (count > kFewTensors) return for_each_table(tensors, count, tiles_of, chosen, f, align);
  return for_each_table_of<kFewTensors>(tensors, count, tiles_of, chosen, f, align);
}

// Calls launch_as(float or double constant, chosen) for the tensors computed in each type.
template <class F>
cudaError_t for_each_width(const F& launch_as) {
  PRUNEOPS_RETURN_IF_ERROR(launch_as(0.0f, [](const auto& tensor) { return !tensor.wide(); }));
  return launch_as(0.0, [](const auto& tensor) { return tensor.wide(); });
}

}  // namespace pruneops::cuda
