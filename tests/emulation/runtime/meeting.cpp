// Where threads wait for each other: block barriers, warp operations, and what is wrong when no one can go
// on.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "grid.h"

namespace emulation {

namespace {

// How far the shadow memory can count.
constexpr uint32_t kMaxBarriers = (1 << 16) - 1, kMaxWarpBarriers = (1 << 11) - 2;

const char* name(Collective operation) {
  switch (operation) {
    case Collective::syncwarp:
      return "__syncwarp";
    case Collective::shfl:
      return "__shfl_sync";
    case Collective::shfl_up:
      return "__shfl_up_sync";
    case Collective::shfl_down:
      return "__shfl_down_sync";
    case Collective::shfl_xor:
      return "__shfl_xor_sync";
    case Collective::ballot:
      return "__ballot_sync";
    case Collective::any:
      return "__any_sync";
    case Collective::all:
      return "__all_sync";
    case Collective::match_any:
      return "__match_any_sync";
    case Collective::match_all:
      return "__match_all_sync";
    case Collective::reduce:
      return "__reduce_add_sync";
  }
  return "";
}

Thread& lane_of(const Thread& thread, unsigned lane) {
  return *grid.threads[thread.warp() * kLanes + lane];
}

unsigned lanes_in_warp(const Thread& thread) {
  return std::min(kLanes, grid.size - thread.warp() * kLanes);
}

// Whether a lane has come to the same operation with the same mask.
bool has_come(const Thread& self, unsigned lane) {
  if (lane >= lanes_in_warp(self)) return false;
  const Thread& other = lane_of(self, lane);
  return other.state == State::at_collective && other.collective == self.collective &&
         other.mask == self.mask;
}

// The first lane that the mask names and that has not come, or kLanes.
unsigned missing_lane(const Thread& self) {
  for (uint32_t left = self.mask; left != 0; left &= left - 1) {
    const auto lane = static_cast<unsigned>(__builtin_ctz(left));
    if (!has_come(self, lane)) return lane;
  }
  return kLanes;
}

void join_clocks(const Thread& self) {
  uint32_t joined[kLanes] = {};
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(self.mask >> i & 1)) continue;
    Thread& other = lane_of(self, i);
    if (++other.clock[i] > kMaxWarpBarriers)
      refuse("too many __syncwarp between two __syncthreads", self.site);
    for (unsigned j = 0; j < kLanes; ++j) joined[j] = std::max(joined[j], other.clock[j]);
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    if (self.mask >> i & 1) std::memcpy(lane_of(self, i).clock, joined, sizeof(joined));
  }
}

void complete(const Thread& self) {
  uint64_t values[kLanes];
  for (unsigned i = 0; i < kLanes; ++i) {
    values[i] = self.mask >> i & 1 ? lane_of(self, i).value : random_source.next();
  }
  if (self.collective == Collective::syncwarp) join_clocks(self);
  for (unsigned i = 0; i < kLanes; ++i) {
    if (!(self.mask >> i & 1)) continue;
    std::memcpy(lane_of(self, i).gathered, values, sizeof(values));
    make_ready(lane_of(self, i));
  }
}

std::string state_of(const Thread& thread) {
  switch (thread.state) {
    case State::exited:
      return "has exited";
    case State::at_barrier:
      return "waits at __syncthreads";
    case State::at_collective:
      return std::string("waits at ") + name(thread.collective);
    case State::ready:
      return "runs";
  }
  return "";
}

std::string hex(uint32_t mask) {
  std::ostringstream text;
  text << "0x" << std::hex << mask;
  return text.str();
}

}  // namespace

int barrier(Barrier kind, bool predicate) {
  Thread& self = *current;
  self.state = State::at_barrier;
  self.site = __builtin_return_address(0);
  self.barrier = kind;
  self.predicate = predicate;
  if (++grid.at_barrier == grid.size) {
    unsigned held = 0;
    for (unsigned rank = 0; rank < grid.size; ++rank) {
      Thread& other = *grid.threads[rank];
      if (other.barrier != kind) refuse("meets threads at another kind of __syncthreads", self.site);
      held += other.predicate;
      std::fill_n(other.clock, kLanes, 0u);
      make_ready(other);
    }
    grid.barrier_result = kind == Barrier::all   ? held == grid.size
                          : kind == Barrier::any ? held > 0
                                                 : static_cast<int>(held);
    grid.at_barrier = 0;
    if (++grid.epoch > kMaxBarriers) refuse("too many __syncthreads in one block", self.site);
  }
  switch_to_scheduler();
  return grid.barrier_result;
}

const uint64_t* gather(Collective operation, uint32_t mask, uint64_t value, const void* site) {
  Thread& self = *current;
  if (!(mask >> self.lane() & 1)) {
    refuse(
        std::string(name(operation)) + " with mask " + hex(mask) + ", which does not name the calling lane",
        site);
  }
  self.state = State::at_collective;
  self.site = site;
  self.collective = operation;
  self.mask = mask;
  self.value = value;
  if (missing_lane(self) == kLanes) complete(self);
  switch_to_scheduler();
  return self.gathered;
}

// Warp operations come first, as a barrier that is not reached is often their consequence.
std::string explain_deadlock(Thread*& blamed) {
  blamed = nullptr;
  for (unsigned rank = 0; rank < grid.size; ++rank) {
    Thread& self = *grid.threads[rank];
    if (self.state != State::at_collective) continue;
    blamed = &self;
    const unsigned lane = missing_lane(self);
    const std::string who = "lane " + std::to_string(lane);
    const std::string why = lane >= lanes_in_warp(self) ? who + " does not exist"
                            : lane_of(self, lane).state == State::at_collective &&
                                    lane_of(self, lane).collective == self.collective
                                ? who + " brings mask " + hex(lane_of(self, lane).mask)
                                : who + " " + state_of(lane_of(self, lane));
    return std::string(name(self.collective)) + " with mask " + hex(self.mask) + ": " + why;
  }
  for (unsigned rank = 0; rank < grid.size && grid.at_barrier > 0; ++rank) {
    Thread& self = *grid.threads[rank];
    if (self.state == State::at_barrier) continue;
    for (unsigned other = 0; other < grid.size; ++other) {
      if (grid.threads[other]->state == State::at_barrier) self.site = grid.threads[other]->site;
    }
    blamed = &self;
    return "has exited before __syncthreads, where " + std::to_string(grid.at_barrier) + " of " +
           std::to_string(grid.size) + " threads wait";
  }
  return "";
}

}  // namespace emulation
