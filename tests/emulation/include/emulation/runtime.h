// What the emulated device is to the code that runs on it and to the tests that drive it. One
// operating-system thread runs one grid at a time; everything that CUDA leaves undefined ends the launch with
// a Refusal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "types.h"

namespace emulation {

// Names the kernel, the block, the thread, the source line where it is known, and the seed of the run; where
// the host is to blame, the last kernel and the seed.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- the grid
// -------------------------------------------------------------------------------------------------

struct Config {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared = 0;
};

// A kernel with its arguments: `invoke` calls it once, for the thread that is running.
struct Kernel {
  const void* address;
  size_t parameter_bytes;
  void (*invoke)(const void* call);
  const void* call;
  const void* shared_marker;  // an address in the shared memory of the module that holds the kernel
};

void run(const Config& config, const Kernel& kernel);

// Of an `extern __shared__` array, as many bytes as the launch asks for may be touched: at most kMaxShared,
// or what the kernel has been let have. The device has little to give, so that tests need not be large.
constexpr size_t kMaxShared = 48 * 1024;
constexpr size_t kOptInShared = 64 * 1024;
// Few, so that blocks have several tiles.
constexpr int kMultiprocessors = 4;
bool declare_dynamic_shared(const void* (*address)());
// False where that is more than the device has.
bool let_have_shared(const void* kernel, size_t bytes);

// The order of threads and blocks and the values of undefined bytes follow from the seed. The first seed is
// PRUNEOPS_EMULATION_SEED, or random.
void set_seed(uint64_t seed);
uint64_t seed();

// Launch every grid of more than one block with so many blocks along x; 0 leaves grids as they are. For
// kernels that loop over their work whatever the grid.
void set_grid(unsigned blocks);

// Run only the last blocks of every grid, at most so many, and the first, which may have work of its own: how
// the far end of a huge range is reached.
void set_last_blocks(uint64_t count);

// Grids of at most so many blocks, at first 1, run as they are launched whatever the two above say.
void set_small_grid(uint64_t blocks);

// ---- what a thread sees
// ---------------------------------------------------------------------------------------

// Constant for one activation of a kernel, so that the compiler may call them once.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();

enum class Barrier { sync, count, all, any };
int barrier(Barrier kind, bool predicate);

// The warp operations differ in what they compute, not in how they meet: every lane in `mask` brings a value
// and gets the values of all. Values of lanes outside the mask are arbitrary, as on the device.
enum class Collective {
  syncwarp,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
  match_any,
  match_all,
  reduce
};
// `site` is where device code calls, for the message.
const uint64_t* gather(Collective operation, uint32_t mask, uint64_t value, const void* site);
unsigned lane();

// Announces an atomic operation on these bytes; other threads may run first.
void atomic(const volatile void* address, size_t bytes, const void* site);
[[noreturn]] void trap(const char* what);

// ---- memory
// ---------------------------------------------------------------------------------------------------

// Device memory. The bytes of an allocation are undefined until they are written.
void* allocate(size_t bytes);
// Memory that the caller owns and has filled, made visible to kernels until release.
void adopt(void* begin, size_t bytes);
void release(void* begin);
// What the host does, checked against the allocations. What it copies must have been written.
void fill(void* begin, int value, size_t bytes);
void copy(void* to, const void* from, size_t bytes);

}  // namespace emulation
