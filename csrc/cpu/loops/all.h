// All loops, compiled once for each instruction set. The including file has defined PRUNEOPS_ISA and set the
// compiler's target; everything here has internal linkage but the table, so that no code of one instruction
// set is linked into another. For the same reason nothing here uses a standard library template.
#include "block.h"
#include "chunk.h"
#include "masks.h"
#include "nm.h"
#include "tiles.h"
#include "topk.h"
#include "update.h"

namespace pruneops::cpu::PRUNEOPS_ISA {

#define PRUNEOPS_NAME_OF(isa) #isa
#define PRUNEOPS_NAME(isa) PRUNEOPS_NAME_OF(isa)

// A kernel that computes with denormals on the calling thread too.
template <auto kKernel>
struct Kept;
template <class... Arguments, void (*kKernel)(Arguments...)>
struct Kept<kKernel> {
  static void run(Arguments... arguments) {
    const KeepDenormals denormals;
    kKernel(arguments...);
  }
};

extern const Kernels kKernels;
const Kernels kKernels = {
    Kept<update_scores>::run,
    Kept<update_block_scores>::run,
    Kept<update_topk_mask>::run,
    Kept<kth_value>::run,
    Kept<topk_mask>::run,
    Kept<count_digits>::run,
    Kept<row_topk_mask>::run,
    Kept<nm_mask>::run,
    apply_masks,
    apply_block_masks,
    expand_block_mask,
    pack_mask,
    unpack_mask,
    PRUNEOPS_NAME(PRUNEOPS_ISA),
};

}  // namespace pruneops::cpu::PRUNEOPS_ISA
