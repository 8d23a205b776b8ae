#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <unordered_map>

#include "grid.h"

namespace emulation {

bool is_instrumented = false;

namespace {

// One access to one byte, as far as later ones must know it. Serial 0 is no block.
struct Access {
  uint64_t serial : 26;
  uint64_t thread : 10;
  uint64_t epoch : 16;
  uint64_t clock : 11;
  uint64_t atomic : 1;
};
static_assert(sizeof(Access) == 8, "the shadow holds three accesses for each byte");

// The last write, and two reads from different warps: whoever writes next races with at least one of them if
// it races with any read of another warp.
struct Cell {
  Access write;
  Access read[2];
};

constexpr size_t kPage = 1024;
constexpr uint64_t kMaxAccesses = 1 << 24;
constexpr size_t kMaxPages = 1 << 14;

struct Allocation {
  uintptr_t begin;
  size_t bytes;
  bool owned;
  std::vector<uint8_t> defined;  // 1 for each byte that has been written; empty where all have
  std::unordered_map<size_t, std::unique_ptr<Cell[]>> pages;
  size_t last_page = ~size_t{0};
  Cell* last_cells = nullptr;

  // The cells of a page.
  Cell* cells(size_t page) {
    if (page != last_page) {
      if (pages.size() > kMaxPages) refuse("touches more than 16 MiB of one allocation", nullptr);
      auto& cells = pages[page];
      if (!cells) cells.reset(new Cell[kPage]());
      last_page = page;
      last_cells = cells.get();
    }
    return last_cells;
  }
};

std::map<uintptr_t, Allocation> allocations;  // by where they begin
Allocation* last_used = nullptr;
std::vector<Cell> shared_cells;
std::vector<const void* (*)()> dynamic_shared;
Range touched;  // what the running block has used of shared memory
uintptr_t touched_in = 0;

// The allocation that begins at or before an address.
Allocation* find(uintptr_t address) {
  if (last_used != nullptr && address - last_used->begin < last_used->bytes) return last_used;
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  return last_used = &std::prev(next)->second;
}

const char* verb(AccessKind kind) {
  switch (kind) {
    case AccessKind::read:
      return "reads ";
    case AccessKind::write:
      return "writes ";
    case AccessKind::atomic:
      return "atomically updates ";
  }
  return "";
}

std::string what(AccessKind kind, size_t bytes, bool shared, size_t offset) {
  std::ostringstream text;
  text << verb(kind) << bytes << " bytes of " << (shared ? "shared" : "global") << " memory at offset "
       << offset;
  return text.str();
}

// Whether everything that `access` did comes before what the current thread does now. Accesses of blocks
// before `floor` belong to earlier launches, or to shared memory that is gone.
bool ordered(const Access& access, uint64_t floor) {
  if (access.serial < floor) return true;
  if (access.serial != grid.serial) return false;
  if (access.thread == current->rank || access.epoch < grid.epoch) return true;
  return access.thread / kLanes == current->warp() && current->clock[access.thread % kLanes] > access.clock;
}

void note_read(Cell& cell, const Access& mine, uint64_t floor) {
  if (ordered(cell.read[0], floor)) {
    cell.read[0] = mine;
  } else if (cell.read[0].thread / kLanes != mine.thread / kLanes || cell.read[0].serial != mine.serial) {
    cell.read[1] = mine;
  }
}

std::string race(const Access& other, const char* did, const std::string& mine) {
  const uint3 block = block_of(other.serial);
  const uint3 size{grid.config.block.x, grid.config.block.y, grid.config.block.z};
  const uint3 thread{static_cast<unsigned>(other.thread % size.x),
                     static_cast<unsigned>(other.thread / size.x % size.y),
                     static_cast<unsigned>(other.thread / size.x / size.y)};
  return mine + ", which thread " + place(thread) +
         (other.serial == grid.serial ? "" : " of block " + place(block)) + did +
         " with nothing to order the two";
}

bool same(const Cell& a, const Cell& b) {
  return std::memcmp(&a, &b, sizeof(Cell)) == 0;
}

// Checks one access for races and remembers it.
void check_order(Cell* cells, size_t bytes, bool shared, size_t offset, AccessKind kind, const void* site) {
  const uint64_t floor = shared ? grid.serial : grid.first_serial;
  const Access mine{grid.serial, current->rank, grid.epoch, current->clock[current->lane()],
                    kind == AccessKind::atomic};
  Cell before{}, after{};
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[i];
    if (i > 0 && same(cell, before)) {  // neighbouring bytes mostly have one history
      cell = after;
      continue;
    }
    before = cell;
    if (!ordered(cell.write, floor) && !(cell.write.atomic && mine.atomic)) {
      refuse(race(cell.write, " wrote", what(kind, bytes, shared, offset)), site);
    }
    if (kind == AccessKind::read) {
      note_read(cell, mine, floor);
    } else {
      for (const Access& read : cell.read) {
        if (!ordered(read, floor)) refuse(race(read, " read", what(kind, bytes, shared, offset)), site);
      }
      cell.write = mine;
    }
    after = cell;
  }
}

void check_dynamic_bounds(size_t offset, size_t bytes, AccessKind kind, const void* site) {
  for (const auto& address : dynamic_shared) {
    const size_t begin = reinterpret_cast<uintptr_t>(address()) - grid.module.shared.begin;
    if (offset >= begin && offset < begin + kOptInShared &&
        offset + bytes > begin + grid.config.dynamic_shared) {
      refuse(what(kind, bytes, true, offset - begin) + ", of which the launch has " +
                 std::to_string(grid.config.dynamic_shared) + " dynamic bytes",
             site);
    }
  }
}

void check_shared(size_t offset, size_t bytes, AccessKind kind, const void* site) {
  check_dynamic_bounds(offset, bytes, kind, site);
  touched.begin = std::min(touched.begin, grid.module.shared.begin + offset);
  touched.end = std::max(touched.end, grid.module.shared.begin + offset + bytes);
  if (kind != AccessKind::write) {
    for (size_t i = 0; i < bytes; ++i) {
      if (shared_cells[offset + i].write.serial != grid.serial) {
        refuse(what(kind, bytes, true, offset) + ", which no thread of this block has written", site);
      }
    }
  }
  check_order(&shared_cells[offset], bytes, true, offset, kind, site);
}

void check_global(Allocation& allocation, size_t offset, size_t bytes, AccessKind kind, const void* site) {
  if (!allocation.defined.empty()) {
    uint8_t* defined = &allocation.defined[offset];
    if (kind != AccessKind::write && std::memchr(defined, 0, bytes) != nullptr) {
      refuse(what(kind, bytes, false, offset) + ", which no one has written since it was allocated", site);
    }
    std::memset(defined, 1, bytes);
  }
  while (bytes > 0) {
    const size_t here = std::min(bytes, kPage - offset % kPage);
    check_order(allocation.cells(offset / kPage) + offset % kPage, here, false, offset, kind, site);
    offset += here;
    bytes -= here;
  }
}

[[noreturn]] void refuse_address(uintptr_t address, size_t bytes, AccessKind kind, const void* site) {
  std::ostringstream text;
  text << verb(kind) << bytes << " bytes at 0x" << std::hex << address << std::dec;
  for (unsigned rank = 0; rank < grid.size; ++rank) {
    const Thread& other = *grid.threads[rank];
    if (other.fiber.owns(address)) refuse(text.str() + ", local to thread " + place(other.index), site);
  }
  text << ", outside every allocation";
  constexpr size_t kNear = 1 << 16;
  const Allocation* below = find(address);
  if (below != nullptr && address - below->begin < below->bytes + kNear) {
    text << "; it ends " << address + bytes - (below->begin + below->bytes) << " bytes past one of "
         << below->bytes << " bytes";
  }
  refuse(text.str(), site);
}

// For what the host does through the runtime's functions.
Allocation* on_device(const void* begin, size_t bytes, const char* act) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  Allocation* allocation = find(address);
  if (allocation == nullptr || address - allocation->begin >= allocation->bytes) return nullptr;
  if (address + bytes <= allocation->begin + allocation->bytes) return allocation;
  refuse_host("the host " + std::string(act) + " " + std::to_string(bytes) + " bytes from offset " +
              std::to_string(address - allocation->begin) + " of an allocation of " +
              std::to_string(allocation->bytes) + " bytes");
}

