"""What all criteria share: named scores, and their update in one call for all modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import Checker
from ..layers import stores_in_by_out
from ..patterns import parse_pattern


def setting(config: Any, key: str, default: Any) -> Any:
    """A setting of a mapping, a dataclass or any object with attributes; None there means ``default``."""
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return default if value is None else value


class PruningCriterion:
    """Base of all criteria: named scores that keep their storage from step to step.

    Args:
        modules: name -> module with a ``weight``, or name -> tensor or parameter; a mapping or an ``nn.ModuleDict``.
            Gradients are their ``grad``.
        config: mapping, dataclass or object with these settings, all optional:

            - ``low_memory_usage``: scores in bfloat16; by default float32 (float64 for float64 weights).
            - ``block_scores``: keep one score per block of ``pattern``, never one per weight.
            - ``pattern``: block pattern of the scores, by default ``"4x1"``.
            - ``criterion_reduce_type``: how a block's score comes from its entries, ``mean`` (default), ``sum`` or
              ``max``.
            - ``alpha``, ``beta``: of the criteria with momentum.
            - ``collect_grads``: whether ``retrain_free`` keeps the gradients of each step (default), for a
              rearrangement of its masks as Neural Compressor's; a :class:`pruneops.Pruner` never keeps them.
            - ``missing_is_zero``: a gradient that is missing counts as zeros, as a :class:`pruneops.Pruner` wants it;
              by default it is an error.
            - ``end_step``: last pruning step; a criterion that reads gradients needs it above 0 where it is given.
        framework: ``pytorch``.

    Attributes:
        known_settings: what a pruner's ``criterion_config`` may hold; a class with settings of its own adds them.
        scores: name -> score; empty before the first step for the criteria without momentum. Higher is kept.
        grad_scale: what the gradients are still multiplied by, as one float32 element; None where they are not
            scaled. Set before a hook is called.
        found_inf: one float32 element; where it is not 0 the step is an overflow and changes no score.

    Raises:
        ValueError: a setting is out of range, or the pattern does not divide a weight; the message names it.
        TypeError: ``modules`` is not a mapping, or a value in it has no weight.

    Example:
        >>> class Fisher(PruningCriterion):
        ...     needs_gradient = True
        ...
        ...     def on_before_optimizer_step(self):
        ...         self.update_scores("fisher")
        >>> weight = torch.ones(2, requires_grad=True)
        >>> (3 * weight).sum().backward()
        >>> criterion = Fisher({"fc": weight}, {})
        >>> criterion.on_before_optimizer_step()
        >>> criterion.scores["fc"]
        tensor([9., 9.])
    """

    known_settings = frozenset({"criterion_reduce_type", "low_memory_usage"})
    needs_gradient = False
    #: Each step's score is made anew, so that a step after which nothing is selected need not be scored.
    memoryless = False
    #: A class that sets it scores blocks whatever the config says.
    block_scores = False

    def __init__(self, modules: Mapping[str, Any], config: Any, framework: str = "pytorch") -> None:
        if framework != "pytorch":
            raise ValueError(f"framework must be 'pytorch', got {framework!r}")
        if not isinstance(modules, (Mapping, nn.ModuleDict)):
            raise TypeError(f"modules must map names to modules or tensors, got {type(modules).__name__}")
        end_step = setting(config, "end_step", 1)
        if self.needs_gradient and end_step <= 0:
            raise ValueError(f"{type(self).__name__} reads gradients and needs end_step > 0, got {end_step}")
        self.modules = modules
        self.config = config
        self.framework = framework
        self.scores: dict[str, Tensor] = {}
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self.low_memory_usage = bool(setting(config, "low_memory_usage", False))
        self.missing_is_zero = bool(setting(config, "missing_is_zero", False))
        self.pattern = parse_pattern(setting(config, "pattern", "4x1"))
        self.reduce = setting(config, "criterion_reduce_type", "mean")
        if self.reduce not in ("mean", "sum", "max"):
            raise ValueError(f"criterion_reduce_type must be mean, sum or max, got {self.reduce!r}")
        self.block_scores = self.block_scores or bool(setting(config, "block_scores", False))
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
        """The gradient of a module's weight.

        Raises:
            ValueError: there is none, and it does not count as zeros; the message names the parameter.
        """
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
            # A class that assigns its scores may have one per entry where others have one per block.
            new = [self._score_shape(key), self.weight(key).shape]
            shapes = [self.scores[key].shape] if key in self.scores else new
            if score.shape not in shapes:
                own = list(shapes[0])
                raise ValueError(f"load_state_dict: score {key!r} has shape {list(score.shape)}, here {own}")
        if not saved:
            self.scores.clear()
        for key, score in saved.items():
            if key not in self.scores and score.shape != self._score_shape(key):
                self.scores[key] = torch.empty_like(score, device=self.weight(key).device)
            self._storage([key])[0].copy_(score)

    def _check_names(self, what: str, saved: Mapping[str, Any]) -> None:
        if odd := saved.keys() ^ self.modules.keys():
            raise ValueError(f"load_state_dict: {what} and modules differ in {', '.join(sorted(map(repr, odd)))}")

    def _gradient_of(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.grad is not None:
            return tensor.grad
        frozen = tensor.is_leaf and not tensor.requires_grad
        if self.missing_is_zero and not frozen:
            return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        why = "is frozen (requires_grad=False)" if frozen else "has none: it comes with the backward pass"
        raise ValueError(f"{type(self).__name__} reads the gradient of {name!r}, which {why}")

    def _factor(self, name: str, given: float | None, default: float) -> float:
        """A factor of the formula: as it is given, else by the config, else the default."""
        value = setting(self.config, name, default) if given is None else given
        return Checker(type(self).__name__).number(name, value)

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


def _listed(values: dict[str, Tensor] | None, keys: Iterable[str]) -> list[Tensor] | None:
    return None if values is None else [values[key] for key in keys]
