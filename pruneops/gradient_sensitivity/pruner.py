"""Pruning by gradient sensitivity: attention heads and neurons that leave the model, or weights one by one."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import ops
from .base import Pruner, register_pruner
from .config import read_parameters
from .importance import Importance, StepSums, Target, accumulate_abs, accumulate_elementwise, accumulate_weighted
from .masks import is_masked, matrix_shape, tile_mask
from .model import Model, ModuleModel, as_model
from .structure import Group, find_group, rows_of
from .surgery import check_cut, check_target, cut


@register_pruner("gradient_sensitivity")
class GradientSensitivityPruner(Pruner):
    """Prunes what the loss is least sensitive to.

    With ``parameters`` it is structured: steps from ``start_epoch`` on accumulate the importance of heads or neurons,
    and the end of the first such epoch keeps ``target`` of them in each layer. Of an ``nn.Module`` all weights and
    biases that belong together are cut, whichever of them is named, and the model runs on with smaller layers. A group
    that another pruner has already cut to the same target is left alone, so that a configuration may name its parts in
    several pruners. In a layer whose place in the model is not known, and in a model known only by its interface, only
    the named weights are cut (and the bias of a Linear layer with its rows).

    Without ``parameters`` it prunes weights one by one: each step adds abs(w * g) to their importance, and each epoch
    from ``start_epoch`` to ``end_epoch`` begins with new masks, which every step multiplies into the weights.

    Args:
        model, local_config, global_config: as in :class:`Pruner`; ``parameters`` as in
            :func:`pruneops.gradient_sensitivity.config.read_parameters`.

    Attributes:
        importance: weight name -> tensor: of the weight's shape, or one entry per head or neuron.
        sparsity: of the last epoch that began.
        elementwise_prune: whether weights are pruned one by one.

    Raises:
        ValueError: a key is unknown, a name matches nothing, a stride or transposition does not fit, a target is
            beyond the heads or neurons there are, heads cannot be cut alone, or the pattern does not divide a weight;
            the message names weight and key.
        TypeError: a value or the model is of the wrong kind.

    Example:
        >>> pruner = GradientSensitivityPruner(model, {  # doctest: +SKIP
        ...     "names": ["encoder.layer.*.attention.self.query.weight"],
        ...     "parameters": {"target": 8, "importance_metric": "abs_gradient"},
        ... })
        >>> pruner.on_epoch_begin(0)  # doctest: +SKIP
        >>> for batch in batches:  # doctest: +SKIP
        ...     model.zero_grad()
        ...     loss_of(model, batch).backward()
        ...     pruner.on_step_end()
        >>> pruner.on_epoch_end()  # doctest: +SKIP
    """

    def __init__(self, model: Any, local_config: Any, global_config: Any = None) -> None:
        super().__init__(model, local_config, global_config)
        self.importance: Importance = {}
        self.sparsity = self.initial_sparsity
        self.elementwise_prune = self.parameters is None
        self._active = True
        self._cut_done = False
        self._watching = False
        self._groups: dict[str, Group | None] = {}
        self._targets = [target for pattern in self.weights for target in self._resolve(pattern)]
        self._names = [name for name, _ in self._targets]
        for name, parameters in self._targets:
            if self.elementwise_prune:
                self._check_tiles(name)
            else:
                self._check_target(name, parameters)

    def on_epoch_begin(self, epoch: int) -> None:
        """Look at the head mask from ``start_epoch`` on; elementwise, compute the masks of this epoch."""
        self._active = epoch >= self.start_epoch
        self._groups.clear()
        if self._active and not self._watching and not self._cut_done:
            self._model.watch_inputs(self._masks_of_heads())
            self._watching = True
        self.is_last_epoch = epoch == self.end_epoch
        if self.elementwise_prune:
            self.sparsity = self.update_sparsity(epoch)
            if self.start_epoch <= epoch <= self.end_epoch:
                self.compute_mask()

    def on_step_begin(self, batch_id: int) -> None:
        """Elementwise: multiply the masks into the weights."""
        if self.elementwise_prune:
            self._apply_masks()

    def on_step_end(self) -> None:
        """Add this step's gradients to the importance; elementwise, multiply the masks into the weights too.

        Raises:
            ValueError: a gradient is missing; it names the weight.
        """
        self.on_shared_step_end({})

    def on_shared_step_end(self, sums: StepSums) -> None:
        """:meth:`on_step_end` of a pruner in a list; the parts of one layer in several pruners share their sums."""
        if self.elementwise_prune:
            accumulate_elementwise(self._model, self.importance, self._names)
            self._apply_masks()
        elif self._active and not self._cut_done:
            self._accumulate(self._model, self.importance, self._targets, sums)

    def on_epoch_end(self) -> None:
        """Cut heads and neurons at the end of the first epoch that pruned; elementwise, apply the last masks.

        Raises:
            ValueError: no gradient was seen, or a size does not fit; nothing is written.
        """
        if self.elementwise_prune:
            if self.is_last_epoch:
                self._apply_masks()
        elif cuts := self.plan():
            self._normalize(self.importance, self._targets)
            for name, _ in cuts.values():
                self._cut(self._model, self.importance[name], name, self._parameters_of(name))
            self._cut_done = True
        if self._watching and (self.is_last_epoch or self._cut_done):
            self._model.stop_watching()
            self._watching = False

    def plan(self) -> dict[Hashable, tuple[str, int]]:
        """What :meth:`on_epoch_end` will cut: a key for each group -> (first weight named, heads or neurons kept).

        Raises:
            ValueError: as in :meth:`on_epoch_end`.
        """
        cuts: dict[Hashable, tuple[str, int]] = {}
        if self.elementwise_prune or self._cut_done or not self._active:
            return cuts
        self._groups.clear()  # another pruner may have cut since
        for name, parameters in self._targets:
            self._check_cut(self._model, self.importance, name, parameters)
            group = self._group(self._model, name, parameters)
            cuts.setdefault(name if group is None else group.key, (name, parameters["target"]))
        return cuts

    def parse_weight_name(self, weight_name_pattern: str) -> Iterator[str]:
        """The weights that a name stands for; a ``*`` in it is the layer index.

        While a name is current, ``parameters`` has its ``index`` and importance inputs.

        Raises:
            ValueError: it matches nothing.
        """
        if "*" not in weight_name_pattern or self.parameters is None:
            yield from (name for name, _ in self._resolve(weight_name_pattern))
            return
        own = self.parameters
        try:
            for name, parameters in self._resolve(weight_name_pattern):
                self.parameters = dict(parameters)
                yield name
        finally:
            self.parameters = own

    def compute_mask(self) -> None:
        """Masks of ``sparsity`` from the importance so far, for all weights but vectors; each matrix of a stack."""
        method, ties = self.settings.method, self.settings.ties
        for name in self._names:
            score, stacked = self.importance.get(name), self._model.is_stacked(name)
            if score is not None and is_masked(score.shape, stacked):
                self.masks[name] = tile_mask(score, self.sparsity, self.pattern, method, ties, stacked)

    def prune_weight(self, model: Any, importance: Importance, weight_name: str, parameters: Mapping[str, Any]) -> None:
        """Keep the ``target`` most important heads or neurons of a weight and of all that belongs to it.

        Args:
            model: as in :class:`Pruner`.
            importance: weight name -> importance; with ``normalize`` the entry is divided by its 2-norm.
            weight_name: the weight.
            parameters: see :func:`pruneops.gradient_sensitivity.config.read_parameters`.

        Raises:
            ValueError: sizes do not fit, or there is no importance; nothing is written.
        """
        view, values = self._view(model), read_parameters(parameters)
        self._groups.clear()
        self._check_cut(view, importance, weight_name, values)
        self._normalize(importance, [(weight_name, values)])
        self._cut(view, importance[weight_name], weight_name, values)

    def update_importance_elementwise(self, model: Any, importance: Importance, weight_name: str) -> None:
        """Add abs(w * g) of one weight."""
        accumulate_elementwise(self._view(model), importance, [weight_name])

    def update_importance_abs(
        self, model: Any, importance: Importance, weight_name: str, parameters: Mapping[str, Any]
    ) -> None:
        """Add abs(gradient of the head mask) of one weight's layer."""
        self._accumulate(
            self._view(model), importance, [(weight_name, {**parameters, "importance_metric": "abs_gradient"})]
        )

    def update_importance_weighted(
        self, model: Any, importance: Importance, weight_name: str, parameters: Mapping[str, Any]
    ) -> None:
        """Add abs(sum of w * g over the importance inputs) of one weight's neurons."""
        accumulate_weighted(self._view(model), importance, [(weight_name, parameters)])

    def prune_by_importance(self, tensor: Any, importance: Any, num_instances: int, stride: int) -> Any:
        """The most important slabs of ``stride`` rows each; see :func:`pruneops.ops.prune_by_importance`."""
        return ops.prune_by_importance(tensor, importance, num_instances, stride)

    def _masks_of_heads(self) -> list[str]:
        """The inputs whose gradients are read."""
        if self.parameters is None or self.parameters["importance_metric"] != "abs_gradient":
            return []
        return self.parameters["importance_inputs"][:1]

    def _view(self, model: Any) -> Model:
        return self._model if model is self.model else as_model(model)

    def _resolve(self, pattern: str) -> list[Target]:
        """The weights of a name, each with the parameters that hold for it."""
        names = self._model.names()
        if "*" not in pattern:
            _check_weight(self._model, "names", pattern)
            return [(pattern, self.parameters or {})]
        expression = re.compile(r"(\d+)".join(map(re.escape, pattern.split("*"))))
        found = [(name, match[1]) for name in names if (match := expression.fullmatch(name))]
        if not found:
            raise ValueError(f"names: {pattern!r} matches no weight; the names here begin with {', '.join(names[:3])}")
        return [(name, self._at_layer(index)) for name, index in found]

    def _at_layer(self, index: str) -> dict[str, Any]:
        if self.parameters is None:
            return {}
        inputs = [key.replace("*", index) for key in self.parameters["importance_inputs"]]
        return {**self.parameters, "index": int(index), "importance_inputs": inputs}

    def _parameters_of(self, name: str) -> Mapping[str, Any]:
        return next(parameters for key, parameters in self._targets if key == name)

    def _accumulate(
        self, model: Model, importance: Importance, targets: Sequence[Target], sums: StepSums | None = None
    ) -> None:
        if targets[0][1]["importance_metric"] == "weighted_gradient":
            accumulate_weighted(model, importance, targets, sums)
            return
        groups = {name: self._group(model, name, parameters) for name, parameters in targets}
        accumulate_abs(model, importance, targets, groups)

    def _group(self, model: Model, name: str, parameters: Mapping[str, Any]) -> Group | None:
        """What a weight is cut with; None in a model that is known only by its interface."""
        if not isinstance(model, ModuleModel):
            return None
        if model is not self._model:
            return _find(model, name, parameters)
        if name not in self._groups:
            self._groups[name] = _find(model, name, parameters)
        return self._groups[name]

    def _check_tiles(self, name: str) -> None:
        shape, stacked = self._model.weight(name).shape, self._model.is_stacked(name)
        if is_masked(shape, stacked) and not self.pattern.divides(matrix_shape(shape, stacked)):
            raise ValueError(f"{name!r}: pattern {self.pattern.spec!r} does not divide its shape {list(shape)}")

    def _check_target(self, name: str, parameters: Mapping[str, Any]) -> None:
        """What can be said before any gradient is there."""
        if parameters["importance_metric"] == "weighted_gradient":
            for key in parameters["importance_inputs"]:
                _check_weight(self._model, f"{name!r}: importance_inputs", key)
        group = self._group(self._model, name, parameters)
        if group is None:
            _check_alone(self._model, name, parameters)
            return
        check_target(group, name, parameters["target"])
        if group.kind == "neurons" and parameters["importance_metric"] == "abs_gradient":
            raise ValueError(f"{name!r}: importance_metric 'abs_gradient' measures heads, this weight holds neurons")

    def _check_cut(self, model: Model, importance: Importance, name: str, parameters: Mapping[str, Any]) -> None:
        score = importance.get(name)
        if score is None:
            metric = parameters["importance_metric"]
            raise ValueError(f"{name!r}: no gradient was seen for importance_metric {metric!r}; call on_step_end()")
        group = self._group(model, name, parameters)
        if group is None:
            _check_alone(model, name, parameters, score)
        elif not _is_cut(group, score, parameters["target"]):
            check_cut(group, name, score, parameters["target"])

    def _cut(self, model: Model, score: Tensor, name: str, parameters: Mapping[str, Any]) -> None:
        group = self._group(model, name, parameters)
        if group is None:
            weight, dim = model.weight(name), _dim(model, name, parameters)
            kept = ops.prune_by_importance(weight, score.to(weight.device), parameters["target"],
                                           parameters["stride"] or 1, dim=dim, order=parameters["order"])  # fmt: skip
            model.write(name, cast(Tensor, kept))
        elif not _is_cut(group, score, parameters["target"]):
            cut(group, score, parameters["target"], parameters["order"])
            self._groups.clear()

    def _apply_masks(self) -> None:
        names = [name for name in self._names if name in self.masks]
        weights = [self._model.weight(name) for name in names]
        if not isinstance(self._model, ModuleModel):
            weights = [weight.clone() for weight in weights]
        ops.apply_masks_(weights, [self.masks[name] for name in names])
        if not isinstance(self._model, ModuleModel):
            for name, weight in zip(names, weights, strict=True):
                self._model.write(name, weight)

    @staticmethod
    def _normalize(importance: Importance, targets: Sequence[Target]) -> None:
        """Divide importances by their 2-norm; those that share storage go on sharing it."""
        done: dict[int, Tensor] = {}
        for name, parameters in targets:
            if parameters["normalize"]:
                score = importance[name]
                norm = torch.linalg.vector_norm(score, dim=-1, keepdim=True)
                importance[name] = done.setdefault(id(score), score / (norm + 1e-20))


