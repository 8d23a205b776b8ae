"""A criterion from a metric and two factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._checks import BLOCK_METRICS, Checker
from .base import PruningCriterion
from .registry import CRITERIA, register_criterion


class MetricCriterion(PruningCriterion):
    """``alpha * score + beta * v`` for one metric ``v``; :func:`criterion_from_metric` makes its subclasses.

    Args:
        modules, config, framework: as in :class:`PruningCriterion`; the config's ``alpha`` and ``beta``, where it has
            them, replace the class's.
    """

    known_settings = PruningCriterion.known_settings | {"alpha", "beta"}
    metric = "magnitude"
    alpha = 0.0
    beta = 1.0

    def __init__(self, modules: Mapping[str, Any], config: Any, framework: str = "pytorch") -> None:
        super().__init__(modules, config, framework)
        self.alpha = self._factor("alpha", None, self.alpha)
        self.beta = self._factor("beta", None, self.beta)
        self.memoryless = self.alpha == 0
        if not self.memoryless:
            self._storage(modules)

    def on_step_begin(self) -> None:
        if not self.needs_gradient:
            self.update_scores(self.metric, self.alpha, self.beta)

    def on_before_optimizer_step(self) -> None:
        if self.needs_gradient:
            self.update_scores(self.metric, self.alpha, self.beta)


def criterion_from_metric(name: str, *, metric: str, alpha: float = 0.0, beta: float = 1.0) -> type[PruningCriterion]:
    """Register a criterion of a metric under a name; the name is then known wherever criteria are.

    Args:
        name: the criterion's name.
        metric: ``v`` in ``score = alpha * score + beta * v``: a metric of :func:`pruneops.ops.update_scores_`, or
            ``mask_gradient`` or ``mask_fisher`` of :func:`pruneops.ops.update_block_scores_`, which score blocks.
            ``magnitude`` is scored at the beginning of a step, the others before the optimizer's step.
        alpha: factor of the old score; 0 for a score without memory.
        beta: factor of ``v``.

    Returns:
        The criterion's class. What is pickled of it can be loaded where it has been made under the same name.

    Raises:
        ValueError: the metric is unknown.
        TypeError: ``name`` is not a string, or a factor not a number.

    Example:
        >>> criterion_from_metric("taylor_momentum", metric="taylor", alpha=0.5)
        <class 'pruneops.criteria.metric.taylor_momentum'>
    """
    check = Checker("criterion_from_metric")
    if not isinstance(name, str):
        check.fail(f"name must be a string, got {type(name).__name__}", TypeError)
    check.choice("metric", metric, list(BLOCK_METRICS))
    settings = {
        "__doc__": f"{alpha} * score + {beta} * {metric}.",
        "__module__": __name__,
        "metric": metric,
        "alpha": check.number("alpha", alpha),
        "beta": check.number("beta", beta),
        "memoryless": alpha == 0,
        "needs_gradient": BLOCK_METRICS[metric][1],
        "block_scores": metric.startswith("mask_"),
    }
    return register_criterion(name)(type(name, (MetricCriterion,), settings))


def __getattr__(name: str) -> Any:
    """The classes made here are found as if they were written here, which is how pickle loads their instances."""
    if getattr(CRITERIA.get(name), "__module__", None) == __name__:
        return CRITERIA[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
