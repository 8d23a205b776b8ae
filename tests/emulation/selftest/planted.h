// Launchers of the kernels that try the emulation itself: correct ones, and ones with a fault each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace planted {

struct Case {
  const char* name;
  // Launches on `blocks` blocks of `threads` threads; input and output hold one int per thread of the grid.
  void (*launch)(unsigned blocks, unsigned threads, const int* input, int* output);
};

extern const std::vector<Case> correct;
extern const std::vector<Case> faults;

}  // namespace planted
