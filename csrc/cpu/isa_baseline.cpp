// The kernels for the instruction set that the compiler was asked for: SSE2 on x86-64, NEON on AArch64.
#include "kernels.h"

#define PRUNEOPS_ISA baseline
#include "loops/all.h"
