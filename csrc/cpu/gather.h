// Slabs of a tensor by importance: copies of whole rows, the same for every instruction set.
#pragma once

#include "../math/tensors.h"
#include "pool.h"

namespace pruneops::cpu {

// Kept slabs by descending importance, or in their original order.
void gather_slabs(const SlabTensor& tensor, const void* importance, Dtype dtype, bool original_order,
                  const Pool& pool);

}  // namespace pruneops::cpu
