"""Pruning while training: hooks on the optimizer that score, select and mask."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import ops
from .groups import FixedGroup, LayerGroup
from .layers import Patterns, PrunableLayer, find_layers, unlayered_weights, unwrapped
from .patterns import Pattern, parse_pattern
from .pruning import divisible_layers, layer_reports
from .recipe import Rule, make_rules, read_recipe, renamed
from .report import LayerMasks, PruneReport

_ENTRIES = parse_pattern("1x1")
_BY_HAND = (
    "With several optimizers give none, and call on_before_optimizer_step() before the first one's step and "
    "on_after_optimizer_step() after the last one's"
)


class Pruner:
    """Prunes a model while it is trained, to an exact sparsity.

    Each step of the optimizer then does this, without a change to the training loop:

    1. before it, the criterion scores the weights from the gradients that the optimizer is about to use: summed over
       accumulated batches, unscaled, and clipped if the loop clips. Where the schedule asks for more sparsity, new
       masks are selected;
    2. after it, all pruned entries are set to +0.0, in one call for all layers.

    After step ``end_step`` exactly ``int(sparsity * n)`` of the n units (entries, or blocks) are pruned. A step that
    a ``GradScaler`` skips for an overflow changes no score, and is not counted; with a fused optimizer, which skips
    on the device, it is counted, and a selection that was due is made up for in the next step.

    Masks only grow, unless ``regrow``. They take one bit per weight; scores take 4 bytes per weight (2 with
    ``low_memory_usage``), or per block where the pattern has blocks.

    A gradient that is missing in a step, as that of an expert to which nothing was routed, counts as zeros. A weight
    that is replaced in its module, as by ``load_state_dict(assign=True)``, is followed. A pruner that is copied or
    pickled together with its model and optimizer prunes the copies.

    Args:
        model: the module to prune, on one device. What ``torch.compile`` or data-parallel wrappers made is unwrapped.
            Its layers are those of :func:`pruneops.layers.find_layers`, each stacked matrix one of its own.
        optimizer: the optimizer that steps its parameters; a wrapper such as accelerate's is unwrapped. None to call
            :meth:`on_step_begin`, :meth:`on_before_optimizer_step` and :meth:`on_after_optimizer_step` by hand.
        criterion, pattern, sparsity, scope, schedule, start_step, end_step, frequency, initial_sparsity, include,
            exclude, min_sparsity, max_sparsity, criterion_config: see :class:`pruneops.recipe.Rule`. Steps are those
            of the optimizer. By default the sparsity is 0.8, or what an N:M pattern gives, and the masks change a
            hundred times on the way. On the way to N:M, fewer of each M are pruned.
        rules: groups of layers with settings of their own, as mappings; what a rule does not say is taken from the
            arguments here. A layer belongs to the first rule that names it. Each has its own budget.
        on_indivisible: a layer that the pattern does not divide: ``skip`` (one warning lists them) or ``error``.
        regrow: pruned units compete again at each selection.
        mask_gradients: zero the gradients of pruned weights before the optimizer sees them.
        mask_optimizer_state: zero what the optimizer keeps for pruned weights, such as momentum, after each step.

    Attributes:
        step: optimizer steps so far.

    Raises:
        ValueError: a setting is unknown or out of range, nothing is left to prune, the optimizer does not hold a
            weight, or the criterion reads the gradient of a frozen one.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = Pruner(model, optimizer, sparsity=0.75, pattern="4x1", end_step=10)
        >>> for _ in range(10):
        ...     model(torch.randn(2, 8)).square().sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.detach().sparsity
        0.75
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        criterion: str = "snip_momentum",
        pattern: str | Pattern = "4x1",
        sparsity: float | None = None,
        scope: str = "global",
        schedule: str = "cubic",
        start_step: int = 0,
        end_step: int | None = None,
        frequency: int | None = None,
        initial_sparsity: float = 0.0,
        include: Patterns = None,
        exclude: Patterns = None,
        min_sparsity: float | None = None,
        max_sparsity: float | None = None,
        criterion_config: Mapping[str, Any] | None = None,
        rules: Sequence[Mapping[str, Any]] | None = None,
        on_indivisible: str = "skip",
        regrow: bool = False,
        mask_gradients: bool = False,
        mask_optimizer_state: bool = False,
    ) -> None:
        settings = {
            "criterion": criterion, "pattern": pattern, "sparsity": sparsity, "scope": scope, "schedule": schedule,
            "start_step": start_step, "end_step": end_step, "frequency": frequency, "include": include,
            "exclude": exclude, "initial_sparsity": initial_sparsity, "min_sparsity": min_sparsity,
            "max_sparsity": max_sparsity, "criterion_config": criterion_config,
        }  # fmt: skip
        model = unwrapped(model)
        groups, skipped = _make_groups(model, make_rules(settings, rules), on_indivisible, regrow)
        self._skipped, self._unlayered = tuple(skipped), unlayered_weights(model, stacked=True)
        self._start(optimizer, groups, mask_gradients, mask_optimizer_state)

    def _start(
        self,
        optimizer: Optimizer | None,
        groups: list[LayerGroup],
        mask_gradients: bool,
        mask_optimizer_state: bool,
    ) -> None:
        self.step = 0
        self.mask_gradients = mask_gradients
        self.mask_optimizer_state = mask_optimizer_state
        self._groups = groups
        self._optimizer = optimizer if optimizer is None else _innermost(optimizer)
        self._begun = False
        self._handles: list[Any] = []
        if self._optimizer is not None:
            self._check_held(self._optimizer)
            self._hook(self._optimizer)

    @classmethod
    def from_recipe(
        cls, model: nn.Module, optimizer: Optimizer | None, recipe: str | Path | Mapping[str, Any], **settings: Any
    ) -> Pruner:
        """A pruner from a recipe.

        Args:
            model, optimizer: as in the constructor.
            recipe: a YAML file, see :func:`pruneops.recipe.read_recipe`, or its content as a mapping.
            settings: further arguments of the constructor; stronger than the recipe.
        """
        content = recipe if isinstance(recipe, Mapping) else read_recipe(recipe)
        return cls(model, optimizer, **(renamed(content) | settings))

    @classmethod
    def from_masks(
        cls,
        model: nn.Module,
        optimizer: Optimizer | None,
        masks: Mapping[str, Tensor] | None = None,
        *,
        mask_gradients: bool = False,
        mask_optimizer_state: bool = False,
    ) -> Pruner:
        """A pruner that keeps given masks while the model is trained on: nothing is scored, no mask changes.

        The pruned weights are zero from now on, and after each step of the optimizer.

        Args:
            model, optimizer, mask_gradients, mask_optimizer_state: as in the constructor.
            masks: layer name -> bool mask in the shape of the stored weight, True = keep, such as ``report.masks`` of
                :func:`pruneops.prune` or what :func:`pruneops.mask_files.load_masks` returns. None is the zeros that
                are there in the layers that are pruned by default.

        Raises:
            ValueError: a name is none of a layer, a mask has not the shape of its weight, or all is pruned; nothing
                is changed.
            TypeError: a mask is not a bool tensor.

        Example:
            >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
            >>> masks = pruneops.prune(model, 0.5, pattern="2:4").masks
            >>> optimizer = torch.optim.AdamW(model.parameters())
            >>> pruner = Pruner.from_masks(model, optimizer, masks)
            >>> model(torch.randn(2, 8)).square().sum().backward()
            >>> optimizer.step()
            >>> [bool((layer.weight[~masks[name]] == 0).all()) for name, layer in model.named_children()]
            [True, True]
        """
        model = unwrapped(model)
        layers = find_layers(model, None if masks is None else [escape(name) for name in masks], stacked=True)
        if masks is None:
            masks = {layer.name: layer.as_stored(layer.weight) != 0 for layer in layers}
        if odd := sorted(masks.keys() - {layer.name for layer in layers}):
            raise ValueError(
                f"Pruner.from_masks: masks[{odd[0]!r}] must have the name of its layer, that of the first module which "
                "holds the weight"
            )
        pruner = cls.__new__(cls)
        pruner._skipped, pruner._unlayered = (), unlayered_weights(model, stacked=True)
        pruner._start(optimizer, [FixedGroup(layers, model, masks)], mask_gradients, mask_optimizer_state)
        pruner.apply_masks()
        return pruner

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": bool(self._handles)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Optimizers drop their hooks when they are copied or pickled.
        hooked = state.pop("_handles")
        self.__dict__.update(state, _handles=[])
        if hooked:
            self._hook(state["_optimizer"])

    @property
    def layers(self) -> list[PrunableLayer]:
        """The layers that are pruned, group by group."""
        return [layer for group in self._groups for layer in group.layers]

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name -> bool mask of the entries in the shape in which they are stored, True = keep; made anew each time."""
        return {layer.name: group.entry_mask(layer) for group in self._groups for layer in group.layers}

    @property
    def scores(self) -> dict[str, Tensor]:
        """Name -> score, the criterion's own tensor; -inf where a unit was pruned before the last selection."""
        return {name: score for group in self._groups for name, score in group.criterion.scores.items()}

    def on_step_begin(self) -> None:
        """Begin a step; between two optimizer steps only the first call counts. Without one it is implied."""
        if self._begun:
            return
        for group in self._groups:
            group.begin(self.step + 1)
        self._begun = True

    def on_before_optimizer_step(self, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
        """Score, and select masks where the schedule asks for it; to call between backward and optimizer step.

        Args:
            grad_scale: what the gradients are still multiplied by, one float32 element.
            found_inf: one float32 element; not 0 after an overflow.

        Raises:
            ValueError: masks are due, and a layer has never had the gradient that the criterion reads; or a weight
                has been frozen, or replaced by what its mask does not fit. The message names it.
        """
        self.on_step_begin()
        step = self.step + 1
        due = [group for group in self._groups if group.due(step)]
        # Only a step with a selection waits for the device.
        if due and found_inf is not None and found_inf.item():
            return
        for group in self._groups:
            group.check_gradients(step)
        for group in self._groups:
            group.score(step, grad_scale, found_inf)
        for group in due:
            group.select(step)
        if self.mask_gradients:
            self._apply(lambda parameter: [parameter.grad])

    def on_after_optimizer_step(self) -> None:
        """Mask the weights and count the step; to call after the optimizer's step."""
        for group in self._groups:
            group.end()
        self.apply_masks()
        self.step += 1
        self._begun = False

    def apply_masks(self) -> None:
        """Zero the pruned weights, and the optimizer's state for them if that was asked for."""
        self._apply(lambda parameter: [parameter, *self._state_of(parameter)])

    def remove_hooks(self) -> None:
        """Leave the optimizer alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def detach(self) -> PruneReport:
        """Take the hooks off: what is left is a plain model with zeros.

        Returns:
            The report. A warning says so where the schedule has not come to its end.
        """
        self.remove_hooks()
        self.apply_masks()
        for group in self._groups:
            if not group.ended:
                warnings.warn(
                    f"Pruner: detached after step {self.step} of {group.schedule.end_step}, at the scheduled sparsity "
                    f"{group.reached or 0.0:.4g} instead of {group.schedule.sparsity:.4g}",
                    UserWarning,
                    stacklevel=2,
                )
        return self.report()

    def report(self) -> PruneReport:
        """Counts per layer and in total, as they are now, and the masks."""
        rules = [group.rule for group in self._groups]
        layers, masks = self.layers, self.masks
        as_seen = {layer.name: layer.as_stored(masks[layer.name]) for layer in layers}
        return PruneReport(
            layers=layer_reports(layers, masks),
            criterion=_joined(rule.criterion for rule in rules),
            pattern=_joined(group.pattern.spec for group in self._groups),
            scope=_joined(rule.scope for rule in rules),
            seconds={},
            skipped=self._skipped,
            masks=LayerMasks(layers, as_seen, _ENTRIES),
            unlayered=self._unlayered,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, as a flat dict of tensors that safetensors can save.

        ``step``; ``reached``, the scheduled sparsity of each group (NaN before its first selection);
        ``masks.<layer>``, packed masks of units; ``scores.<layer>`` of criteria with a memory.
        """
        reached = [torch.nan if group.reached is None else group.reached for group in self._groups]
        state = {"step": torch.tensor(self.step), "reached": torch.tensor(reached, dtype=torch.float64)}
        for group in self._groups:
            state |= group.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where :meth:`state_dict` was taken; the model and its optimizer are loaded by their owner.

        Raises:
            ValueError: it belongs to other layers or other settings, or to masks of a higher sparsity than that of
                the end here, which would have to shrink; nothing is changed.
        """
        known = {"step", "reached"}
        if missing := sorted(known - state.keys()):
            raise ValueError(f"load_state_dict: {missing[0]!r} is missing")
        reached = state["reached"].tolist()
        if len(reached) != len(self._groups):
            raise ValueError(
                f"load_state_dict: the state has {len(reached)} groups of layers, here {len(self._groups)}"
            )
        read = [group.read_state(state, target) for group, target in zip(self._groups, reached, strict=True)]
        if odd := sorted(state.keys() - known.union(*(keys for _, keys in read))):
            raise ValueError(f"load_state_dict: the state has entries for other layers or settings: {', '.join(odd)}")
        for group, (sections, _), target in zip(self._groups, read, reached, strict=True):
            group.take_state(sections, None if math.isnan(target) else target)
        self.step = int(state["step"])
        self._begun = False

    def _hook(self, optimizer: Optimizer) -> None:
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _check_held(self, optimizer: Optimizer) -> None:
        """Each pruned weight that is trained is a parameter of the optimizer."""
        held = {id(x) for group in optimizer.param_groups for x in group["params"]}
        for layer in self.layers:
            if layer.parameter.requires_grad and id(layer.parameter) not in held:
                raise ValueError(
                    f"Pruner: the optimizer does not hold the weight of {layer.name!r}. Frameworks that train copies "
                    "of the weights (DeepSpeed, FSDP with flat parameters) hide the gradients; give the optimizer the "
                    f"model's own parameters, or exclude the layer. {_BY_HAND}"
                )

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The arguments begin with the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and any(group.criterion.needs_gradient for group in self._groups):
            raise ValueError("Pruner: with a closure the gradients come inside optimizer.step(), too late to be scored")
        self._check_held(optimizer)
        # Where GradScaler leaves the unscaling to a fused optimizer, it sets these two for the time of the step.
        grad_scale, found_inf = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        self.on_before_optimizer_step(grad_scale, found_inf)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.on_after_optimizer_step()

    def _state_of(self, parameter: nn.Parameter) -> list[Tensor]:
        """What the optimizer keeps for each entry of a parameter."""
        if not self.mask_optimizer_state or self._optimizer is None:
            return []
        state = self._optimizer.state.get(parameter, {})
        return [x for x in state.values() if isinstance(x, Tensor) and x.shape == parameter.shape]

    def _apply(self, tensors_of: Callable[[nn.Parameter], Sequence[Tensor | None]]) -> None:
        """Zero the pruned entries of tensors that belong to a parameter, over all layers in one call."""
        tensors: list[Tensor] = []
        masks: list[Tensor] = []
        for group in self._groups:
            # There are no masks before the first selection.
            for layer, mask in zip(group.layers, group.stored_masks, strict=bool(group.stored_masks)):
                found = [layer.part(x.detach()) for x in tensors_of(layer.parameter) if x is not None]
                tensors += found
                masks += [mask] * len(found)
        if tensors:
            ops.apply_masks_(tensors, masks)


def _make_groups(
    model: nn.Module, rules: list[Rule], on_indivisible: str, regrow: bool
) -> tuple[list[LayerGroup], list[str]]:
    """A group for each rule, and the names of the layers that its pattern does not divide."""
    groups: list[LayerGroup] = []
    skipped: list[str] = []
    taken: set[str] = set()
    for rule in rules:
        found = [x for x in find_layers(model, rule.include, rule.exclude, stacked=True) if x.name not in taken]
        form = parse_pattern(rule.pattern)
        layers, odd = divisible_layers(found, form, on_indivisible, "Pruner")
        # A layer that its rule had to skip is not left to the next one.
        taken.update(layer.name for layer in found)
        skipped += odd
        groups.append(LayerGroup(rule, layers, model, regrow))
    return groups, skipped


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside wrappers such as accelerate's, whose own hooks never run."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}. {_BY_HAND}")
    return optimizer


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
