"""Pruning criteria: what scores a weight, and when in a training step.

The classes have the interface of Intel Neural Compressor's pruning criteria and hold no formulas: each hook is one
call of :func:`pruneops.ops.update_scores_` or :func:`pruneops.ops.update_block_scores_` for all modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import ops
from ._checks import BLOCK_METRICS, Checker
from .layers import stores_in_by_out
from .patterns import parse_pattern

CRITERIA: dict[str, type[PruningCriterion]] = {}
_Criterion = TypeVar("_Criterion", bound="type[PruningCriterion]")


def register_criterion(name: str) -> Callable[[_Criterion], _Criterion]:
    """Register the decorated class in ``CRITERIA`` under ``name``.

    Example:
        >>> @register_criterion("taylor")
        ... class TaylorCriterion(PruningCriterion):
        ...     def on_before_optimizer_step(self):
        ...         self.update_scores("taylor")
    """

    def register(criterion: _Criterion) -> _Criterion:
        CRITERIA[name] = criterion
        return criterion

    return register


def criterion_class(name: str) -> type[PruningCriterion]:
    """The class registered under ``name``; a ValueError that lists the known names where there is none."""
    if name not in CRITERIA:
        raise ValueError(f"unknown criterion {name!r}; known are {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]


def get_criterion(config: Any, modules: Mapping[str, Any], framework: str = "pytorch") -> PruningCriterion:
    """The criterion that ``config`` names.

    Args:
        config: mapping, dataclass or object; ``criterion_type`` is the criterion's registered name. The other
            settings are those of :class:`PruningCriterion`.
        modules: see :class:`PruningCriterion`.
        framework: ``pytorch``.

    Returns:
        A new criterion.

    Raises:
        ValueError: the name is missing or unknown, or as in :class:`PruningCriterion`.

    Example:
        >>> get_criterion({"criterion_type": "magnitude"}, {"fc": nn.Linear(2, 2)})
        <pruneops.criteria.MagnitudeCriterion object at ...>
    """
    return criterion_class(_setting(config, "criterion_type", None))(modules, config, framework)


def _setting(config: Any, key: str, default: Any) -> Any:
    """A setting of a mapping, a dataclass or any object with attributes; None there means ``default``."""
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return default if value is None else value


def _listed(values: dict[str, Tensor] | None, keys: Iterable[str]) -> list[Tensor] | None:
    return None if values is None else [values[key] for key in keys]


class PruningCriterion:
    """Base of all criteria: named scores that keep their storage from step to step.

    Args:
        modules: name -> module with a ``weight``, or name -> tensor or parameter. Gradients are their ``grad``.
        config: mapping, dataclass or object with these settings, all optional:

            - ``low_memory_usage``: scores in bfloat16; by default float32 (float64 for float64 weights).
            - ``block_scores``: keep one score per block of ``pattern``, never one per weight.
            - ``pattern``: block pattern of the scores, by default ``"4x1"``.
            - ``criterion_reduce_type``: how a block's score comes from its entries, ``mean`` (default), ``sum`` or
              ``max``.
            - ``alpha``, ``beta``: of the criteria with momentum.
            - ``collect_grads``: whether ``retrain_free`` keeps the gradients of each step (default), for a
              rearrangement of its masks as Neural Compressor's; a :class:`pruneops.Pruner` never keeps them.
            - ``end_step``: last pruning step; a criterion that reads gradients needs it above 0 where it is given.
        framework: ``pytorch``.

    Attributes:
        scores: name -> score; empty before the first step for the criteria without momentum. Higher is kept.
        grad_scale: what the gradients are still multiplied by, as one float32 element; None where they are not
            scaled. Set before a hook is called.
        found_inf: one float32 element; where it is not 0 the step is an overflow and changes no score.

    Raises:
        ValueError: a setting is out of range, or the pattern does not divide a weight; the message names it.
        TypeError: ``modules`` is not a mapping, or a value in it has no weight.
    """

    needs_gradient = False
    #: Each step's score is made anew, so that a step after which nothing is selected need not be scored.
    memoryless = False
    #: A class that sets it scores blocks whatever the config says.
    block_scores = False

    def __init__(self, modules: Mapping[str, Any], config: Any, framework: str = "pytorch") -> None:
        if framework != "pytorch":
            raise ValueError(f"framework must be 'pytorch', got {framework!r}")
        if not isinstance(modules, Mapping):
            raise TypeError(f"modules must map names to modules or tensors, got {type(modules).__name__}")
        end_step = _setting(config, "end_step", 1)
        if self.needs_gradient and end_step <= 0:
            raise ValueError(f"{type(self).__name__} reads gradients and needs end_step > 0, got {end_step}")
        self.modules = modules
        self.config = config
        self.framework = framework
        self.scores: dict[str, Tensor] = {}
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self.low_memory_usage = bool(_setting(config, "low_memory_usage", False))
        self.pattern = parse_pattern(_setting(config, "pattern", "4x1"))
        self.reduce = _setting(config, "criterion_reduce_type", "mean")
        if self.reduce not in ("mean", "sum", "max"):
            raise ValueError(f"criterion_reduce_type must be mean, sum or max, got {self.reduce!r}")
        self.block_scores = self.block_scores or bool(_setting(config, "block_scores", False))
        self._check_modules()

    def on_step_begin(self) -> None:
        """Called at the beginning of a training step."""

    def on_before_optimizer_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def on_after_optimizer_step(self) -> None:
        """Called after the optimizer's step."""

    def update_scores(
        self, metric: str, alpha: float = 0.0, beta: float = 1.0, keys: Collection[str] | None = None
    ) -> None:
        """``score = alpha * score + beta * v`` for all modules in one call.

        Args:
            metric: name of ``v`` in :func:`pruneops.ops.update_scores_`, or with ``block_scores`` in
                :func:`pruneops.ops.update_block_scores_`.
            alpha: factor of the old score.
            beta: factor of ``v``.
            keys: names of the modules to score; by default all.

        Raises:
            ValueError: a gradient that is read is missing; nothing is written.
        """
        keys = list(self.modules if keys is None else keys)
        self._update(dict(zip(keys, self._storage(keys), strict=True)), metric, alpha, beta)

    def _update(self, scores: dict[str, Tensor], metric: str, alpha: float, beta: float) -> None:
        """:meth:`update_scores` of these scores, wherever they are kept."""
        if not scores:
            return
        grads = None if metric == "magnitude" else {key: self.gradient(key) for key in scores}
        weights = {key: self.weight(key).detach() for key in scores}
        how: dict[str, Any] = {"metric": metric, "alpha": alpha, "beta": beta, "grad_scale": self.grad_scale,
                               "found_inf": self.found_inf}  # fmt: skip
        if not (self.block_scores and self.pattern.block):
            ops.update_scores_(list(scores.values()), list(weights.values()), _listed(grads, scores), **how)
            return
        by_layout: dict[bool, list[str]] = {}
        for key in scores:
            by_layout.setdefault(stores_in_by_out(self.modules[key]), []).append(key)
        for turned, chosen in by_layout.items():
            # A weight stored in x out is read as it lies, by blocks that are turned over too.
            ops.update_block_scores_(
                [scores[key].t() if turned else scores[key] for key in chosen],
                [weights[key] for key in chosen],
                _listed(grads, chosen),
                block=self.pattern.block[::-1] if turned else self.pattern.block,
                reduce=self.reduce,
                **how,
            )

    def weight(self, key: str) -> Tensor:
        """The weight of a module, or the tensor itself."""
        value = self.modules[key]
        weight = value if isinstance(value, Tensor) else getattr(value, "weight", None)
        if not isinstance(weight, Tensor):
            raise TypeError(f"modules[{key!r}] must be a tensor or have a weight, got {type(value).__name__}")
        return weight

    def gradient(self, key: str) -> Tensor:
        """The gradient of a module's weight; a ValueError that names the parameter where there is none."""
        weight = self.weight(key)
        return self._gradient_of(weight, key if weight is self.modules[key] else f"{key}.weight")

    def state_dict(self) -> dict[str, Any]:
        """The scores, as ``{"scores": {name: tensor}}``; the tensors are the criterion's own, not copies."""
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy saved scores into this criterion's storage.

        Raises:
            ValueError: names or shapes differ from those here; nothing is changed.
        """
        saved = state["scores"]
        if saved:
            self._check_names("scores", saved)
        for key, score in saved.items():
            shape = self._score_shape(key)
            if score.shape != shape:
                raise ValueError(f"load_state_dict: score {key!r} has shape {list(score.shape)}, here {list(shape)}")
        if not saved:
            self.scores.clear()
        for own, score in zip(self._storage(saved), saved.values(), strict=True):
            own.copy_(score)

    def _check_names(self, what: str, saved: Mapping[str, Any]) -> None:
        if odd := saved.keys() ^ self.modules.keys():
            raise ValueError(f"load_state_dict: {what} and modules differ in {', '.join(sorted(map(repr, odd)))}")

    def _gradient_of(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.grad is not None:
            return tensor.grad
        frozen = tensor.is_leaf and not tensor.requires_grad
        why = "is frozen (requires_grad=False)" if frozen else "has none: it comes with the backward pass"
        raise ValueError(f"{type(self).__name__} reads the gradient of {name!r}, which {why}")

    def _storage(self, keys: Iterable[str]) -> list[Tensor]:
        """The scores of ``keys``; those that do not exist yet start at zero."""
        for key in keys:
            if key not in self.scores:
                self.scores[key] = self._new_score(key)
        return [self.scores[key] for key in keys]

    def _new_score(self, key: str) -> Tensor:
        weight = self.weight(key)
        dtype = torch.bfloat16 if self.low_memory_usage else torch.promote_types(weight.dtype, torch.float32)
        shape = self._score_shape(key)
        if self.block_scores and stores_in_by_out(self.modules[key]):
            return torch.zeros(shape[::-1], dtype=dtype, device=weight.device).t()
        return torch.zeros(shape, dtype=dtype, device=weight.device)

    def _score_shape(self, key: str) -> torch.Size:
        shape = self._seen(key, self.weight(key)).shape
        return torch.Size(self.pattern.grid(shape)) if self.block_scores else shape

    def _seen(self, key: str, x: Tensor) -> Tensor:
        """A weight or gradient as it is scored: out x in for blocks, as it is stored for entries."""
        return x.t() if self.block_scores and stores_in_by_out(self.modules[key]) else x

    def _check_modules(self) -> None:
        for key in self.modules:
            self.weight(key)
            if self.block_scores:
                self._check_blocks(key)

    def _check_blocks(self, key: str) -> None:
        if self.pattern.block is None:
            raise ValueError(f"{type(self).__name__} scores blocks, but pattern {self.pattern.spec!r} has none")
        shape = self._seen(key, self.weight(key)).shape
        if not self.pattern.divides(shape):
            raise ValueError(f"pattern {self.pattern.spec!r} does not divide {key!r} of shape {list(shape)}")


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
    """

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
        self.alpha = _setting(config, "alpha", self.default_alpha) if alpha is None else alpha
        self.beta = _setting(config, "beta", 1.0) if beta is None else beta
        self._storage(modules)


