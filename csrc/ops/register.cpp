// Adds the compiled kernels to the operators that pruneops/_library.py defines, and says what was built.
#include "../cpu/kernels.h"
#include "ops.h"

#include <torch/headeronly/version.h>

namespace pruneops::ops {

// The operators look at the device themselves, so one function serves both keys.
static void add_all(torch::stable::detail::StableLibrary& library) {
  library.impl("update_scores_", TORCH_BOX(&update_scores_));
  library.impl("update_block_scores_", TORCH_BOX(&update_block_scores_));
  library.impl("update_topk_mask_", TORCH_BOX(&update_topk_mask_));
  library.impl("block_reduce", TORCH_BOX(&block_reduce));
  library.impl("block_reduce.out", TORCH_BOX(&block_reduce_out));
  library.impl("kth_value", TORCH_BOX(&kth_value));
  library.impl("count_digits", TORCH_BOX(&count_digits));
  library.impl("topk_mask", TORCH_BOX(&topk_mask));
  library.impl("row_topk_mask", TORCH_BOX(&row_topk_mask));
  library.impl("nm_mask", TORCH_BOX(&nm_mask));
  library.impl("apply_masks_", TORCH_BOX(&apply_masks_));
  library.impl("empty_masks", TORCH_BOX(&empty_masks));
  library.impl("expand_block_mask", TORCH_BOX(&expand_block_mask));
  library.impl("pack_mask", TORCH_BOX(&pack_mask));
  library.impl("unpack_mask", TORCH_BOX(&unpack_mask));
  library.impl("prune_by_importance", TORCH_BOX(&prune_by_importance));
}

}  // namespace pruneops::ops

STABLE_TORCH_LIBRARY_IMPL(pruneops, CPU, library) {
  pruneops::ops::add_all(library);
}

#if defined(PRUNEOPS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(pruneops, CUDA, library) {
  pruneops::ops::add_all(library);
}
#endif

#if !defined(PRUNEOPS_CUDA_ARCHS)
#define PRUNEOPS_CUDA_ARCHS  // none
#endif
#define PRUNEOPS_TEXT_OF(...) #__VA_ARGS__
#define PRUNEOPS_TEXT(...) PRUNEOPS_TEXT_OF(__VA_ARGS__)

// JSON, read by pruneops/_native.py.
extern "C" __attribute__((visibility("default"))) const char* pruneops_build_info() {
  static const std::string info = std::string("{\"cuda_archs\": \"" PRUNEOPS_TEXT(PRUNEOPS_CUDA_ARCHS)) +
                                  "\", \"built_with_torch\": \"" TORCH_VERSION "\", \"cpu_isa\": \"" +
                                  pruneops::cpu::kernels().isa + "\"}";
  return info.c_str();
}
