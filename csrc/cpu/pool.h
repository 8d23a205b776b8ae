// Threads that the caller lends: the kernels split their work into numbered tasks and know of no thread
// library.
#pragma once

#include <cstdint>

namespace pruneops::cpu {

struct Pool {
  using Range = void (*)(void* context, int64_t begin, int64_t end);

  int threads;
  // Calls `range` on disjoint ranges that cover [0, tasks), in any order and on any thread, and returns when
  // all are done.
  void (*run)(int64_t tasks, Range range, void* context);
};

}  // namespace pruneops::cpu
