"""The functional API: fused scoring, exact selection and masks.

Every function takes one tensor, or a sequence of tensors where its argument has a plural name; a sequence is
one call into the library, not a loop. All tensors of a call are on one device, and none that is written shares memory
with another: what is written twice is undefined, as in ``torch._foreach_*``. Masks are ``torch.bool``, True = keep.

Order of scores: higher is kept; NaN ranks below -inf; -0.0 equals +0.0; among equals the earlier one (earlier
tensor in the list, then lower row-major index) is kept first. So every selection has exactly one right answer.
"""

from .gather import prune_by_importance
from .masks import apply_masks_, empty_masks, expand_block_mask, pack_mask, unpack_mask
from .select import count_digits, kth_value, nm_mask, row_topk_mask, topk_mask
from .update import block_reduce, update_block_scores_, update_scores_, update_topk_mask_

__all__ = [
    "apply_masks_",
    "block_reduce",
    "count_digits",
    "empty_masks",
    "expand_block_mask",
    "kth_value",
    "nm_mask",
    "pack_mask",
    "prune_by_importance",
    "row_topk_mask",
    "topk_mask",
    "unpack_mask",
    "update_block_scores_",
    "update_scores_",
    "update_topk_mask_",
]
