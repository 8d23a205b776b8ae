"""Criteria over weights and their gradients: magnitude, gradient, and their product with and without momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import PruningCriterion
from .registry import register_criterion


@register_criterion("magnitude")
class MagnitudeCriterion(PruningCriterion):
    """abs(w), at the beginning of a step (Han et al., 2015)."""

    memoryless = True

    def on_step_begin(self) -> None:
        self.update_scores("magnitude")


@register_criterion("gradient")
class GradientCriterion(PruningCriterion):
    """abs(g), before the optimizer's step."""

    memoryless = True
    needs_gradient = True

    def on_before_optimizer_step(self) -> None:
        self.update_scores("gradient")


@register_criterion("snip")
class SnipCriterion(PruningCriterion):
    """abs(w*g), before the optimizer's step (SNIP: Lee et al., 2019)."""

    memoryless = True
    needs_gradient = True

    def on_before_optimizer_step(self) -> None:
        self.update_scores("snip")


class MomentumCriterion(PruningCriterion):
    """Base of the criteria that keep a share of the old score: ``score = alpha * score + beta * v``.

    Args:
        modules, config, framework: as in :class:`PruningCriterion`.
        alpha: factor of the old score; by default the config's ``alpha``, else the class's own.
        beta: factor of ``v``; by default the config's ``beta``, else 1.

    Raises:
        TypeError: a factor is not a number.
    """

    known_settings = PruningCriterion.known_settings | {"alpha", "beta"}
    needs_gradient = True
    default_alpha = 0.9

    def __init__(
        self,
        modules: Mapping[str, Any],
        config: Any,
        framework: str = "pytorch",
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(modules, config, framework)
        self.alpha = self._factor("alpha", alpha, self.default_alpha)
        self.beta = self._factor("beta", beta, 1.0)
        self._storage(modules)


@register_criterion("snip_momentum")
class SnipMomentumCriterion(MomentumCriterion):
    """0.9 * score + 1.0 * abs(w*g), before the optimizer's step; the factors are ``alpha`` and ``beta``."""

    def on_before_optimizer_step(self) -> None:
        self.update_scores("snip", self.alpha, self.beta)
