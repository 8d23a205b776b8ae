// Atomic operations: a thread may be preempted before each, and each is told apart from ordinary accesses.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace emulation {

template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T exchange_with(T* address, F f) {
  atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = f(old);
  return old;
}

}  // namespace emulation

// The operand's type follows the address, as with CUDA's overloads.
#define EMULATION_ATOMIC(name, expression)                                                       \
  template <class T>                                                                             \
  inline __attribute__((always_inline)) T name(T* address, std::common_type_t<T> operand) {      \
    return emulation::exchange_with(address, [=](T old) { return static_cast<T>(expression); }); \
  }

EMULATION_ATOMIC(atomicAdd, old + operand)
EMULATION_ATOMIC(atomicInc, old >= operand ? 0 : old + 1)
EMULATION_ATOMIC(atomicMin, operand < old ? operand : old)
EMULATION_ATOMIC(atomicMax, operand > old ? operand : old)
EMULATION_ATOMIC(atomicOr, old | operand)
EMULATION_ATOMIC(atomicExch, (static_cast<void>(old), operand))
#undef EMULATION_ATOMIC

template <class T>
inline __attribute__((always_inline)) T atomicCAS(T* address, std::common_type_t<T> compare,
                                                  std::common_type_t<T> value) {
  return emulation::exchange_with(address, [=](T old) { return old == compare ? value : old; });
}