void mark_defined(Allocation& allocation, const void* begin, size_t bytes) {
  if (allocation.defined.empty()) return;
  std::memset(&allocation.defined[reinterpret_cast<uintptr_t>(begin) - allocation.begin], 1, bytes);
}

void check_defined(const Allocation& allocation, const void* begin, size_t bytes) {
  if (allocation.defined.empty()) return;
  const uint8_t* defined = &allocation.defined[reinterpret_cast<uintptr_t>(begin) - allocation.begin];
  if (const void* first = std::memchr(defined, 0, bytes)) {
    const auto at = static_cast<const uint8_t*>(first) - allocation.defined.data();
    refuse_host("the host copies byte " + std::to_string(at) + " of an allocation of " +
                std::to_string(allocation.bytes) + " bytes, which no one has written since it was allocated");
  }
}

void scramble(void* begin, size_t bytes) {
  auto* at = static_cast<char*>(begin);
  Random noise(seed());
  for (; bytes > 0; at += 8) {
    const uint64_t word = noise.next();
    const size_t n = bytes < 8 ? bytes : 8;
    std::memcpy(at, &word, n);
    bytes -= n;
  }
}

}  // namespace

void check_access(uintptr_t address, size_t bytes, AccessKind kind, const void* site) {
  if (!is_instrumented || current == nullptr || current->fiber.owns(address)) return;
  if (++current->accesses > kMaxAccesses) {
    refuse("makes 2^24 accesses without giving way; does it wait for a thread that cannot run?", site);
  }
  if (grid.module.shared.holds(address, bytes)) {
    return check_shared(address - grid.module.shared.begin, bytes, kind, site);
  }
  Allocation* allocation = find(address);
  if (allocation != nullptr && address + bytes <= allocation->begin + allocation->bytes) {
    return check_global(*allocation, address - allocation->begin, bytes, kind, site);
  }
  for (const Range& constant : grid.module.constants) {
    if (kind == AccessKind::read && constant.holds(address, bytes)) return;
  }
  refuse_address(address, bytes, kind, site);
}

