#include "kernels.h"

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

static const Kernels& best() {
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) return avx512::kKernels;
  return __builtin_cpu_supports("avx2") ? avx2::kKernels : baseline::kKernels;
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
