"""Which tensors of a checkpoint are pruned, decided from names, shapes and dtypes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from ._library import packed_size
from .checkpoint import FLOATING, Checkpoint
from .layers import NameFilter, Patterns, excluded_by_default
from .patterns import Pattern, parse_pattern
from .selection import SCOPES

#: Why a tensor is left alone that holds the matrices of many experts.
STACKED_EXPERTS = "stacked experts"


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``layer.9`` before ``layer.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


@dataclass(frozen=True)
class Plan:
    """What a run prunes.

    Attributes:
        checkpoint: the source.
        pattern: its sparsity pattern.
        scope: ``global``, ``local`` or ``row``.
        names: the tensors to prune, in natural order, which is also the order among equal scores: so the result
            does not depend on how the checkpoint is split into shards.
        skipped: the other matrix-shaped weights -> why they are left alone.
    """

    checkpoint: Checkpoint
    pattern: Pattern
    scope: str
    names: list[str]
    skipped: dict[str, str]

    @property
    def selects_jointly(self) -> bool:
        """Whether one selection runs over all tensors, so that all masks exist at the same time."""
        return self.scope == "global" and self.pattern.nm is None

    @property
    def memory_bytes(self) -> int:
        """Memory that the run needs beside the mapped files: masks, scores of blocks, and a copy of one tensor."""
        # A block has a stored score of 4 bytes, or 8 for float64. Masks have a byte per unit; of those that exist
        # together, all but the one in use are packed.
        units = [prod(self.pattern.grid(self.checkpoint.weight_shape(name))) for name in self.names]
        infos = [self.checkpoint.tensors[name] for name in self.names]
        scores = [(8 if info.dtype == "F64" else 4) if self.pattern.block else 0 for info in infos]
        copy = max(info.end - info.start for info in infos)
        if self.selects_jointly:
            packed = sum(packed_size(count) for count in units)
            return copy + max(units) + packed + sum(count * score for count, score in zip(units, scores, strict=True))
        return copy + max(count * (1 + score) for count, score in zip(units, scores, strict=True))

    @property
    def disk_bytes(self) -> int:
        """Size of the output."""
        files = [shard.path for shard in self.checkpoint.shards]
        files += [self.checkpoint.path / file for file in self.checkpoint.side_files()]
        return sum(file.stat().st_size for file in files)


def make_plan(
    checkpoint: Checkpoint,
    pattern: str | Pattern,
    *,
    scope: str = "global",
    include: Patterns = None,
    exclude: Patterns = None,
    on_indivisible: str = "skip",
) -> Plan:
    """Decide which tensors of a checkpoint to prune: ``*.weight`` with two or more dimensions, in floating point.

    What stacks experts (see :meth:`pruneops.checkpoint.Checkpoint.stacks_experts`) is skipped, even if it is named: it
    does not say along which dimension the inputs lie.

    Args:
        checkpoint: the source.
        pattern: see :func:`pruneops.parse_pattern`.
        scope: ``global``, ``local`` or ``row``.
        include: names to prune, with or without ``.weight``: globs, or ``re:`` and a regular expression found
            anywhere in the name; one or a sequence. None is all that is not excluded by default (see
            :func:`pruneops.layers.excluded_by_default`); what is named here is pruned even if it is.
        exclude: names not to prune, in the same form; stronger than ``include``.
        on_indivisible: ``skip`` or ``error``, where the pattern does not divide a tensor.

    Returns:
        The plan.

    Raises:
        ValueError: an argument is out of range, a name pattern matches nothing, or nothing is left to prune.
    """
    form = parse_pattern(pattern)
    for what, value, allowed in (("scope", scope, SCOPES), ("on_indivisible", on_indivisible, ("skip", "error"))):
        if value not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
    weights = sorted((name for name in checkpoint.tensors if _is_matrix_weight(checkpoint, name)), key=natural)
    chosen = NameFilter(include, exclude, *([_module(name) for name in x] for x in (weights, checkpoint.tensors)))
    names, skipped = [], {}
    for name in weights:
        if reason := _why_not(checkpoint, name, chosen):
            skipped[name] = reason
        elif form.divides(shape := checkpoint.weight_shape(name)):
            names.append(name)
        elif on_indivisible == "error":
            raise ValueError(f"{name!r} has shape {list(shape)}, which pattern {form.spec!r} does not divide")
        else:
            skipped[name] = f"{form.spec} does not divide it"
    if not names:
        why = ", ".join(sorted(set(skipped.values()))) or "no '*.weight' with two or more dimensions"
        raise ValueError(f"{checkpoint.path}: nothing to prune ({why})")
    return Plan(checkpoint, form, scope, names, skipped)


def _is_matrix_weight(checkpoint: Checkpoint, name: str) -> bool:
    info = checkpoint.tensors[name]
    return name.endswith(".weight") and len(info.shape) > 1 and info.numel > 0


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _why_not(checkpoint: Checkpoint, name: str, chosen: NameFilter) -> str | None:
    """Why a weight is not to be pruned, or None."""
    dtype = checkpoint.tensors[name].dtype
    if reason := chosen.why_not([_module(name)], excluded_by_default(_module(name), checkpoint.tensors)):
        return reason
    if checkpoint.stacks_experts(name):
        return STACKED_EXPERTS
    return None if dtype in FLOATING else f"dtype {dtype}"
