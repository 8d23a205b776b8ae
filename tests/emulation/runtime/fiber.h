// A stack of its own for each emulated thread, and the switch between stacks.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || defined(EMULATION_UCONTEXT)
#define EMULATION_USES_UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

constexpr size_t kStackBytes = 256 * 1024;

// Where a suspended flow of control goes on: a fiber, or the scheduler between fibers.
struct Context {
#if defined(EMULATION_USES_UCONTEXT)
  ucontext_t machine;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack = nullptr;  // unknown for the scheduler until it is first left
  size_t stack_bytes = 0;
};

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume calls entry(), which never returns. What ran here before is dropped.
  void prepare(void (*entry)());

  bool owns(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(context.stack) < context.stack_bytes;
  }

  Context context;

 private:
  void forget_variables();

  char* mapping_;
};

// Suspends `from`, goes on with `to`.
void switch_context(Context& from, Context& to);
// To be called first by a fiber's entry.
void on_fiber_entry(Context& scheduler);

}  // namespace emulation
