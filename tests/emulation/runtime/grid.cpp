// Runs the blocks of a grid one after another, and the threads of a block as fibers that give way at
// barriers, warp operations and atomics; which goes on is drawn at random.
#include "grid.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <sstream>

#include "memory.h"

namespace emulation {

Grid grid;
Thread* current = nullptr;
Random random_source;

namespace {

uint64_t current_seed = 0;
bool seeded = false;
unsigned grid_blocks = 0;
uint64_t last_blocks = ~uint64_t{0};
uint64_t small_grid = 1;
std::map<const void*, size_t> shared_let;  // what kernels have been let have

constexpr uint64_t kMaxThreads = 1024, kMaxParameters = 32764, kMaxBlocksRun = 1 << 20;

uint64_t volume(const dim3& size) {
  return uint64_t{size.x} * size.y * size.z;
}

uint3 unravel(uint64_t index, const dim3& size) {
  const uint64_t row = index / size.x;
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(row % size.y),
          static_cast<unsigned>(row / size.y)};
}

void seed_once() {
  if (seeded) return;
  const char* given = std::getenv("PRUNEOPS_EMULATION_SEED");
  set_seed(given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}());
}

// With it the run can be seen again.
std::string seed_note() {
  return " (seed " + std::to_string(seed()) + ")";
}

std::string kernel_name() {
  return "kernel " + function_name(grid.kernel.address);
}

[[noreturn]] void refuse_launch(const std::string& why) {
  throw Refusal(kernel_name() + ": launch refused: " + why + seed_note());
}

void check_config(const Config& config, const Kernel& kernel) {
  const auto& [grid_size, block, shared] = config;
  if (volume(block) == 0 || volume(grid_size) == 0) {
    refuse_launch("grid " + place({grid_size.x, grid_size.y, grid_size.z}) + " of blocks " +
                  place({block.x, block.y, block.z}) + " is empty");
  }
  if (volume(block) > kMaxThreads || block.z > 64) {
    refuse_launch("a block of " + std::to_string(volume(block)) + " threads, at most " +
                  std::to_string(kMaxThreads) + " fit (64 along z)");
  }
  if (grid_size.x > 0x7fffffffu || grid_size.y > 0xffffu || grid_size.z > 0xffffu) {
    refuse_launch("a grid of " + place({grid_size.x, grid_size.y, grid_size.z}) +
                  " blocks, at most (2147483647,65535,65535) are allowed");
  }
  const auto let = shared_let.find(kernel.address);
  const size_t most = let == shared_let.end() ? kMaxShared : let->second;
  if (shared > most) {
    refuse_launch(std::to_string(shared) + " bytes of dynamic shared memory, at most " +
                  std::to_string(most));
  }
  if (kernel.parameter_bytes > kMaxParameters) {
    refuse_launch(std::to_string(kernel.parameter_bytes) + " bytes of parameters, at most " +
                  std::to_string(kMaxParameters));
  }
}

void thread_main() {
  on_fiber_entry(grid.scheduler);
  grid.kernel.invoke(grid.kernel.call);
  current->state = State::exited;
  switch_to_scheduler();
  std::abort();  // an exited thread is not resumed
}

void resume(Thread& thread) {
  thread.accesses = 0;
  current = &thread;
  switch_context(grid.scheduler, thread.fiber.context);
}

[[noreturn]] void report() {
  const Thread& thread = *grid.refused_thread;
  const std::string line = source_line(grid.refused_site);
  std::ostringstream text;
  text << kernel_name() << ", block " << place(block_of(grid.serial)) << ", thread " << place(thread.index)
       << (line.empty() ? "" : ", " + line) << ": " << grid.refused << seed_note();
  throw Refusal(text.str());
}

void start_block() {
  forget_shared();
  grid.ready.clear();
  grid.at_barrier = 0;
  grid.epoch = 0;
  for (unsigned rank = 0; rank < grid.size; ++rank) {
    Thread& thread = *grid.threads[rank];
    thread.rank = rank;
    thread.index = unravel(rank, grid.config.block);
    std::fill_n(thread.clock, kLanes, 0u);
    thread.fiber.prepare(thread_main);
    make_ready(thread);
  }
}

