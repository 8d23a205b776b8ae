"""The most important slabs of a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import Checker
from .common import OPS


def prune_by_importance(
    tensor: Tensor | np.ndarray,
    importance: Tensor | np.ndarray,
    num_instances: int,
    stride: int,
    *,
    dim: int = 0,
    order: str = "importance",
) -> Tensor | np.ndarray:
    """Keep the most important slabs of a tensor, such as the heads or neurons of a layer.

    A slab is ``stride`` consecutive rows along ``dim``; slab i has importance ``importance[i]``.

    Args:
        tensor: any dtype, with ``len(importance) * stride`` entries along ``dim``; a NumPy array gives a NumPy array.
        importance: floating, shape (instances,); ties keep the lower index first. On CUDA each is held against all
            others, which suits heads and neurons, not millions of entries.
        num_instances: slabs to keep, 0 to ``len(importance)``.
        stride: rows of a slab, at least 1.
        dim: dimension of the slabs.
        order: ``importance`` for descending importance, ``original`` for the order in the tensor.

    Returns:
        A new tensor with ``num_instances * stride`` entries along ``dim``.

    Raises:
        ValueError: sizes that do not fit, or a value out of range.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> prune_by_importance(torch.tensor([10, 11, 20, 21]), torch.tensor([0.1, 0.7]), 1, 2)
        tensor([20, 21])
    """
    check = Checker("prune_by_importance")
    as_numpy = isinstance(tensor, np.ndarray)
    values = check.tensor("tensor", _from_numpy(tensor))
    ranks = check.tensor("importance", _from_numpy(importance))
    check.floating("importance", ranks)
    if ranks.dim() != 1:
        check.fail(f"importance must have 1 dimension, got shape {list(ranks.shape)}")
    if values.dim() == 0:
        check.fail("tensor must have at least 1 dimension, got a 0-d tensor")
    check.integer("dim", dim, -values.dim(), values.dim() - 1)
    check.integer("stride", stride, 1)
    check.integer("num_instances", num_instances, 0, ranks.numel())
    check.choice("order", order, ("importance", "original"))
    if values.shape[dim] != ranks.numel() * stride:
        check.fail(
            f"tensor has {values.shape[dim]} entries along dim {dim}, "
            f"expected {ranks.numel()} instances * stride {stride} = {ranks.numel() * stride}"
        )
    check.same_device(tensor=values, importance=ranks)
    kept = OPS.prune_by_importance(values, ranks, num_instances, stride, dim % values.dim(), order)
    return kept.numpy() if as_numpy else kept


def _from_numpy(value: Any) -> Any:
    """A NumPy array as a tensor, of the same memory where it is contiguous; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    array = np.asarray(value, order="C")  # ascontiguousarray would give a 0-d one a dimension
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))


class _Unlocked:
    """A read-only array that says it can be written, for torch to take it without a warning or a copy.

    A mapped file may be larger than the memory, and of the tensor only the kept slabs are read.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # the owner of the memory
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
