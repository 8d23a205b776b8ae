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
        self.criterion = get_criterion(self._settings, _scored(self._layers()))

    @torch.no_grad()
    def step(self, use_path: bool = True) -> None:
        """Score the weights once more and select all masks anew."""
        if not self.enable_mask_update:
            return
        self.criterion.modules = _scored(self._layers())
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
        layers = {name: layer for name, layer in self._layers().items() if name in names}
        masks = select_masks(
            {name: layer.weight for name, layer in layers.items()},
            sparsity=None if self.pattern.nm else level,
            pattern=self._pattern_at(level),
            scope=self.scope,
            scores=self.criterion.scores,
        )
        for group in self.groups:
            if (layer := layers.get(group["tensor_fqn"])) is not None:
                mask = masks[layer.name]
                if self.pattern.block:
                    mask = ops.expand_block_mask(mask, self.pattern.block, layer.weight.shape)
                _parametrization(group)[0].mask.copy_(layer.as_stored(mask))

    def _layers(self) -> dict[str, PrunableLayer]:
        """The originals of the parametrized tensors, with the gradients of the moment."""
        return {
            group["tensor_fqn"]: PrunableLayer(
                group["tensor_fqn"], _parametrization(group).original, stores_in_by_out(group["module"])
            )
            for group in self.groups
        }

    def _pattern_at(self, level: float) -> Pattern:
        if self.pattern.nm is None:
            return self.pattern
        n, m = self.pattern.nm
        return parse_pattern(f"{max(n, m - int(level * m))}:{m}")


def _parametrization(group: dict[str, Any]) -> Any:
    return group["module"].parametrizations[group["tensor_name"]]


def _scored(layers: dict[str, PrunableLayer]) -> dict[str, Tensor]:
    """The tensors that a criterion scores: out x in."""
    return {name: layer.weight if layer.transposed else layer.parameter for name, layer in layers.items()}
