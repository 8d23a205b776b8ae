#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

size_t page_bytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

// The page below the stack is never mapped in: running over the end of the stack faults at once.
Fiber::Fiber() {
  const size_t bytes = kStackBytes + page_bytes();
  void* mapping =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping, page_bytes(), PROT_NONE);
  mapping_ = static_cast<char*>(mapping);
  context.stack = mapping_ + page_bytes();
  context.stack_bytes = kStackBytes;
}

// What ran here before was dropped in the middle: its variables are still marked as such.
void Fiber::forget_variables() {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(context.stack, context.stack_bytes);
#endif
}

Fiber::~Fiber() {
  munmap(mapping_, kStackBytes + page_bytes());
}

#if defined(EMULATION_USES_UCONTEXT)

void Fiber::prepare(void (*entry)()) {
  forget_variables();
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = mapping_ + page_bytes();
  context.machine.uc_stack.ss_size = kStackBytes;
  context.machine.uc_link = nullptr;
  makecontext(&context.machine, entry, 0);
}

static void switch_machine(Context& from, Context& to) {
  swapcontext(&from.machine, &to.machine);
}

#else

// swapcontext makes a system call for the signal mask, a hundred times the cost of this. The registers that
// the System V ABI lets a callee keep are saved on the stack that is left and taken from the one that is
// entered.
asm(R"(
.text
.p2align 4
.type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch_stack, .-emulation_switch_stack
)");
extern "C" void emulation_switch_stack(void** save, void* load);

void Fiber::prepare(void (*entry)()) {
  forget_variables();
  auto** top = reinterpret_cast<void**>(mapping_ + page_bytes() + kStackBytes);
  *--top = nullptr;  // where entry would return to; it also aligns the stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}

static void switch_machine(Context& from, Context& to) {
  emulation_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#endif

#if defined(__SANITIZE_ADDRESS__)

void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
  switch_machine(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void on_fiber_entry(Context& scheduler) {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
}

#else

void switch_context(Context& from, Context& to) {
  switch_machine(from, to);
}
void on_fiber_entry(Context&) {}

#endif

}  // namespace emulation