def _check_weight(model: Model, key: str, name: str) -> None:
    try:
        model.weight(name)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _find(model: ModuleModel, name: str, parameters: Mapping[str, Any]) -> Group:
    """The group of a weight, and whether stride and transposition are its own."""
    stride, transpose = parameters.get("stride"), parameters.get("transpose")
    group = find_group(model.module, name)
    if group is None:
        return rows_of(model.module, name, bool(transpose), stride or 1)
    if stride is not None and stride != group.stride:
        raise ValueError(f"{name!r}: stride {stride} does not fit; its {group.kind} have {group.stride} rows each")
    x = group.slice_of(name)
    if transpose is not None and x.parameter.dim() > 1 and bool(transpose) != (x.dim == 1):
        raise ValueError(f"{name!r}: transpose is {transpose}, but its {group.kind} lie along dimension {x.dim}")
    return group


def _is_cut(group: Group, score: Tensor, target: int) -> bool:
    """Whether a group already has what is asked for, from an importance of more heads or neurons."""
    return group.instances == target and len(score) > target


def _dim(model: Model, name: str, parameters: Mapping[str, Any]) -> int:
    return 1 if parameters["transpose"] and model.weight(name).dim() > 1 else 0


def _check_alone(model: Model, name: str, parameters: Mapping[str, Any], score: Tensor | None = None) -> None:
    """The checks of a weight of which only the interface is known."""
    size, stride, target = (
        model.weight(name).shape[_dim(model, name, parameters)],
        parameters["stride"] or 1,
        parameters["target"],
    )
    instances = size // stride if score is None else len(score)
    if instances * stride != size:
        raise ValueError(f"{name!r}: {instances} instances of stride {stride} do not make its {size} rows")
    if target > instances:
        raise ValueError(f"{name!r}: target {target} is beyond its {instances} instances")
