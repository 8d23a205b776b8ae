// Splitting work over the pool's threads, and scratch memory.
#pragma once

#include <new>

#include "../../math/portable.h"
#include "../denormals.h"
#include "../pool.h"
#include "past.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Entries that a thread takes at a time, and entries worked on between first-level cache and registers.
constexpr int64_t kTile = 1 << 15;
constexpr int64_t kChunk = 1 << 10;

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(new T[static_cast<size_t>(size)]) {}
  ~Buffer() { delete[] data_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) { return data_[i]; }
  T* data() { return data_; }

 private:
  T* data_;
};

// The tasks of one thread that nobody has taken yet; on a line of its own, as all threads write to theirs.
struct alignas(64) Share {
  int64_t next;
  int64_t end;
};

// f(begin, end) on disjoint ranges that cover [0, tasks); what they have written is there for all threads
// then. Each thread goes through a share of its own, in portions, so that the same memory stays with it from
// call to call, and then helps the others with theirs: processors are not equally fast at all times.
template <class F>
void parallel(const Pool& pool, int64_t tasks, const F& f) {
  constexpr int64_t kPortions = 32;
  if (tasks <= 0) return;
  const int64_t threads = min64(pool.threads, tasks);
  if (threads == 1) {
    f(int64_t(0), tasks);
    return finish_writes();
  }
  Buffer<Share> shares(threads);
  for (int64_t t = 0; t < threads; ++t) shares[t] = {t * tasks / threads, (t + 1) * tasks / threads};
  const int64_t portion = ceil_div(tasks, threads * kPortions);
  const auto work = [&](int64_t thread) {
    const KeepDenormals denormals;
    for (int64_t t = 0; t < threads; ++t) {
      Share& share = shares[(thread + t) % threads];
      for (;;) {
        const int64_t begin = __atomic_fetch_add(&share.next, portion, __ATOMIC_RELAXED);
        if (begin >= share.end) break;
        f(begin, min64(begin + portion, share.end));
      }
    }
    finish_writes();
  };
  const auto range = [](void* context, int64_t first, int64_t) {
    (*static_cast<decltype(work)*>(context))(first);
  };
  pool.run(threads, range, const_cast<void*>(static_cast<const void*>(&work)));
}

// Tiles of a list of tensors, numbered through: `tiles_of(tensor)` says how many a tensor has.
class TileTable {
 public:
  template <class Tensor, class TilesOf>
  TileTable(const Tensor* tensors, int64_t count, const TilesOf& tiles_of)
      : first_(count + 1), count_(count) {
    first_[0] = 0;
    for (int64_t i = 0; i < count; ++i) first_[i + 1] = first_[i] + tiles_of(tensors[i]);
  }

  int64_t tiles() { return first_[count_]; }

  // f(tensor index, tile within the tensor, tile number) for the tiles [begin, end).
  template <class F>
  void for_range(int64_t begin, int64_t end, const F& f) {
    int64_t low = 0, high = count_;  // the last tensor whose first tile is not past `begin`
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_[middle] <= begin ? low : high) = middle;
    }
    for (int64_t tile = begin; tile < end; ++tile) {
      while (tile >= first_[low + 1]) ++low;
      f(low, tile - first_[low], tile);
    }
  }

 private:
  Buffer<int64_t> first_;
  int64_t count_;
};

// f(tensor, begin, length, tile number) for tiles of at most kTile entries of flat tensors.
template <class Tensor>
class FlatTiles {
 public:
  FlatTiles(const Tensor* tensors, int64_t count)
      : tensors_(tensors),
        count_(count),
        table_(tensors, count, [](const Tensor& t) { return ceil_div(t.size(), kTile); }) {}

  int64_t tiles() { return table_.tiles(); }
  int64_t entries() {
    int64_t entries = 0;
    for (int64_t i = 0; i < count_; ++i) entries += tensors_[i].size();
    return entries;
  }

  template <class F>
  void for_range(int64_t begin_tile, int64_t end_tile, const F& f) {
    table_.for_range(begin_tile, end_tile, [&](int64_t i, int64_t tile, int64_t number) {
      const int64_t begin = tile * kTile;
      f(tensors_[i], begin, min64(kTile, tensors_[i].size() - begin), number);
    });
  }

  template <class F>
  void for_all(const Pool& pool, const F& f) {
    parallel(pool, tiles(), [&](int64_t begin, int64_t end) { for_range(begin, end, f); });
  }

 private:
  const Tensor* tensors_;
  int64_t count_;
  TileTable table_;
};

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