@register_criterion("snip_momentum")
class SnipMomentumCriterion(MomentumCriterion):
    """0.9 * score + 1.0 * abs(w*g), before the optimizer's step; the factors are ``alpha`` and ``beta``."""

    def on_before_optimizer_step(self) -> None:
        self.update_scores("snip", self.alpha, self.beta)


class MetricCriterion(PruningCriterion):
    """``alpha * score + beta * v`` for one metric ``v``; :func:`criterion_from_metric` makes its subclasses.

    Args:
        modules, config, framework: as in :class:`PruningCriterion`; the config's ``alpha`` and ``beta``, where it has
            them, replace the class's.
    """

    metric = "magnitude"
    alpha = 0.0
    beta = 1.0

    def __init__(self, modules: Mapping[str, Any], config: Any, framework: str = "pytorch") -> None:
        super().__init__(modules, config, framework)
        self.alpha = _setting(config, "alpha", self.alpha)
        self.beta = _setting(config, "beta", self.beta)
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
        The criterion's class.

    Raises:
        ValueError: the metric is unknown.
        TypeError: ``name`` is not a string, or a factor not a number.

    Example:
        >>> criterion_from_metric("taylor_momentum", metric="taylor", alpha=0.5)
        <class 'pruneops.criteria.taylor_momentum'>
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


