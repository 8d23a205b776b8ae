"""``torch.ao.pruning`` on pruneops: a sparsifier with any criterion, pattern and scope.

Preparation, schedulers, ``squash_mask`` and ``convert`` are torch's own. Masks are bool, which its parametrization
multiplies as well as float ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.pruning import BaseSparsifier

from .. import ops
from .._checks import Checker
from ..criteria import criterion_class, get_criterion
from ..layers import PrunableLayer, stores_in_by_out
from ..patterns import Pattern, parse_pattern
from ..selection import SCOPES, select_masks


class Sparsifier(BaseSparsifier):
    """Keeps the best-scoring weights of a model, exactly as many as its ``sparsity_level`` asks for.

    Call :meth:`step` between the backward pass and the optimizer's step: there the criterion reads weights and
    gradients.

    Args:
        sparsity_level: share to prune, 0 <= level < 1; also a setting of each layer, which schedulers change. Layers
            of equal level are selected together. With an N:M pattern that keeps N of M at level ``1 - N/M``, a lower
            level keeps more of each M.
        criterion: name of a registered criterion.
        pattern: see :func:`pruneops.parse_pattern`.
        scope: ``local`` (each layer), ``global`` or ``row``.
        config: further settings of the criterion, such as ``alpha``.

    Attributes:
        criterion: the criterion; its scores are part of the sparsifier's state.

    Raises:
        ValueError: a setting is unknown or out of range, or in ``prepare`` the pattern does not divide a tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> sparsifier = Sparsifier(0.5, pattern="2:4")
        >>> sparsifier.prepare(model, config=None)
        >>> sparsifier.step()
        >>> sparsifier.squash_mask()
        >>> float((model[0].weight == 0).float().mean())
        0.5
    """

    def __init__(
        self,
        sparsity_level: float = 0.5,
        *,
        criterion: str = "magnitude",
        pattern: str | Pattern = "1x1",
        scope: str = "local",
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(defaults={"sparsity_level": sparsity_level})
        Checker("Sparsifier").choice("scope", scope, SCOPES)
        criterion_class(criterion)
        self.pattern = parse_pattern(pattern)
        self.scope = scope
        self._settings = {
            **(config or {}),
            "criterion_type": criterion,
            "pattern": self.pattern.spec,
            "block_scores": self.pattern.block is not None,
        }

    def _prepare(self, *args: Any, **kwargs: Any) -> None:
        for group in self.groups:
            weight = getattr(group["module"], group["tensor_name"])
            seen = weight.t() if stores_in_by_out(group["module"]) else weight
            if not self.pattern.divides(seen.shape):
                shape = list(seen.shape)
                raise ValueError(f"pattern {self.pattern.spec!r} does not divide {group['tensor_fqn']!r} {shape}")
            group["mask"] = torch.ones_like(weight, dtype=torch.bool)
        super()._prepare(*args, **kwargs)
        for group in self.groups:
            del group["mask"]
        self._tensors = {
            group["tensor_fqn"]: _Sparsified(group["module"], group["tensor_name"]) for group in self.groups
        }
        self.criterion = get_criterion(self._settings, self._tensors)

    @torch.no_grad()
    def step(self, use_path: bool = True) -> None:
        """Score the weights once more and select all masks anew."""
        if not self.enable_mask_update:
            return
        self.criterion.on_step_begin()
        self.criterion.on_before_optimizer_step()
        self.criterion.on_after_optimizer_step()
        levels: dict[float, list[str]] = {}
        for group in self.groups:
            levels.setdefault(group["sparsity_level"], []).append(group["tensor_fqn"])
        for level, names in levels.items():
            self._select(names, level)

    def update_mask(self, module: nn.Module, tensor_name: str, **kwargs: Any) -> None:
        """Select the mask of one tensor alone, from the scores as they are."""
        self._select([kwargs["tensor_fqn"]], kwargs["sparsity_level"])

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and ``criterion``."""
        return super().state_dict() | {"criterion": self.criterion.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        self.criterion.load_state_dict(state_dict["criterion"])
        super().load_state_dict(state_dict, strict)

    def _select(self, names: list[str], level: float) -> None:
        layers = {name: self._tensors[name].layer for name in names}
        masks = select_masks(
            {name: layer.weight for name, layer in layers.items()},
            sparsity=None if self.pattern.nm else level,
            pattern=self._pattern_at(level),
            scope=self.scope,
            scores=self.criterion.scores,
        )
        for name, layer in layers.items():
            mask = masks[name]
            if self.pattern.block:
                mask = ops.expand_block_mask(mask, self.pattern.block, layer.weight.shape)
            self._tensors[name].mask.copy_(layer.as_stored(mask))

    def _pattern_at(self, level: float) -> Pattern:
        if self.pattern.nm is None:
            return self.pattern
        n, m = self.pattern.nm
        return parse_pattern(f"{max(n, m - int(level * m))}:{m}")


class _Sparsified:
    """A parametrized tensor as criteria see a module: its original, out x in, with the gradient of the moment."""

    def __init__(self, module: nn.Module, tensor_name: str) -> None:
        self._parts: Any = module.parametrizations[tensor_name]  # type: ignore[index, union-attr]
        self._transposed = stores_in_by_out(module)

    @property
    def layer(self) -> PrunableLayer:
        return PrunableLayer("", self._parts.original, self._transposed)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def mask(self) -> Tensor:
        return self._parts[0].mask
