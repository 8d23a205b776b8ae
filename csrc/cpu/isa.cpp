#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace pruneops::cpu {

#if defined(PRUNEOPS_ONLY_ISA)
// The kernels take longest to compile: a build for tests has those that run on this machine.
namespace PRUNEOPS_ONLY_ISA {
extern const Kernels kKernels;
}

static const Kernels& best() {
  return PRUNEOPS_ONLY_ISA::kKernels;
}
#else
namespace baseline {
extern const Kernels kKernels;
}

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

// The variable by which torch, too, is told to do without what a machine has.
static bool is_limited_to(const char* capability) {
  const char* const limit = std::getenv("ATEN_CPU_CAPABILITY");
  return limit != nullptr && std::strcmp(limit, capability) == 0;
}

static const Kernels& best() {
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!__builtin_cpu_supports("avx2") || is_limited_to("default")) return baseline::kKernels;
  return has_avx512 && !is_limited_to("avx2") ? avx512::kKernels : avx2::kKernels;
}
#else
static const Kernels& best() {
  return baseline::kKernels;
}
#endif  // __x86_64__
#endif  // PRUNEOPS_ONLY_ISA

const Kernels& kernels() {
  static const Kernels& chosen = best();
  return chosen;
}

}  // namespace pruneops::cpu