class BlockMaskCriterion(MomentumCriterion):
    """Base of the criteria over the gradient of a block mask: one entry per block, which multiplies the weight.

    Where a module has a ``block_mask`` that carries a gradient, that gradient is read and the score has the mask's
    shape. Elsewhere the gradient is the block sum of w*g, for the blocks of the config's ``pattern``.
    """

    block_scores = True

    def block_mask(self, key: str) -> Tensor | None:
        """The module's block mask, or None where it has none that carries a gradient."""
        mask = getattr(self.modules[key], "block_mask", None)
        return mask if isinstance(mask, Tensor) and (mask.requires_grad or mask.grad is not None) else None

    def mask_gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the block mask, of the modules that have one."""
        masks = {key: mask for key in self.modules if (mask := self.block_mask(key)) is not None}
        return {key: self._gradient_of(mask, f"{key}.block_mask") for key, mask in masks.items()}

    def update_from(self, grads: Mapping[str, Tensor], metric: str) -> None:
        """Update the scores from gradients of block masks in one call; ``metric`` is ``gradient`` or ``fisher``."""
        if not grads:
            return
        ops.update_scores_(
            self._storage(grads), None, list(grads.values()), metric=metric, alpha=self.alpha, beta=self.beta,
            grad_scale=self.grad_scale, found_inf=self.found_inf,
        )  # fmt: skip

    def _score_shape(self, key: str) -> torch.Size:
        mask = self.block_mask(key)
        return super()._score_shape(key) if mask is None else mask.shape

    def _check_blocks(self, key: str) -> None:
        if self.block_mask(key) is None:
            super()._check_blocks(key)


@register_criterion("snip_momentum_block")
class SnipMomentumBlockCriterion(BlockMaskCriterion):
    """0.9 * score + 1.0 * abs(gradient of the block mask), before the optimizer's step."""

    def on_before_optimizer_step(self) -> None:
        grads = self.mask_gradients()
        unmasked = [key for key in self.modules if key not in grads]
        self.update_scores("mask_gradient", self.alpha, self.beta, unmasked)
        self.update_from(grads, "gradient")


