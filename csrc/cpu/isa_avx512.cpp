// The kernels for x86-64 with AVX-512.
#if defined(__x86_64__)
#include "kernels.h"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define PRUNEOPS_ISA avx512
#define PRUNEOPS_AVX512
#include "loops/all.h"
#endif
