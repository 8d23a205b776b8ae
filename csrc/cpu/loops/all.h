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

extern const Kernels kKernels;
const Kernels kKernels = {
    update_scores,     update_block_scores,
    update_topk_mask,  kth_value,
    topk_mask,         count_digits,
    row_topk_mask,     nm_mask,
    apply_masks,       apply_block_masks,
    expand_block_mask, pack_mask,
    unpack_mask,       PRUNEOPS_NAME(PRUNEOPS_ISA),
};

}  // namespace pruneops::cpu::PRUNEOPS_ISA