@register_criterion("retrain_free")
class RetrainFreeCriterion(BlockMaskCriterion):
    """score + (gradient of the block mask)^2: the diagonal of the masks' Fisher information (Kwon et al., 2022).

    Modules with a block mask that carries a gradient are frozen, all but the mask.

    Attributes:
        collected_grads: name -> gradients of the block mask, one per step, on the CPU; in the score's dtype. None are
            collected where the config's ``collect_grads`` is false.
    """

    default_alpha = 1.0

    def __init__(
        self,
        modules: Mapping[str, Any],
        config: Any,
        framework: str = "pytorch",
        alpha: float | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(modules, config, framework, alpha, beta)
        self.collects_grads = bool(_setting(config, "collect_grads", True))
        self.collected_grads: dict[str, list[Tensor]] = {key: [] for key in modules}
        for key in modules:
            if self.block_mask(key) is not None:
                self._freeze(key)

    def on_before_optimizer_step(self) -> None:
        grads = self.mask_gradients()
        unmasked = [key for key in self.modules if key not in grads]
        self.update_scores("mask_fisher", self.alpha, self.beta, unmasked)
        self.update_from(grads, "fisher")
        if self.collects_grads:
            self._collect(grads, unmasked)

    def state_dict(self) -> dict[str, Any]:
        """The scores and, as ``collected_grads`` where they are collected, the gradients so far."""
        if not self.collects_grads:
            return super().state_dict()
        return super().state_dict() | {"collected_grads": {key: list(x) for key, x in self.collected_grads.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not self.collects_grads:
            super().load_state_dict(state)
            return
        collected = state["collected_grads"]
        self._check_names("collected_grads", collected)
        super().load_state_dict(state)
        self.collected_grads = {key: [grad.clone() for grad in grads] for key, grads in collected.items()}

    def _collect(self, masked: dict[str, Tensor], unmasked: list[str]) -> None:
        """Keep this step's gradients; without a block mask they are the signed block sums of w*g."""
        if self.found_inf is not None and self.found_inf.item():
            return
        sums = {key: torch.empty_like(self.scores[key]) for key in unmasked}
        self._update(sums, "mask_sum", 0.0, 1.0)
        scale = 1 if self.grad_scale is None else self.grad_scale
        found = {key: grad.detach() / scale for key, grad in masked.items()} | sums
        for key in self.modules:
            self.collected_grads[key].append(found[key].to("cpu", self.scores[key].dtype))

    def _freeze(self, key: str) -> None:
        module, mask = self.modules[key], self.block_mask(key)
        for parameter in module.parameters() if isinstance(module, nn.Module) else [self.weight(key)]:
            if parameter is not mask:
                parameter.requires_grad_(False)
