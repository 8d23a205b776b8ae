// What the loader and the debug information know about the module that holds a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

struct Range {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool holds(uintptr_t address, size_t bytes) const { return address >= begin && address + bytes <= end; }
};

struct Module {
  Range shared;                  // its thread-local segment
  std::vector<Range> constants;  // its read-only segments
};

// `marker` is an address in the thread-local segment, `kernel` one in the code.
Module find_module(const void* marker, const void* kernel);

std::string function_name(const void* function);
// "file.cuh:12", or nothing where it is not known.
std::string source_line(const void* return_address);

}  // namespace emulation
