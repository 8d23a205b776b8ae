"""Argument checks of the functional API: each raises before anything is written and names what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ._library import block_grid, packed_size, resolve_block

SCORE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

#: Metric -> (reads the weight, reads the gradient).
SCORE_METRICS = {
    "magnitude": (True, False),
    "gradient": (False, True),
    "snip": (True, True),
    "taylor": (True, True),
    "fisher": (False, True),
}
BLOCK_METRICS = {**SCORE_METRICS, **dict.fromkeys(("mask_gradient", "mask_fisher", "mask_sum"), (True, True))}
SELECT_METRICS = {**SCORE_METRICS, "wanda": (True, False)}


class Checker:
    """The checks of one call; every message starts with the operator's name."""

    def __init__(self, op: str) -> None:
        self.op = op

    def fail(self, message: str, error: type[Exception] = ValueError) -> NoReturn:
        raise error(f"{self.op}: {message}")

    def tensor(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            self.fail(f"{name} must be a tensor, got {type(value).__name__}", TypeError)
        if value.layout != torch.strided:
            self.fail(f"{name} must be a dense tensor, got layout {value.layout}", TypeError)
        return value

    def tensors(self, name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """One tensor or a sequence of tensors as a list."""
        if isinstance(value, Tensor):
            return [self.tensor(name, value)]
        if not isinstance(value, Sequence):
            self.fail(f"{name} must be a tensor or a sequence of tensors, got {type(value).__name__}", TypeError)
        return [self.tensor(f"{name}[{i}]", x) for i, x in enumerate(value)]

    def choice(self, name: str, value: Any, allowed: Sequence[str]) -> None:
        if value not in allowed:
            self.fail(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

    def number(self, name: str, value: Any) -> float:
        if not isinstance(value, numbers.Real):
            self.fail(f"{name} must be a number, got {type(value).__name__}", TypeError)
        return float(value)

    def integer(self, name: str, value: Any, low: int, high: int | None = None) -> Any:
        # A SymInt is what sizes become under torch.compile; it is compared, never converted.
        if isinstance(value, bool) or not isinstance(value, (int, np.integer, torch.SymInt)):
            self.fail(f"{name} must be an integer, got {type(value).__name__}", TypeError)
        if value < low or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            self.fail(f"{name} must be {span}, got {value}")
        return value

    def same_length(self, name: str, values: Sequence[object], other: str, others: Sequence[object]) -> None:
        if len(values) != len(others):
            self.fail(f"{name} has {len(values)} tensors, {other} has {len(others)}")

    def same_shape(self, name: str, value: Tensor, other: str, shape: Sequence[int]) -> None:
        if value.shape != torch.Size(shape):
            self.fail(f"{name} has shape {list(value.shape)}, {other} has shape {list(shape)}")

    def shape(self, name: str, value: Tensor, shape: Sequence[int]) -> None:
        if value.shape != torch.Size(shape):
            self.fail(f"{name} has shape {list(value.shape)}, expected {list(shape)}")

    def floating(self, name: str, value: Tensor) -> None:
        if value.dtype not in SCORE_DTYPES:
            self.fail(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}", TypeError)

    def dtype(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        if value.dtype != dtype:
            self.fail(f"{name} must be {dtype}, got {value.dtype}", TypeError)

    def written(self, name: str, value: Tensor) -> None:
        if value.numel() > 0 and any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True)):
            self.fail(f"{name} is an expanded view; entries that share memory cannot be written")

    def same_device(self, named: Sequence[tuple[str, Tensor]]) -> None:
        for name, value in named[1:]:
            if value.device != named[0][1].device:
                self.fail(f"{name} is on {value.device}, {named[0][0]} is on {named[0][1].device}")

    def sparsity_to_keep(self, keep: int | None, sparsity: float | None, total: int) -> int:
        """Entries to keep of ``total``: exactly one of ``keep`` and ``sparsity`` is given."""
        if (keep is None) == (sparsity is None):
            self.fail("give exactly one of keep and sparsity")
        if keep is not None:
            return self.integer("keep", keep, 0, total)
        p = self.number("sparsity", sparsity)
        if not 0.0 <= p <= 1.0:
            self.fail(f"sparsity must be between 0 and 1, got {sparsity}")
        return total - int(p * total)

    def block(self, block: Any) -> tuple[int, int]:
        if not isinstance(block, Sequence) or len(block) != 2:
            self.fail(f"block must be two integers (N, M), got {block!r}", TypeError)
        for i, size in enumerate(block):
            self.integer(f"block[{i}]", size, -1)
            if size == 0:
                self.fail(f"block[{i}] must be positive, or -1 for the whole extent, got 0")
        return (block[0], block[1])

    def divides(self, name: str, shape: Sequence[int], block: tuple[int, int]) -> tuple[int, int]:
        """The grid of blocks of a weight of ``shape``; an error where ``block`` does not divide it."""
        if len(shape) < 2:
            self.fail(f"{name} has shape {list(shape)}; blocks need at least 2 dimensions")
        n, m = resolve_block(block, shape)
        rows, cols = block_grid(block, shape)
        if rows * n != shape[0] or rows * n * cols * m != torch.Size(shape).numel():
            self.fail(f"{name} has shape {list(shape)}, which the block ({block[0]}, {block[1]}) does not divide")
        return (rows, cols)

    def optional_scalar(self, name: str, value: Any) -> None:
        if value is None:
            return
        scalar = self.tensor(name, value)
        self.dtype(name, scalar, torch.float32)
        if scalar.numel() != 1:
            self.fail(f"{name} must have one element, got shape {list(scalar.shape)}")

    def reads(
        self, metric: str, allowed: dict[str, tuple[bool, bool]], weights: Any, grads: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that ``metric`` reads, as lists; a list that it does not read is empty."""
        self.choice("metric", metric, list(allowed))
        lists = []
        for name, value, needed in zip(("weights", "grads"), (weights, grads), allowed[metric], strict=True):
            if needed and value is None:
                self.fail(f"metric {metric!r} needs {name}, got None")
            lists.append(self.tensors(name, value) if needed else [])
        return lists[0], lists[1]

    def mask_for(self, name: str, mask: Tensor, other: str, tensor: Tensor) -> None:
        """A bool mask of the tensor's shape, or the packed one of its number of entries."""
        if mask.dtype == torch.uint8:
            self.shape(name, mask, [packed_size(tensor.numel())])
            return
        self.dtype(name, mask, torch.bool)
        self.same_shape(name, mask, other, tensor.shape)
