"""Neural Compressor's pruning on pruneops, from its version 2.2 to 3.7; PyTorch models only.

One line before ``prepare_compression`` or ``prepare_pruning``; the rest of a script stays as it is::

    pruneops.integrations.neural_compressor.enable(selection=True)

Criteria are replaced in its registry ``CRITERIA``, patterns in ``PATTERNS``; pruners that exist already keep theirs.
Every criterion of :data:`pruneops.CRITERIA` is known to it by name, a user's own too; names that contain ``block``,
``free`` or ``progressive`` have a meaning of their own there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._library import block_grid
from ..criteria import ALIASES, CRITERIA, BlockMaskCriterion, PruningCriterion, RetrainFreeCriterion
from ..patterns import Pattern
from .neural_compressor_patterns import with_selection

_replaced: list[tuple[dict[str, Any], str, Any]] = []
_selection: bool | None = None


def enable(selection: bool = False) -> None:
    """Let Neural Compressor score with pruneops, and select too.

    Args:
        selection: also replace the patterns' global and local selection: the same counts, bounds per layer and rule
            for ties, without a copy of the scores.

    Raises:
        ImportError: Neural Compressor is not installed, or is one without pruning.

    Example:
        >>> enable(selection=True)
        >>> compression = prepare_compression(model, WeightPruningConfig(pruning_type="snip_momentum"))
    """
    global _selection
    criteria, patterns = _registries()
    disable()
    ours = CRITERIA | {alias: CRITERIA[name] for alias, name in ALIASES.items() if alias in criteria}
    for name, criterion in ours.items():
        _replace(criteria, name, adapted(criterion))
    for name in patterns.keys() & {"NxM", "N:M", "ptNxM", "ptN:M"} if selection else ():
        _replace(patterns, name, with_selection(patterns[name], groups=":" in name))
    _selection = selection


def disable() -> None:
    """Give Neural Compressor its own criteria and patterns back."""
    global _selection
    while _replaced:
        registry, name, before = _replaced.pop()
        if before is None:
            del registry[name]
        else:
            registry[name] = before
    _selection = None


@contextmanager
def enabled(selection: bool = False) -> Iterator[None]:
    """:func:`enable` within a ``with`` block; afterwards all is as it was before.

    Example:
        >>> with enabled():
        ...     compression = prepare_compression(model, config)
    """
    before = _selection
    enable(selection)
    try:
        yield
    finally:
        disable() if before is None else enable(before)


def _registries() -> tuple[dict[str, Any], dict[str, Any]]:
    package = "neural_compressor.compression.pruner"
    try:
        criteria, patterns = (importlib.import_module(f"{package}.{name}") for name in ("criteria", "patterns"))
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("neural_compressor"):
            raise
        raise ImportError(
            "the pruning of Neural Compressor is not installed: it is in versions 2.2 to 3.7 "
            "(pip install 'pruneops[neural-compressor]')"
        ) from error
    return criteria.CRITERIA, patterns.PATTERNS


def _replace(registry: dict[str, Any], name: str, value: Any) -> None:
    _replaced.append((registry, name, registry.get(name)))
    registry[name] = value


def adapted(criterion: type[PruningCriterion]) -> type[PruningCriterion]:
    """A subclass of a criterion whose constructor takes what Neural Compressor passes to criteria."""
    base = _BlockMaskCriterion if issubclass(criterion, BlockMaskCriterion) else _Criterion
    return type(criterion.__name__, (base, criterion), {})


class _Criterion(PruningCriterion):
    """The constructor that Neural Compressor calls: with ``framework`` in 2.2, with its pattern later.

    Scores have one entry per block where that pattern reduces scores, else one per weight.
    """

    def __init__(self, modules: dict[str, Any], config: Mapping[str, Any], pattern: Any = "pytorch") -> None:
        reduces = hasattr(pattern, "reduce_score")
        odd = getattr(pattern, "invalid_layers", ())
        self._blocks = {key: tuple(x) for key, x in pattern.block_size.items() if key not in odd} if reduces else {}
        self._held = pattern.keep_mask_layers if reduces else {}
        for key in odd:  # Layers that the pattern does not divide, on which Neural Compressor itself fails.
            if reduces:
                self._held[key] = True
            else:
                modules.pop(key, None)
        low_memory = config.get("low_memory_usage") and not self.memoryless
        settings = {**config, "pattern": "1x1", "block_scores": False, "low_memory_usage": low_memory}
        super().__init__(modules, settings, pattern if isinstance(pattern, str) else "pytorch")
        self.config = config

    def update_scores(
        self, metric: str, alpha: float = 0.0, beta: float = 1.0, keys: Iterable[str] | None = None
    ) -> None:
        keys = list(self.modules if keys is None else keys)
        groups: dict[tuple[int, int] | None, list[str]] = {}
        for key in keys:  # In the order of the modules, in which Neural Compressor applies its bounds.
            if alpha != 0 and key in self._blocks:
                self._held[key] = False  # With momentum, a layer at its bound is selected anew each time.
            if key not in self.scores or self.scores[key].shape != self._score_shape(key):
                self.scores[key] = self._new_score(key)
            groups.setdefault(self._block(key), []).append(key)
        for block, group in groups.items():
            self.block_scores, self.pattern = block is not None, Pattern("", block=block)
            super().update_scores(metric, alpha, beta, group)

    def _block(self, key: str) -> tuple[int, int] | None:
        block = self._reduced(key)
        by_entry = block == (1, 1) and self.weight(key).dim() == 2 and not type(self).block_scores
        return None if by_entry else block

    def _reduced(self, key: str) -> tuple[int, int] | None:
        """The block of each score; none where a progressive pruner keeps a layer's mask, as it reads entries there."""
        by_entry = self.config.get("progressive") and self._held.get(key) and not type(self).block_scores
        return None if by_entry else self._blocks.get(key)

    def _score_shape(self, key: str) -> torch.Size:
        block, shape = self._reduced(key), self.weight(key).shape
        return torch.Size(block_grid(block, shape)) if block else shape

    def _seen(self, key: str, x: Tensor) -> Tensor:
        return x

    def _check_blocks(self, key: str) -> None:
        """Its pattern has checked them."""


class _BlockMaskCriterion(_Criterion, BlockMaskCriterion):
    """Over the block masks that the pruner passes, or in 2.2 over those of the modules; other layers have no score."""

    def __init__(self, modules: dict[str, Any], config: Any, pattern: Any = "pytorch", masks: Any = None) -> None:
        self._masks = masks
        masked = {key: x for key, x in modules.items() if (hasattr(x, "block_mask") if masks is None else key in masks)}
        super().__init__(masked, config, pattern)
        if isinstance(self, RetrainFreeCriterion):
            for key in modules.keys() - masked.keys():
                modules[key].requires_grad_(False)

    def block_mask(self, key: str) -> Tensor | None:
        return super().block_mask(key) if self._masks is None else self._masks[key]

    def on_before_optimizer_step(self, masks: Any = None) -> None:
        self._masks = self._masks if masks is None else masks
        super().on_before_optimizer_step()

    def _score_shape(self, key: str) -> torch.Size:
        return BlockMaskCriterion._score_shape(self, key)
