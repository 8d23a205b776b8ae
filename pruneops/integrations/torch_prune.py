"""``torch.nn.utils.prune`` on pruneops: its methods and ``global_unstructured``, exact and without copies.

Masks, hooks and ``prune.remove`` are torch's own; only the choice of what to prune is replaced. ``amount`` counts as
it does there: an integer is a number, a fraction is rounded to the nearest number, of what is not pruned yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .. import ops
from ..patterns import Pattern, parse_pattern
from ..selection import block_scores, select_masks

Parameters = Iterable[tuple[nn.Module, str]]


def global_unstructured(
    parameters: Parameters,
    pruning_method: Any = prune.L1Unstructured,
    importance_scores: Mapping[tuple[nn.Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """``torch.nn.utils.prune.global_unstructured`` without the flat copies of weights, masks and indices.

    Exactly the asked number is pruned; among equals the later ones (later parameter, higher row-major index).

    Args:
        parameters: (module, name) pairs, all on one device.
        pruning_method: torch's ``L1Unstructured`` or the one here; any other method is handed on to torch.
        importance_scores: (module, name) -> tensor of the parameter's shape whose magnitude is ranked in its place.
        kwargs: ``amount``.

    Raises:
        ValueError: ``amount`` is out of range, or a score has not its parameter's shape.
        TypeError: as in torch.

    Example:
        >>> net = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 1))
        >>> global_unstructured([(net[0], "weight"), (net[1], "weight")], prune.L1Unstructured, amount=0.2)
    """
    parameters = list(parameters)
    scores = {} if importance_scores is None else importance_scores
    if pruning_method not in (prune.L1Unstructured, L1Unstructured):
        prune.global_unstructured(parameters, pruning_method, importance_scores=importance_scores, **kwargs)
        return
    ranked, left = [], 0
    for module, name in parameters:
        score, old = scores.get((module, name), getattr(module, name)).detach(), getattr(module, f"{name}_mask", None)
        if score.shape != getattr(module, name).shape:
            shapes = f"{list(score.shape)}, the parameter {list(getattr(module, name).shape)}"
            raise ValueError(f"global_unstructured: importance_scores of {name!r} of {module} has shape {shapes}")
        ranked.append(_pruned_last(score, old))
        left += score.numel() if old is None else int(old.count_nonzero())
    count = _count(pruning_method(**kwargs).amount, left)
    masks = ops.topk_mask(ranked, keep=left - count, metric="magnitude")
    ranked.clear()
    for (module, name), mask in zip(parameters, masks, strict=True):
        _Chosen.apply(module, name, mask=mask)


class _Chosen(prune.CustomFromMask):
    """A mask that is known already, written into torch's without temporaries of the weight's size."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return default_mask.mul_(self.mask)


class L1Unstructured(prune.L1Unstructured):
    """torch's ``L1Unstructured``; which of equals go is defined, and no list of indices is made."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        count = _count(self.amount, t.numel())
        return default_mask * ops.topk_mask(t.detach(), keep=t.numel() - count, metric="magnitude")


class L1Pattern(prune.BasePruningMethod):
    """Prune the blocks of lowest mean magnitude, or all but N of each M consecutive entries.

    Args:
        pattern: a block or N:M pattern; see :func:`pruneops.parse_pattern`.
        amount: blocks to prune; None for N:M, which fixes it.
    """

    # In torch's terms: the method sees the whole tensor, also where a part is pruned already.
    PRUNING_TYPE = "global"

    def __init__(self, pattern: str | Pattern, amount: float | None = None) -> None:
        self.pattern = parse_pattern(pattern)
        if self.pattern.block is None and self.pattern.nm is None:
            raise ValueError(f"pattern {self.pattern.spec!r} has no blocks or groups; use L1Unstructured")
        if (amount is None) != (self.pattern.nm is not None):
            raise ValueError(f"amount must be given for blocks and only for them, got {amount} with {pattern!r}")
        self.amount = amount

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        old = default_mask.bool()
        if self.pattern.block is None or self.amount is None:
            ranked = _pruned_last(t.detach(), old)
            return default_mask * select_masks({"": ranked}, sparsity=None, pattern=self.pattern)[""]
        score = block_scores({"": t.detach() * old}, self.pattern)[""]
        alive = ops.block_reduce(old.float(), self.pattern.block, "max") > 0
        left = int(alive.count_nonzero())
        kept = ops.topk_mask(_pruned_last(score, alive), keep=left - _count(self.amount, left))
        return default_mask * ops.expand_block_mask(kept, self.pattern.block, t.shape)


def l1_unstructured(module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None) -> nn.Module:
    """``torch.nn.utils.prune.l1_unstructured`` by :class:`L1Unstructured`.

    Args:
        module: what holds the parameter; it is changed in place, as torch's own function changes it.
        name: of the parameter.
        amount: share to prune (a float from 0 to 1) or number of entries (an int).
        importance_scores: what is ranked in place of the parameter, of its shape.

    Returns:
        ``module``.

    Raises:
        ValueError: the amount is out of range, or the scores have another shape.

    Example:
        >>> layer = l1_unstructured(nn.Linear(4, 4), "weight", amount=8)
        >>> int(layer.weight_mask.sum())
        8
    """
    L1Unstructured.apply(module, name, amount=amount, importance_scores=importance_scores)
    return module


def l1_pattern(
    module: nn.Module,
    name: str,
    pattern: str | Pattern,
    amount: float | None = None,
    importance_scores: Tensor | None = None,
) -> nn.Module:
    """Prune a parameter by :class:`L1Pattern`.

    Args:
        module: what holds the parameter; it is changed in place.
        name: of the parameter.
        pattern: see :func:`pruneops.parse_pattern`.
        amount: share of the blocks to prune (a float) or their number (an int); None for an N:M pattern.
        importance_scores: what is ranked in place of the parameter, of its shape.

    Returns:
        ``module``.

    Raises:
        ValueError: the pattern does not divide the parameter, or as in :func:`l1_unstructured`.

    Example:
        >>> layer = l1_pattern(nn.Linear(8, 4), "weight", "2:4")
        >>> int(layer.weight_mask.sum())
        16
    """
    L1Pattern.apply(module, name, pattern, amount, importance_scores=importance_scores)
    return module


def _count(amount: float, left: int) -> int:
    """How many of ``left`` entries to prune."""
    count = amount if isinstance(amount, int) else round(amount * left)
    if not 0 <= count <= left:
        raise ValueError(f"amount={amount} asks to prune {count} of {left} entries that are left")
    return count


def _pruned_last(score: Tensor, old: Tensor | None) -> Tensor:
    """Scores that rank what is pruned already below all else."""
    return score if old is None else torch.where(old.bool(), score, torch.nan)
