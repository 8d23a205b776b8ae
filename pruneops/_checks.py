"""Argument checks of the functional API: each raises before anything is written and names what came."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._library import matrix_and_block, packed_size

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

#: A SymInt is what sizes become under torch.compile; it is compared, never converted.
_INTEGERS = (int, np.integer, torch.SymInt)
#: The abstract class last: it takes as long as all other checks of a call.
_REALS = (float, int, numbers.Real)
#: The operators take integers of 64 bits.
_INT64_MAX = 2**63 - 1

Given = Tensor | list[Tensor] | Mapping[str, Tensor] | None


def _at(name: str, key: int | str | None) -> str:
    return name if key is None else f"{name}[{key!r}]"


def _tensors_of(given: Given) -> Iterable[Tensor]:
    if isinstance(given, list):
        return given
    if given is None:
        return ()
    return (given,) if isinstance(given, Tensor) else given.values()


def _keys_of(given: Given) -> Iterable[Any]:
    if isinstance(given, Tensor):
        return (None,)
    return range(len(given)) if isinstance(given, list) else given or ()


def _not_dense(value: Tensor) -> str | None:
    """What a tensor is that no operator can read entry by entry; None for one that they can."""
    if value.layout != torch.strided:
        return f"layout {value.layout}"
    # These two say that they are strided, but one has no strides, and torch crashes on a view of the other.
    if value.is_nested:
        return "a nested one"
    return "a quantized one" if value.is_quantized else None


def listed(names: Sequence[object], most: int = 1) -> str:
    """The first names for a message, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


