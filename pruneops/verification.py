"""What a checkpoint is: whether its zeros have the sparsity and the pattern that are claimed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from .checkpoint import Checkpoint
from .layers import Patterns
from .offline import left_alone
from .patterns import Pattern
from .planning import Plan, make_plan
from .selection import check_limits


@dataclass(frozen=True)
class TensorCheck:
    """The zeros of one tensor.

    Attributes:
        name: the tensor.
        shape: out x in.
        units: its entries, or blocks where the pattern has blocks.
        pruned: units that are zero altogether.
        asked: how many must be; None where only the total of all tensors counts.
        broken: what does not fit: N:M groups with more than N entries that are not zero, or rows with too few pruned
            units (scope ``row``).
    """

    name: str
    shape: tuple[int, ...]
    units: int
    pruned: int
    asked: int | None
    broken: int

    @property
    def sparsity(self) -> float:
        """Share of the units that are zero."""
        return self.pruned / self.units if self.units else 0.0


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`.

    Attributes:
        tensors: one entry per tensor that was looked at.
        skipped: every other tensor that may hold weights -> why it was not.
        unchecked: other files of the directory, relative to it, that may hold weights.
        sparsity: the sparsity claimed.
        pattern, scope: what was claimed.
        problems: what does not hold, one line each; empty where the claim is true.
    """

    tensors: tuple[TensorCheck, ...]
    skipped: dict[str, str]
    unchecked: tuple[str, ...]
    sparsity: float
    pattern: str
    scope: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the claim is true."""
        return not self.problems

    @property
    def units(self) -> int:
        """Units of all tensors."""
        return sum(x.units for x in self.tensors)

    @property
    def pruned(self) -> int:
        """Units of all tensors that are zero altogether."""
        return sum(x.pruned for x in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "sparsity": self.sparsity,
            "pattern": self.pattern,
            "scope": self.scope,
            "units": self.units,
            "pruned": self.pruned,
            "skipped": self.skipped,
            "unchecked": list(self.unchecked),
            "tensors": [vars(x) | {"shape": list(x.shape), "sparsity": x.sparsity} for x in self.tensors],
        }


def verify(
    checkpoint: Checkpoint | str | Path,
    sparsity: float | None = None,
    pattern: str | Pattern = "1x1",
    *,
    scope: str = "global",
    include: Patterns = None,
    exclude: Patterns = None,
    exact: bool = False,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> Verification:
    """Prove what a checkpoint is.

    Of n units at least ``int(sparsity * n)`` must be zero: of all tensors together, of each, or of each row, by
    ``scope``. With blocks only blocks that are zero altogether count. With N:M each group of M consecutive inputs
    has at most N entries that are not zero. Stacked experts are never looked at, as they are never pruned.

    Args:
        checkpoint: a ``.safetensors`` file or a model directory.
        sparsity: the claim, 0 <= sparsity < 1; None for an N:M pattern, which gives it.
        pattern: see :func:`pruneops.parse_pattern`.
        scope: ``global``, ``local`` or ``row``.
        include, exclude: which tensors, by the rules and defaults of ``pruneops prune``.
        exact: not one more may be zero either. (A weight that is kept can be zero by itself.)
        on_tensor: called with the name of each tensor before it is read.

    Returns:
        The :class:`Verification`; its ``ok`` says whether the claim is true.

    Raises:
        ValueError: an argument is out of range, or the checkpoint cannot be read.

    Example:
        >>> verify("sparse.safetensors", 0.5, "4x1").ok  # doctest: +SKIP
        True
    """
    source = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    plan = make_plan(source, pattern, scope=scope, include=include, exclude=exclude)
    shapes = {name: source.weight_shape(name) for name in plan.names}
    share = check_limits(shapes, sparsity=sparsity, pattern=plan.pattern, scope=scope)
    checks = []
    for name in plan.names:
        on_tensor(name)
        checks.append(_check_tensor(plan, name, share))
    return Verification(
        tensors=tuple(checks),
        skipped=left_alone(plan),
        unchecked=tuple(source.other_weights()),
        sparsity=share,
        pattern=plan.pattern.spec,
        scope=scope,
        problems=tuple(_problems(plan, checks, share, exact)),
    )


def _check_tensor(plan: Plan, name: str, share: float) -> TensorCheck:
    weight = plan.checkpoint.oriented(name, plan.checkpoint.tensor(name))
    zero = _zero_units(weight, plan.pattern)
    asked, broken = None, 0
    if nm := plan.pattern.nm:
        groups = (zero.movedim(1, -1) if zero.dim() > 2 else zero).unflatten(-1, (-1, nm[1]))
        broken = int((groups.sum(-1) < nm[1] - nm[0]).sum())
    elif plan.scope == "row":
        rows = zero.flatten(1)
        asked = int(share * rows.shape[1]) * rows.shape[0]
        broken = int((rows.sum(1) < int(share * rows.shape[1])).sum())
    elif plan.scope == "local":
        asked = int(share * zero.numel())
    return TensorCheck(name, tuple(weight.shape), zero.numel(), int(zero.sum()), asked, broken)


def _zero_units(weight: Tensor, pattern: Pattern) -> Tensor:
    """Which entries, or blocks altogether, are zero."""
    if pattern.block is None:
        return weight == 0
    highest = torch.empty(pattern.grid(weight.shape), dtype=torch.promote_types(weight.dtype, torch.float32))
    ops.update_block_scores_(highest, weight, None, block=pattern.block, metric="magnitude", reduce="max")
    return highest == 0


def _problems(plan: Plan, checks: list[TensorCheck], share: float, exact: bool) -> list[str]:
    found = []
    unit = "blocks" if plan.pattern.block else "weights"
    for x in checks:
        if x.broken and plan.pattern.nm:
            found.append(f"{x.name}: {x.broken:,} groups break the pattern {plan.pattern.spec}")
        elif x.broken:
            found.append(f"{x.name}: {x.broken:,} rows have too few {unit} that are zero")
        elif x.asked is not None and (x.pruned < x.asked or (exact and x.pruned > x.asked)):
            found.append(f"{x.name}: {x.pruned:,} of {x.units:,} {unit} are zero, not {x.asked:,}")
    units, pruned = sum(x.units for x in checks), sum(x.pruned for x in checks)
    asked = int(share * units)
    if plan.selects_jointly and pruned < asked:
        found.append(f"{pruned:,} of {units:,} {unit} are zero, not {asked:,}")
    if exact and (plan.selects_jointly or plan.pattern.nm) and pruned > asked:
        found.append(f"{pruned:,} of {units:,} {unit} are zero, {pruned - asked:,} more than {asked:,}")
    return found
