"""Pruning of checkpoint files, without the model and tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .ops import unpack_mask
from .planning import STACKED_EXPERTS, Plan, natural
from .report import LayerMasks, LayerReport, PruneReport
from .score_files import CriterionScores, SavedScores
from .selection import apply_masks, block_scores, select_masks
from .staging import staged


def left_alone(plan: Plan) -> dict[str, str]:
    """Every tensor that may hold weights and is not pruned -> why: what the plan skips, and what it does not consider.

    Example:
        >>> left_alone(make_plan(checkpoint, "2:4"))  # doctest: +SKIP
        {'lm_head.weight': 'embedding, norm or head', 'pos_embed': 'no weight of a layer, by its name'}
    """
    checkpoint, known = plan.checkpoint, {*plan.names, *plan.skipped}
    rest = [
        name
        for name, info in checkpoint.tensors.items()
        if info.is_floating and len(info.shape) > 1 and name not in known
    ]
    return plan.skipped | {
        name: STACKED_EXPERTS if checkpoint.stacks_experts(name) else "no weight of a layer, by its name"
        for name in sorted(rest, key=natural)
    }


@dataclass(frozen=True)
class Limits:
    """How much to prune: the arguments of the same names of :func:`pruneops.selection.select_masks`."""

    sparsity: float | None
    min_sparsity: float | None = None
    max_sparsity: float | None = None


class Pruning:
    """One run over a plan, by magnitude, which is computed on the fly and never stored, or by saved scores.

    The masks of a joint selection exist together, at one bit per unit; every other mask exists only while its tensor
    is written.

    Args:
        plan: what to prune.
        limits: how much.
        on_tensor: called with the name of each tensor of the checkpoint when its turn comes.
        scores: what to rank by instead of magnitude.

    Attributes:
        seconds: ``score``, ``select``, ``apply`` and ``write``. A score that is computed on the fly counts as
            selection; the mapped files are read where they are first used.

    Example:
        >>> plan = make_plan(Checkpoint("model.safetensors"), "2:4")  # doctest: +SKIP
        >>> pruning = Pruning(plan, Limits(sparsity=0.5))  # doctest: +SKIP
        >>> pruning.write(Path("sparse.safetensors"))  # doctest: +SKIP
        >>> pruning.report().sparsity  # doctest: +SKIP
        0.5
    """

    def __init__(
        self,
        plan: Plan,
        limits: Limits,
        on_tensor: Callable[[str], None] = lambda name: None,
        scores: SavedScores | CriterionScores | None = None,
    ) -> None:
        self.plan = plan
        self.limits = limits
        self.seconds = {"score": 0.0, "select": 0.0, "apply": 0.0, "write": 0.0}
        self._on_tensor = on_tensor
        self._scores = scores
        self._masks: dict[str, Tensor] = {}  # packed
        self._kept: dict[str, int] = {}
        self._to_prune = set(plan.names)

    def rehearse(self) -> None:
        """Select every mask as :meth:`write` does, and write nothing.

        Raises:
            ValueError: the limits cannot be met.
        """
        self._begin()
        for name in self.plan.checkpoint.tensors:
            self._on_tensor(name)
            if name in self._to_prune:
                self._take_mask(name)

    def write(self, output: Path, *, overwrite: bool = False) -> None:
        """Write the pruned checkpoint, whole or not at all.

        Args:
            output: the file or directory to make.
            overwrite: replace an earlier output; a directory that holds anything else is refused all the same.

        Raises:
            OSError: it exists, or cannot be written.
            ValueError: the limits cannot be met.
        """
        start = time.perf_counter()
        checkpoint = self.plan.checkpoint
        with staged(output, overwrite=overwrite, files=checkpoint.output_files()) as path:
            self._begin()
            checkpoint.write(path, self._pruned)
        elapsed = time.perf_counter() - start
        self.seconds["write"] = elapsed - sum(self.seconds.values())

    def report(self) -> PruneReport:
        """What was pruned, tensor by tensor; without the masks, which are not kept."""
        checkpoint, pattern = self.plan.checkpoint, self.plan.pattern
        layers = []
        for name in self.plan.names:
            info = checkpoint.tensors[name]
            layers.append(LayerReport(name, info.shape, info.numel, self._kept[name]))
        return PruneReport(
            layers=tuple(layers),
            criterion=self._scores.criterion if self._scores else "magnitude",
            pattern=pattern.spec,
            scope=self.plan.scope,
            seconds=self.seconds,
            skipped=tuple(self.plan.skipped),
            masks=LayerMasks([], {}, pattern),
        )

    def _begin(self) -> None:
        if self._scores:
            # Missing scores show before the first tensor is written.
            self._scores.check(self.plan.checkpoint, self.plan.names)
        # Without a joint selection this checks the limits, before the first tensor is written.
        self._masks = self._select(
            self.plan.names if self.plan.selects_jointly else [], packed=self.plan.selects_jointly
        )

    def _select(self, names: list[str], packed: bool = False) -> dict[str, Tensor]:
        checkpoint, pattern, limits = self.plan.checkpoint, self.plan.pattern, self.limits
        weights = {name: checkpoint.oriented(name, checkpoint.tensor(name)) for name in names}
        with self._timed("score"):
            ranking = self._ranking(weights)
        with self._timed("select"):
            return select_masks(
                weights,
                sparsity=limits.sparsity,
                pattern=pattern,
                scope=self.plan.scope,
                **ranking,
                min_sparsity=limits.min_sparsity,
                max_sparsity=limits.max_sparsity,
                packed=packed,
            )

    def _ranking(self, weights: dict[str, Tensor]) -> dict[str, Any]:
        """What select_masks ranks by; plain magnitude is its default."""
        if self._scores:
            return self._scores.ranking(self.plan.checkpoint, list(weights))
        return {"scores": block_scores(weights, self.plan.pattern)} if self.plan.pattern.block else {}

    def _take_mask(self, name: str) -> Tensor:
        if name in self._masks:
            grid = self.plan.pattern.grid(self.plan.checkpoint.weight_shape(name))
            mask = unpack_mask(self._masks.pop(name), grid)
        else:
            mask = self._select([name])[name]
        per_unit = self.plan.checkpoint.tensors[name].numel // mask.numel()
        self._kept[name] = int(mask.sum()) * per_unit
        return mask

    def _pruned(self, name: str) -> Tensor | None:
        """The tensor to write instead of the stored one; None where it stays."""
        self._on_tensor(name)
        if name not in self._to_prune:
            return None
        mask = self._take_mask(name)
        checkpoint = self.plan.checkpoint
        with self._timed("apply"):
            tensor = checkpoint.tensor(name).clone()
            apply_masks({name: checkpoint.oriented(name, tensor)}, {name: mask}, self.plan.pattern)
        return tensor

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start
