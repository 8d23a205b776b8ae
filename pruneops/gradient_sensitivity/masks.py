"""Elementwise masks from importance, per matrix or per channel, through tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..patterns import Pattern


def is_masked(shape: torch.Size, stacked: bool) -> bool:
    """Whether a weight of that shape gets a mask: all do but scalars and vectors.

    A class token, which has shape (1, 1, H), is a vector too; it is no stack of matrices.
    """
    return len(shape) > 1 and not (stacked and shape[:2] == (1, 1))


def matrix_shape(shape: torch.Size, stacked: bool) -> tuple[int, int]:
    """Rows and columns of the matrix that tiles lie in: (O, everything else), or those of one matrix of a stack."""
    return (shape[1], shape[2]) if stacked else (shape[0], shape[1:].numel())


def tile_mask(
    importance: Tensor, sparsity: float, pattern: Pattern, method: str, ties: str, stacked: bool = False
) -> Tensor:
    """The mask that keeps the most important tiles of a weight.

    A tile counts with the sum of its entries. With ``ties="threshold"`` everything up to and including the value at
    sorted index ``int(n * sparsity)`` goes, so at least one tile always does; this is Neural Compressor's rule. With
    ``exact`` exactly ``int(n * sparsity)`` of the n tiles go.

    Args:
        importance: not negative, shape (R, C); or (O, I, ...) of a convolution, which is seen as (O, I * ...); or
            (E, R, C) of E stacked matrices.
        sparsity: at least 0 and below 1.
        pattern: tiles, such as ``4x1``.
        method: ``per_tensor``, or ``per_channel`` for one threshold per row of tiles.
        ties: ``threshold`` or ``exact``.
        stacked: ``importance`` is that of stacked matrices, each of which loses ``sparsity`` of its own tiles.

    Returns:
        bool mask of the shape of ``importance``.

    Example:
        >>> pattern = pruneops.parse_pattern("1x1")
        >>> tile_mask(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), 0.25, pattern, "per_tensor", "threshold")
        tensor([[ True, False, False,  True]])
    """
    if stacked:
        mask = torch.empty_like(importance, dtype=torch.bool)
        for kept, matrix in zip(mask, importance, strict=True):
            kept.copy_(tile_mask(matrix, sparsity, pattern, method, ties))
        return mask
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