void run_block() {
  start_block();
  while (!grid.ready.empty()) {
    std::swap(grid.ready[random_source.below(grid.ready.size())], grid.ready.back());
    Thread& next = *grid.threads[grid.ready.back()];
    grid.ready.pop_back();
    resume(next);
    if (grid.refused_thread != nullptr) report();
  }
  grid.refused = explain_deadlock(grid.refused_thread);
  if (grid.refused_thread != nullptr) {
    grid.refused_site = grid.refused_thread->site;
    report();
  }
}

}  // namespace

void set_seed(uint64_t seed) {
  seeded = true;
  current_seed = seed;
  random_source = Random(seed);
}

uint64_t seed() {
  seed_once();
  return current_seed;
}

void set_grid(unsigned blocks) {
  grid_blocks = blocks;
}

void set_last_blocks(uint64_t count) {
  last_blocks = count;
}

void set_small_grid(uint64_t blocks) {
  small_grid = blocks;
}

bool let_have_shared(const void* kernel, size_t bytes) {
  if (bytes > kOptInShared) return false;
  shared_let[kernel] = std::max(bytes, kMaxShared);
  return true;
}

void run(const Config& config, const Kernel& kernel) {
  seed_once();
  grid.config = config;
  grid.kernel = kernel;
  check_config(config, kernel);
  const bool is_small = volume(config.grid) <= small_grid;
  if (grid_blocks > 0 && !is_small) grid.config.grid.x = grid_blocks;
  grid.module = find_module(kernel.shared_marker, kernel.address);
  grid.size = static_cast<unsigned>(volume(config.block));
  while (grid.threads.size() < grid.size) grid.threads.push_back(std::make_unique<Thread>());

  const uint64_t blocks = volume(grid.config.grid), count = is_small ? blocks : std::min(last_blocks, blocks);
  if (count > kMaxBlocksRun) refuse_launch(std::to_string(count) + " blocks are too many to emulate");
  grid.order.resize(count);
  std::iota(grid.order.begin(), grid.order.end(), blocks - count);
  if (count < blocks) grid.order.push_back(0);
  random_source.shuffle(grid.order);

  if (grid.serial + grid.order.size() > kMaxSerial) {
    forget_accesses();
    grid.serial = 0;
  }
  grid.refused_thread = nullptr;
  grid.first_serial = grid.serial + 1;
  start_launch();
  for (size_t i = 0; i < grid.order.size(); ++i) {
    ++grid.serial;
    run_block();
  }
}

void make_ready(Thread& thread) {
  thread.state = State::ready;
  grid.ready.push_back(thread.rank);
}

void switch_to_scheduler() {
  Thread* self = current;
  current = nullptr;
  switch_context(self->fiber.context, grid.scheduler);
}

uint3 block_of(uint64_t serial) {
  return unravel(grid.order[serial - grid.first_serial], grid.config.grid);
}

std::string place(const uint3& at) {
  return "(" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
}

void refuse_host(const std::string& why) {
  throw Refusal((grid.kernel.address == nullptr ? "" : "after " + kernel_name() + ", ") + why + seed_note());
}

void refuse(const std::string& why, const void* site, Thread* thread) {
  if (thread == nullptr) {
    std::fprintf(stderr, "emulation, on the host%s%s: %s%s\n", site ? ", " : "", source_line(site).c_str(),
                 why.c_str(), seed_note().c_str());
    std::abort();
  }
  grid.refused = why;
  grid.refused_site = site;
  grid.refused_thread = thread;
  switch_to_scheduler();
  std::abort();
}

// ---- what device code calls
// -----------------------------------------------------------------------------------

uint3 thread_index() {
  return current->index;
}
uint3 block_index() {
  return block_of(grid.serial);
}
dim3 block_size() {
  return grid.config.block;
}
dim3 grid_size() {
  return grid.config.grid;
}
unsigned lane() {
  return current->lane();
}

void trap(const char* what) {
  refuse(what, __builtin_return_address(0));
}

void atomic(const volatile void* address, size_t bytes, const void* site) {
  if (random_source.below(4) == 0) {
    make_ready(*current);
    switch_to_scheduler();
  }
  check_access(reinterpret_cast<uintptr_t>(address), bytes, AccessKind::atomic, site);
}

}  // namespace emulation
