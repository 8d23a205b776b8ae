// The state of the running grid: its threads, what each waits for, and how a refusal leaves it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../include/emulation/runtime.h"
#include "fiber.h"
#include "module.h"
#include "random.h"

namespace emulation {

constexpr unsigned kLanes = 32;

enum class State : uint8_t { ready, at_barrier, at_collective, exited };

struct Thread {
  Fiber fiber;
  unsigned rank = 0;
  uint3 index{};
  State state = State::ready;
  const void* site = nullptr;  // where it waits

  Barrier barrier{};
  bool predicate = false;
  Collective collective{};
  uint32_t mask = 0;
  uint64_t value = 0;
  uint64_t gathered[kLanes];

  // A vector clock over the lanes of the warp: how many of each lane's __syncwarp come before what this
  // thread does now. Block barriers are counted in Grid::epoch.
  uint32_t clock[kLanes];
  uint64_t accesses = 0;  // since it last gave way

  unsigned lane() const { return rank % kLanes; }
  unsigned warp() const { return rank / kLanes; }
};

struct Grid {
  Config config;
  Kernel kernel;
  Module module;
  Context scheduler;
  std::vector<std::unique_ptr<Thread>> threads;  // kept from launch to launch, as their stacks are
  std::vector<unsigned> ready;
  unsigned size = 0;        // threads of a block
  unsigned at_barrier = 0;  // threads that wait there
  int barrier_result = 0;
  uint32_t epoch = 0;         // barriers that the block has passed
  uint64_t first_serial = 1;  // serial number, over all launches, of the first block of this one
  uint64_t serial = 0;
  std::vector<uint64_t> order;  // order[i] is the linear index of the block with serial first_serial + i

  std::string refused;  // why, once a thread is refused
  const void* refused_site = nullptr;
  Thread* refused_thread = nullptr;
};

extern Grid grid;
extern Thread* current;  // null outside device code
extern Random random_source;

uint3 block_of(uint64_t serial);
std::string place(const uint3& at);

// Ends the launch; called on the thread's own stack, which is never returned to.
[[noreturn]] void refuse(const std::string& why, const void* site, Thread* thread = current);
// For what the host does between launches.
[[noreturn]] void refuse_host(const std::string& why);

void make_ready(Thread& thread);
// Gives way; returns when the scheduler resumes the thread.
void switch_to_scheduler();

// Once no thread can go on: who is to blame for what. No one where all have exited.
std::string explain_deadlock(Thread*& blamed);

}  // namespace emulation