bool declare_dynamic_shared(const void* (*address)()) {
  dynamic_shared.push_back(address);
  return true;
}

// Cells of earlier launches do no harm, as serial numbers grow.
void start_launch() {
  const Range& shared = grid.module.shared;
  if (shared.begin != touched_in) touched = shared;
  touched_in = shared.begin;
  shared_cells.resize(shared.end - shared.begin);
}

void forget_accesses() {
  shared_cells.clear();
  for (auto& [begin, allocation] : allocations) {
    allocation.pages.clear();
    allocation.last_page = ~size_t{0};
  }
}

void forget_shared() {
  if (!is_instrumented) touched = grid.module.shared;
  if (touched.begin < touched.end) {
    scramble(reinterpret_cast<void*>(touched.begin), touched.end - touched.begin);
  }
  touched = {grid.module.shared.end, grid.module.shared.begin};
}

void* allocate(size_t bytes) {
  void* begin = nullptr;
  if (posix_memalign(&begin, 256, bytes > 0 ? bytes : 1) != 0) throw std::bad_alloc();
  scramble(begin, bytes);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  allocations[address] =
      Allocation{address, bytes, true, std::vector<uint8_t>(is_instrumented ? bytes : 0), {}};
  return begin;
}

void adopt(void* begin, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  allocations[address] = Allocation{address, bytes, false, {}, {}};
}

void release(void* begin) {
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(begin));
  if (found == allocations.end()) refuse_host("the host releases what is no allocation");
  if (found->second.owned) std::free(begin);
  last_used = nullptr;
  allocations.erase(found);
}

void fill(void* begin, int value, size_t bytes) {
  if (bytes == 0) return;
  Allocation* allocation = on_device(begin, bytes, "fills");
  if (allocation == nullptr) refuse_host("the host fills what is no allocation");
  std::memset(begin, value, bytes);
  mark_defined(*allocation, begin, bytes);
}

void copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  Allocation* target = on_device(to, bytes, "copies");
  if (const Allocation* source = on_device(from, bytes, "copies")) check_defined(*source, from, bytes);
  std::memmove(to, from, bytes);
  if (target != nullptr) mark_defined(*target, to, bytes);
}

}  // namespace emulation
