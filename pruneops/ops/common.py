"""What the operators have in common: their types, and checks of inputs and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from .._checks import Checker
from .._library import CALLER, UncheckedCallError
from .._native import is_served

Tensors = Tensor | Sequence[Tensor]
TensorOrList = TypeVar("TensorOrList", Tensor, Sequence[Tensor])
OPS = torch.ops.pruneops


def checked(op: str, prepare: Callable[..., Callable[[], Any]], tensors: Any, *args: Any) -> Any:
    """What the call returns that ``prepare(check, tensors, *args)`` makes once it has checked its arguments.

    The compiled operators refuse whatever the checks here refuse, before anything is written, and look at a tensor in
    a fraction of the time. So where one of them serves the call, the checks of tensors are left to it; they are made
    here only to word what it has refused. An error that they do not explain is passed on as it came.
    """
    first = tensors[0] if isinstance(tensors, (list, tuple)) and tensors else tensors
    outside = CALLER.unchecked  # this call may be part of another one, of a tensor subclass
    refused: Exception | None = None
    try:
        if is_served(first):
            CALLER.unchecked = True
            try:
                return prepare(Checker(op, thorough=False), tensors, *args)()
            except Exception as error:
                refused = error
        CALLER.unchecked = False
        call = prepare(Checker(op), tensors, *args)
        if refused is None or isinstance(refused, UncheckedCallError):
            return call()
        raise refused
    finally:
        CALLER.unchecked = outside
        del refused  # its traceback holds this frame, and with it the tensors


def mark_written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd of an in-place write, so that a stale backward raises instead of using new values."""
    if is_compiling():
        return
    try:
        increment_version(tensors)
    except RuntimeError:  # tensors made in inference mode have no version
        increment_version([t for t in tensors if not t.is_inference()])


def check_inputs(
    check: Checker, name: str, values: list[Tensor], likes: list[Tensor], like_name: str = "scores"
) -> None:
    """``values`` are as many floating tensors as ``likes``, of their shapes."""
    check.same_length(name, values, like_name, likes)
    if not check.thorough:
        return
    for i, (value, like) in enumerate(zip(values, likes, strict=True)):
        check.floating(name, value, i)
        check.shape(name, value, like.shape, i, like_name)


def masks_for(check: Checker, scores: list[Tensor], packed: bool, out: Any) -> list[Tensor]:
    """The masks to write for these scores: given ones, checked, or new ones."""
    if out is None:
        return OPS.empty_masks(scores, packed)
    masks = check.tensors("out", out)
    check.same_length("out", masks, "scores", scores)
    dtype = torch.uint8 if packed else torch.bool
    if not check.thorough:
        # The compiled operators take either dtype, but the same for all.
        if masks and masks[0].dtype != dtype:
            check.dtype("out", masks[0], dtype, 0)
        return masks
    for i, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        check.dtype("out", mask, dtype, i)
        check.mask_shape("out", mask, "scores", score, i)
        check.written("out", mask, i)
    return masks


def written(masks: list[Tensor], scores: Any, out: Any) -> Any:
    """What a selection returns: ``out`` where given, else the new masks, one for one tensor."""
    if out is None:
        return masks[0] if isinstance(scores, Tensor) else masks
    mark_written(masks)
    return out