class Checker:
    """The checks of one call; every message starts with the operator's name.

    A tensor of a list or a mapping has the name of these and its ``key``: names are put together in messages alone,
    since a call may have hundreds of tensors.

    One that is not ``thorough`` looks at no tensor: the compiled operator does, and one that is words its refusal (see
    ``ops.common.checked``).
    """

    def __init__(self, op: str, thorough: bool = True) -> None:
        self.op = op
        self.thorough = thorough

    def fail(self, message: str, error: type[Exception] = ValueError) -> NoReturn:
        raise error(f"{self.op}: {message}")

    def tensor(self, name: str, value: Any, key: int | str | None = None) -> Tensor:
        if not isinstance(value, Tensor):
            self.fail(f"{_at(name, key)} must be a tensor, got {type(value).__name__}", TypeError)
        other = _not_dense(value)
        if other is not None:
            self.fail(f"{_at(name, key)} must be a dense tensor, got {other}", TypeError)
        return value

    def tensors(self, name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """One tensor or a sequence of tensors as a list."""
        if isinstance(value, Tensor):
            return [self.tensor(name, value) if self.thorough else value]
        if not isinstance(value, Sequence):
            self.fail(f"{name} must be a tensor or a sequence of tensors, got {type(value).__name__}", TypeError)
        if not self.thorough:
            return list(value)
        return [self.tensor(name, x, i) for i, x in enumerate(value)]

    def choice(self, name: str, value: Any, allowed: Sequence[str]) -> None:
        if not isinstance(value, str):
            self.fail(f"{name} must be one of {', '.join(allowed)}, got {type(value).__name__}", TypeError)
        if value not in allowed:
            self.fail(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

    def flag(self, name: str, value: Any) -> None:
        if not isinstance(value, (bool, np.bool_)):
            self.fail(f"{name} must be True or False, got {type(value).__name__}", TypeError)

    def number(self, name: str, value: Any) -> float:
        if not isinstance(value, _REALS):
            self.fail(f"{name} must be a number, got {type(value).__name__}", TypeError)
        try:
            return float(value)
        except OverflowError:
            self.fail(f"{name} is too large for a float")

    def integer(self, name: str, value: Any, low: int, high: int | None = None, key: int | None = None) -> Any:
        if isinstance(value, bool) or not isinstance(value, _INTEGERS):
            self.fail(f"{_at(name, key)} must be an integer, got {type(value).__name__}", TypeError)
        most = _INT64_MAX if high is None else high
        if value < low or value > most:
            bound = f"at least {low}" if value < low else f"at most {most}"
            span = bound if high is None else f"between {low} and {high}"
            self.fail(f"{_at(name, key)} must be {span}, got {value}")
        return value

    def sizes(self, name: str, value: Any) -> tuple[int, ...]:
        """A shape that is an argument of its own."""
        if not isinstance(value, Iterable):
            self.fail(f"{name} must be a sequence of integers, got {type(value).__name__}", TypeError)
        return tuple(self.integer(name, size, 0, key=i) for i, size in enumerate(value))

    def same_length(self, name: str, values: Sequence[object], other: str, others: Sequence[object]) -> None:
        if len(values) != len(others):
            self.fail(f"{name} has {len(values)} tensors, {other} has {len(others)}")

    def shape(
        self, name: str, value: Tensor, shape: tuple[int, ...], key: int | str | None = None, of: str | None = None
    ) -> None:
        """``shape`` is that of the tensor named ``of``, of the same key; or what the operator needs."""
        if value.shape != shape:
            needed = "expected" if of is None else f"{_at(of, key)} has shape"
            self.fail(f"{_at(name, key)} has shape {list(value.shape)}, {needed} {list(shape)}")

    def floating(self, name: str, value: Tensor, key: int | str | None = None) -> None:
        if value.dtype not in SCORE_DTYPES:
            self.fail(f"{_at(name, key)} must be float32, bfloat16, float16 or float64, got {value.dtype}", TypeError)

    def dtype(self, name: str, value: Tensor, dtype: torch.dtype, key: int | str | None = None) -> None:
        if value.dtype != dtype:
            self.fail(f"{_at(name, key)} must be {dtype}, got {value.dtype}", TypeError)

    def outside_graphs(self, name: str, values: Sequence[Tensor]) -> None:
        """Tensors to write that no graph of autograd has made, which would go on with what they were before; parameters
        and views of them may be written to.
        """
        if is_compiling() or not torch.is_grad_enabled():
            return
        for i, value in enumerate(values):
            if value.requires_grad and not value.is_leaf and (value._base is None or not value._base.is_leaf):
                at = _at(name, None if len(values) == 1 else i)
                self.fail(f"{at} is the result of a computation that has a gradient: detach it, or use no_grad()")

    def written(self, name: str, value: Tensor, key: int | str | None = None) -> None:
        strides = value.stride()
        expanded = 0 in strides and value.numel() > 0
        if expanded and any(n > 1 and s == 0 for n, s in zip(value.shape, strides, strict=True)):
            self.fail(f"{_at(name, key)} is an expanded view; entries that share memory cannot be written")

    def same_device(self, **given: Given) -> None:
        if not self.thorough:
            return
        first = None
        for values in given.values():
            for value in _tensors_of(values):
                device = value.device
                if first is None:
                    first = device
                elif device != first:
                    self._fail_device(given, first)

    def _fail_device(self, given: dict[str, Given], first: torch.device) -> NoReturn:
        named = [
            (_at(name, key), value.device)
            for name, values in given.items()
            for key, value in zip(_keys_of(values), _tensors_of(values), strict=True)
        ]
        name, device = next(entry for entry in named if entry[1] != first)
        self.fail(f"{name} is on {device}, {named[0][0]} is on {first}")

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
            self.integer("block", size, -1, key=i)
            if size == 0:
                self.fail(f"block[{i}] must be positive, or -1 for the whole extent, got 0")
        return (block[0], block[1])

    def divides(
        self, name: str, shape: Sequence[int], block: tuple[int, int], key: int | None = None, verb: str = "has shape"
    ) -> tuple[int, int]:
        """The grid of blocks of a weight of ``shape``; an error where ``block`` does not divide it.

        ``name`` is that of the tensor whose shape it is; ``verb`` is "is" where it is that of the shape itself.
        """
        if len(shape) < 2:
            self.fail(f"{_at(name, key)} {verb} {list(shape)}; blocks need at least 2 dimensions")
        rows, cols, n, m = matrix_and_block(shape, block)
        if rows % n or (rows and cols % m):
            what = f"{_at(name, key)} {verb} {list(shape)}"
            self.fail(f"{what}, which the block ({block[0]}, {block[1]}) does not divide")
        return (rows // n, cols // m)

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

    def mask_shape(self, name: str, mask: Tensor, other: str, tensor: Tensor, key: int | None = None) -> None:
        """A mask of the shape of the tensor named ``other``, or a packed one of its number of entries."""
        if mask.dtype == torch.uint8:
            self.shape(name, mask, (packed_size(tensor.numel()),), key)
        else:
            self.shape(name, mask, tensor.shape, key, other)

    def mask_for(self, name: str, mask: Tensor, other: str, tensor: Tensor, key: int | None = None) -> None:
        """A bool mask or a packed one, of the shape that the tensor named ``other`` asks for."""
        if mask.dtype != torch.uint8:
            self.dtype(name, mask, torch.bool, key)
        self.mask_shape(name, mask, other, tensor, key)
