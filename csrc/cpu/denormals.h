// Denormal numbers are numbers: a thread may have been told to take them for zero, and then scores that
// differ would tie, in some threads of a pool and not in others.
#pragma once

#include <cstdint>

namespace pruneops::cpu {

// Lets a thread compute with denormals for as long as this lives.
class KeepDenormals {
 public:
  KeepDenormals() : given_(control()) { set(given_ & ~kFlushes); }
  ~KeepDenormals() { set(given_); }
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;

 private:
#if defined(__x86_64__)
  using Control = uint32_t;
  static constexpr Control kFlushes = 1u << 15 | 1u << 6;  // of results, and of operands
  static Control control() { return __builtin_ia32_stmxcsr(); }
  static void write(Control control) { __builtin_ia32_ldmxcsr(control); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kFlushes = 1u << 24 | 1u << 19;  // of float and double, and of half
  static Control control() {
    Control now;
    asm volatile("mrs %0, fpcr" : "=r"(now));
    return now;
  }
  static void write(Control control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = uint32_t;
  static constexpr Control kFlushes = 0;
  static Control control() { return 0; }
  static void write(Control) {}
#endif

  // What is computed before and after stays there: its operands come from memory.
  void set(Control wanted) {
    if ((given_ & kFlushes) == 0) return;
    asm volatile("" : : : "memory");
    write(wanted);
    asm volatile("" : : : "memory");
  }

  const Control given_;
};

}  // namespace pruneops::cpu
