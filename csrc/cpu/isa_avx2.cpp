// The kernels for x86-64 with AVX2.
#if defined(__x86_64__)
#include "kernels.h"
#pragma GCC target("avx2")
#define PRUNEOPS_ISA avx2
#define PRUNEOPS_AVX2
#include "loops/all.h"
#endif
