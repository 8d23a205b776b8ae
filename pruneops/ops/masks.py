"""Masks: applied, expanded from blocks, packed and unpacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from .._checks import Checker
from .._library import packed_size
from .common import OPS, TensorOrList, Tensors, checked, mark_written


def empty_masks(scores: TensorOrList, *, packed: bool = False) -> TensorOrList:
    """Masks for scores, to be written by a selection with ``out=``.

    A selection that is repeated writes into masks that are there about a third faster than into new ones. Large masks
    on the CPU ask Linux for huge pages, which makes their first use faster than that of ``torch.empty``.

    Args:
        scores: tensors of any dtype and shape.
        packed: masks of one bit per entry, as :func:`pack_mask` makes them.

    Returns:
        For each of the scores an uninitialised mask on its device: bool of its shape, or uint8 of shape
        (ceil(n / 8),).

    Raises:
        TypeError: ``scores`` are not dense tensors, or ``packed`` is not a bool.

    Example:
        >>> score = torch.tensor([1.0, 3.0, 2.0])
        >>> ops.topk_mask(score, keep=1, out=empty_masks(score))
        tensor([False,  True, False])
    """
    check = Checker("empty_masks")
    check.flag("packed", packed)
    masks = OPS.empty_masks(check.tensors("scores", scores), packed)
    return masks[0] if isinstance(scores, Tensor) else masks


def expand_block_mask(mask: Tensor, block: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Expand a mask of (N, M) blocks to the shape of the weight.

    Args:
        mask: bool, shape (R/N, C/M).
        block: (N, M); -1 is the whole extent.
        shape: the weight's shape, (R, C) or (O, I, k...) seen as (O, k... * I).

    Returns:
        bool mask of ``shape``, contiguous.

    Raises:
        ValueError: a size of ``shape`` is negative, the block does not divide it, or the mask has not the shape of its
            grid.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> expand_block_mask(torch.tensor([[True, False]]), (2, 1), (2, 2))
        tensor([[ True, False],
                [ True, False]])
    """
    check = Checker("expand_block_mask")
    check.dtype("mask", check.tensor("mask", mask), torch.bool)
    size = check.block(block)
    sizes = check.sizes("shape", shape)
    check.shape("mask", mask, check.divides("shape", sizes, size, verb="is"))
    return OPS.expand_block_mask(mask, size, sizes)


def apply_masks_(tensors: TensorOrList, masks: Tensors, *, block: Sequence[int] | None = None) -> TensorOrList:
    """Zero the pruned entries in place: they become +0.0 whatever was there, NaN and Inf too.

    Args:
        tensors: any dtype and shape; of float8_e8m0fnu, which has no zero, the lowest value takes its place.
        masks: for each tensor a bool mask of its shape, or the uint8 result of :func:`pack_mask`, or with
            ``block`` a bool mask of shape (R/N, C/M). They are never expanded in memory.
        block: (N, M) where the masks are block masks; -1 is the whole extent.

    Returns:
        ``tensors``.

    Raises:
        ValueError: lengths, shapes or devices differ, or the block does not divide a tensor.
        TypeError: a mask is neither bool nor packed, or a tensor is not dense.

    Example:
        >>> apply_masks_(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    return checked("apply_masks_", _apply_masks, tensors, masks, block)


def _apply_masks(
    check: Checker, tensors: TensorOrList, masks: Tensors, block: Sequence[int] | None
) -> Callable[[], TensorOrList]:
    tensor_list, mask_list = check.tensors("tensors", tensors), check.tensors("masks", masks)
    check.outside_graphs("tensors", tensor_list)
    check.same_length("masks", mask_list, "tensors", tensor_list)
    size = None if block is None else check.block(block)
    if check.thorough:
        _check_masks(check, tensor_list, mask_list, size)

    def call() -> TensorOrList:
        if tensor_list:
            OPS.apply_masks_(tensor_list, mask_list, size)
            mark_written(tensor_list)
        return tensors

    return call


def _check_masks(check: Checker, tensors: list[Tensor], masks: list[Tensor], block: tuple[int, int] | None) -> None:
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        check.written("tensors", tensor, i)
        if block is None:
            check.mask_for("masks", mask, "tensors", tensor, i)
        else:
            check.dtype("masks", mask, torch.bool, i)
            check.shape("masks", mask, check.divides("tensors", tensor.shape, block, i), i)
    check.same_device(tensors=tensors, masks=masks)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask to 1 bit per entry, as ``numpy.packbits(mask, bitorder="little")``.

    Args:
        mask: bool, any shape.

    Returns:
        uint8 of shape (ceil(n / 8),); the unused bits of the last byte are 0.

    Raises:
        TypeError: the mask is not a bool tensor.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    check = Checker("pack_mask")
    check.dtype("mask", check.tensor("mask", mask), torch.bool)
    return OPS.pack_mask(mask)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_mask`.

    Args:
        packed: uint8 of shape (ceil(n / 8),).
        shape: shape of the mask, with n entries.

    Returns:
        bool mask of ``shape``.

    Raises:
        ValueError: a size of ``shape`` is negative, or ``packed`` has not the length that it needs.
        TypeError: ``packed`` is not a uint8 tensor, or ``shape`` is not made of integers.

    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    check = Checker("unpack_mask")
    check.dtype("packed", check.tensor("packed", packed), torch.uint8)
    sizes = check.sizes("shape", shape)
    check.shape("packed", packed, (packed_size(prod(sizes)),))
    return OPS.unpack_mask(packed, sizes)
