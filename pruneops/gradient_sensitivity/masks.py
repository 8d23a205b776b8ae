"""Elementwise masks from importance, per tensor or per channel, through tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..patterns import Pattern


def tile_mask(importance: Tensor, sparsity: float, pattern: Pattern, method: str, ties: str) -> Tensor:
    """The mask that keeps the most important tiles of a weight.

    A tile counts with the sum of its entries. With ``ties="threshold"`` everything up to and including the value at
    sorted index ``int(n * sparsity)`` goes, so at least one tile always does; this is Neural Compressor's rule. With
    ``exact`` exactly ``int(n * sparsity)`` of the n tiles go.

    Args:
        importance: not negative, shape (R, C) or (O, I, kh, kw), which is seen as (O, I * kh * kw).
        sparsity: at least 0 and below 1.
        pattern: tiles, such as ``4x1``.
        method: ``per_tensor``, or ``per_channel`` for one threshold per row of tiles.
        ties: ``threshold`` or ``exact``.

    Returns:
        bool mask of the shape of ``importance``.

    Example:
        >>> pattern = pruneops.parse_pattern("1x1")
        >>> tile_mask(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), 0.25, pattern, "per_tensor", "threshold")
        tensor([[ True, False, False,  True]])
    """
    matrix = importance.flatten(1)
    tiles = ops.block_reduce(matrix, pattern.block, "sum") if pattern.block else matrix
    if method == "per_channel":
        kept = _row_mask(tiles, sparsity, ties)
    elif ties == "exact":
        kept = ops.topk_mask(tiles, sparsity=sparsity)
    else:
        kept = ops.topk_mask(tiles, keep=_kept_above(tiles.numel(), sparsity), ties="threshold")
    mask = ops.expand_block_mask(kept, pattern.block, matrix.shape) if pattern.block else kept
    return mask.view(importance.shape)


def _kept_above(n: int, sparsity: float) -> int:
    """Entries after sorted index ``int(n * sparsity)``."""
    return max(n - int(n * sparsity) - 1, 0)


def _row_mask(tiles: Tensor, sparsity: float, ties: str) -> Tensor:
    if ties == "exact":
        return ops.row_topk_mask(tiles, sparsity=sparsity)
    above = ops.row_topk_mask(tiles, keep=_kept_above(tiles.shape[1], sparsity))
    threshold = torch.where(above | tiles.isnan(), -torch.inf, tiles).amax(1, keepdim=True)
    return tiles > threshold
