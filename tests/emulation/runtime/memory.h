// Every access of device code is checked: does it lie in memory that the thread may touch, has someone
// written what it reads, and is it ordered with the accesses of other threads?
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

enum class AccessKind { read, write, atomic };

// `site` is the return address of the access in device code.
void check_access(uintptr_t address, size_t bytes, AccessKind kind, const void* site);

// Whether the compiler reports the accesses; otherwise sanitizers check, and the emulation knows too little.
extern bool is_instrumented;

// How many blocks the records of accesses can tell apart; after so many, all are dropped.
constexpr uint64_t kMaxSerial = (uint64_t{1} << 26) - 1;
void forget_accesses();

void start_launch();
// Between blocks shared memory is filled with arbitrary bytes that no one has written.
void forget_shared();

}  // namespace emulation
