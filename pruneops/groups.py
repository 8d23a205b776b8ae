"""One rule of a pruning run at work: the scores and masks of its layers, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._checks import Checker
from ._library import packed_size
from .criteria import criterion_class, get_criterion
from .layers import HeldMatrix, PrunableLayer
from .patterns import parse_pattern
from .recipe import Rule
from .selection import bounds, select_masks


class LayerGroup:
    """The layers that one rule prunes together.

    Args:
        rule: what to prune and how.
        layers: its layers, which the pattern divides.
        model: the module in which they have their names.
        regrow: whether a pruned unit may come back.

    Attributes:
        pattern: the parsed pattern.
        schedule: the sparsity by step.
        criterion: the scores.
        reached: the scheduled sparsity for which the masks were selected; None before the first selection.
        masks: name -> packed mask of the units, one bit per entry or block, out x in; empty before the first
            selection.
        stored_masks: the packed masks of the entries in the layout of the stored parameter, in the order of
            ``layers``.

    Raises:
        ValueError, TypeError: a setting of the rule is out of range, or the criterion reads the gradient of a frozen
            weight.
    """

    def __init__(self, rule: Rule, layers: list[PrunableLayer], model: nn.Module, regrow: bool = False) -> None:
        self.rule = rule
        self.pattern = parse_pattern(rule.pattern)
        self.schedule = rule.plan({layer.name: layer.weight.shape for layer in layers})
        self._holders = _holders(model, layers)
        modules = self._scored(layers, model)
        config = {
            **_criterion_config(rule),
            "criterion_type": rule.criterion,
            "pattern": self.pattern.spec,
            "block_scores": self.pattern.block is not None,
            "end_step": self.schedule.end_step,
            "collect_grads": False,
            "missing_is_zero": True,
        }
        self.criterion = get_criterion(config, modules)
        _check_trained(rule, layers if self.criterion.needs_gradient else [])
        self._parameters = {layer.name: layer.parameter for layer in layers}
        self._forms = {layer.name: (layer.transposed, layer.index) for layer in layers}
        self._without_gradient = list(modules) if self.criterion.needs_gradient else []
        self.regrow = regrow
        self.reached: float | None = None
        self.masks: dict[str, Tensor] = {}
        self.stored_masks: list[Tensor] = []

    @property
    def layers(self) -> list[PrunableLayer]:
        """The layers in the model's order, with the parameters that their modules hold now.

        Raises:
            ValueError: a parameter has been replaced by what its mask does not fit.
        """
        self._follow()
        # Made anew: the views that they cache would outlive an assignment to ``parameter.data``.
        return [PrunableLayer(name, x, *self._forms[name]) for name, x in self._parameters.items()]

    @property
    def ended(self) -> bool:
        """Whether the masks are those of the end of the schedule."""
        return self.reached == self.schedule.sparsity

    def due(self, step: int) -> bool:
        """Whether the masks are to be selected anew for this step."""
        target = self.schedule.at(step)
        if target is None or self.reached is None:
            return target is not None
        return target != self.reached if self.regrow else target > self.reached

    def begin(self, step: int) -> None:
        """The criterion's part at the beginning of a step, for which the masks must fit the weights as they are."""
        self._follow()
        if self._scores_at(step):
            self.criterion.on_step_begin()

    def check_gradients(self, step: int) -> None:
        """Before the first masks are selected each layer must have had a gradient; afterwards none counts as zeros.

        Raises:
            ValueError: one has had none.
        """
        self._without_gradient = [name for name in self._without_gradient if self._parameters[name].grad is None]
        if self._without_gradient and self.due(step):
            raise ValueError(
                f"Pruner: masks are due at step {step}, but {self._without_gradient[0]!r} has had no gradient so far, "
                f"which criterion {self.rule.criterion!r} reads: run the backward pass first, begin later "
                "(start_step), or exclude it"
            )

    def score(self, step: int, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """The criterion's part between the backward pass and the optimizer's step."""
        if not self._scores_at(step):
            return
        self.criterion.grad_scale, self.criterion.found_inf = grad_scale, found_inf
        try:
            self.criterion.on_before_optimizer_step()
        finally:
            self.criterion.grad_scale = self.criterion.found_inf = None

    def end(self) -> None:
        """The criterion's part after the optimizer's step."""
        self.criterion.on_after_optimizer_step()

    def _scores_at(self, step: int) -> bool:
        return self.due(step) or not self.criterion.memoryless

    @torch.no_grad()
    def select(self, step: int) -> None:
        """Select the masks that the schedule asks for at this step, from the scores as they are."""
        target = self.schedule.at(step)
        assert target is not None
        layers = self.layers
        weights = {layer.name: layer.weight for layer in layers}
        scores = {layer.name: self._score(layer) for layer in layers}
        if self.masks and not self.regrow:
            for layer in layers:
                self._bury_pruned(layer, scores[layer.name])
        rule = self.rule
        if nm := self.pattern.nm:
            kept = nm[0] if target >= self.schedule.sparsity else nm[1] - int(target * nm[1])
            masks = select_masks(weights, sparsity=None, pattern=f"{kept}:{nm[1]}", scores=scores)
        else:
            # Where all masks exist together they are selected as bits.
            masks = select_masks(weights, sparsity=target, pattern=self.pattern, scope=rule.scope, scores=scores,
                                 min_sparsity=self._lowest_shares(target), max_sparsity=rule.max_sparsity,
                                 packed=rule.scope == "global")  # fmt: skip
        self.set_masks({name: x if x.dtype == torch.uint8 else ops.pack_mask(x) for name, x in masks.items()}, target)

    def set_masks(self, masks: dict[str, Tensor], reached: float | None) -> None:
        """Take these packed unit masks into use."""
        self.masks, self.reached = masks, reached
        self.stored_masks = [self._stored_mask(layer) for layer in self.layers] if masks else []

    def mask(self, layer: PrunableLayer) -> Tensor:
        """The mask of a layer's units, out x in; all kept before the first selection."""
        shape = self.grid(layer)
        if not self.masks:
            return torch.ones(shape, dtype=torch.bool, device=layer.parameter.device)
        return ops.unpack_mask(self.masks[layer.name], shape)

    def entry_mask(self, layer: PrunableLayer) -> Tensor:
        """The mask of a layer's entries, in the shape in which it is stored."""
        mask = self.mask(layer)
        if self.pattern.block:
            mask = ops.expand_block_mask(mask, self.pattern.block, layer.weight.shape)
        return layer.as_stored(mask)

    def grid(self, layer: PrunableLayer) -> torch.Size:
        """Shape of the mask of a layer's units."""
        return torch.Size(self.pattern.grid(layer.weight.shape))

    def state_dict(self) -> dict[str, Tensor]:
        """``<section>.<layer>`` -> tensor: packed masks, and what a criterion with a memory has collected."""
        state: dict[str, Tensor] = {}
        for section, entries in self._sections().items():
            for name, value in entries.items():
                state[f"{section}.{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
        return state

    def read_state(self, state: Mapping[str, Tensor], reached: float) -> tuple[dict[str, Any], set[str]]:
        """This group's part of a flat state, for :meth:`take_state`, and its keys there.

        Raises:
            ValueError: an entry is missing or has not the shape that it has here, and the message names it; or the
                masks have reached a higher sparsity than that of the end here, and only grow.
        """
        if reached > self.schedule.sparsity and not self.regrow:
            raise ValueError(
                f"load_state_dict: the masks of {self.rule.criterion!r}, {self.pattern.spec!r} have reached sparsity "
                f"{reached:.4g}, above the {self.schedule.sparsity:.4g} of the end here, and masks only grow: ask for "
                "no less, or set regrow"
            )
        layers = self.layers
        keys: set[str] = set()
        sections: dict[str, Any] = {}
        for section, own in self._sections().items():
            found = {x.name: state[f"{section}.{x.name}"] for x in layers if f"{section}.{x.name}" in state}
            keys.update(f"{section}.{name}" for name in found)
            if found or (own and section != "masks"):
                for layer in layers:
                    _check_entry(f"{section}.{layer.name}", found.get(layer.name), self._shape(section, layer))
            sections[section] = found
        return sections, keys

    def take_state(self, sections: dict[str, Any], reached: float | None) -> None:
        """Go on from what :meth:`read_state` has read."""
        masks = {name: mask.to(self.device, copy=True) for name, mask in sections.pop("masks").items()}
        if not self.criterion.memoryless:
            self.criterion.load_state_dict(sections)
        # A run that is resumed must not fail where one that was not stopped goes on.
        self._without_gradient = []
        self.set_masks(masks, reached)

    @property
    def device(self) -> torch.device:
        """The device of the layers."""
        return self.layers[0].parameter.device

    def _sections(self) -> dict[str, dict[str, Any]]:
        memory = {} if self.criterion.memoryless else self.criterion.state_dict()
        return {"masks": self.masks, **memory}

    def _shape(self, section: str, layer: PrunableLayer) -> list[int] | None:
        """The shape that an entry of the state must have; None where that is up to the criterion."""
        if section == "masks":
            return [packed_size(self.grid(layer).numel())]
        score = self.criterion.scores.get(layer.name)
        return list(score.shape) if section == "scores" and score is not None else None

    def _scored(self, layers: list[PrunableLayer], model: nn.Module) -> dict[str, nn.Module | HeldMatrix]:
        """What the criterion scores: the modules, but where a layer is no module's weight."""
        modules = dict(model.named_modules(remove_duplicate=False))
        held = {x.name: HeldMatrix(*self._holders[x.name][0], x) for x in layers if x.name not in modules}
        return {layer.name: held.get(layer.name) or modules[layer.name] for layer in layers}

    def _stored_mask(self, layer: PrunableLayer) -> Tensor:
        if self.pattern.block is None and not layer.transposed:
            return self.masks[layer.name]
        return ops.pack_mask(self.entry_mask(layer))

    def _score(self, layer: PrunableLayer) -> Tensor:
        """The scores of a layer's units, out x in; the criterion keeps those of entries in the stored layout."""
        score = self.criterion.scores[layer.name]
        if self.pattern.block is None:
            return layer.as_stored(score)
        if score.shape == self.grid(layer):
            return score
        # A criterion that assigns its scores may have one per entry.
        return ops.block_reduce(layer.as_stored(score), self.pattern.block, self.criterion.reduce)

    def _bury_pruned(self, layer: PrunableLayer, score: Tensor) -> None:
        """Pruned units score -inf and all others more, so that no tie and no NaN lets a mask shrink."""
        lowest = torch.finfo(score.dtype).min
        score.nan_to_num_(nan=lowest, posinf=torch.inf, neginf=lowest)
        score.masked_fill_(~self.mask(layer), -torch.inf)

    def _follow(self) -> None:
        """Take the parameters that the modules hold now; ``load_state_dict(assign=True)`` replaces them."""
        for name, known in self._parameters.items():
            held = [module._parameters.get(key) for module, key in self._holders[name]]
            if any(parameter is not known for parameter in held):
                self._parameters[name] = _replaced(name, known, held)

    def _lowest_shares(self, target: float) -> float | dict[str, float] | None:
        """The lowest sparsity of each layer on the way to the rule's, such that no mask need ever shrink.

        If the rest of the budget is just enough to bring all layers to the rule's lowest sparsity, that is what it
        must be spent on from now on: the layers are brought there one after the other.
        """
        rule, final = self.rule, self.schedule.sparsity
        if rule.min_sparsity is None or target >= final:
            return rule.min_sparsity
        names = [layer.name for layer in self.layers]
        sizes = [self.grid(layer).numel() for layer in self.layers]
        low, _ = bounds(names, sizes, rule.min_sparsity, rule.max_sparsity)
        due = sum(low) - (int(final * sum(sizes)) - int(target * sum(sizes)))
        shares = {}
        for name, size, count in zip(names, sizes, low, strict=True):
            shares[name] = min(max(due, 0), count) / max(size, 1)
            due -= count
        return shares


class FixedGroup(LayerGroup):
    """Layers whose masks stay as they are given; nothing is scored and nothing selected.

    Args:
        layers: the layers.
        model: the module that holds them.
        masks: name -> bool mask of the entries in the shape in which they are stored, True = keep.

    Raises:
        ValueError: a mask has not the shape of its weight, or nothing is kept.
        TypeError: a mask is not a bool tensor.
    """

    def __init__(self, layers: list[PrunableLayer], model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        check = Checker("Pruner.from_masks")
        for layer in layers:
            mask = check.tensor("masks", masks[layer.name], layer.name)
            check.dtype("masks", mask, torch.bool, layer.name)
            check.shape("masks", mask, layer.as_stored(layer.weight).shape, layer.name, of="weights")
        total = sum(layer.weight.numel() for layer in layers)
        kept = sum(int(masks[layer.name].count_nonzero()) for layer in layers)
        rule = Rule(criterion="magnitude", pattern="1x1", sparsity=(total - kept) / max(total, 1), end_step=0)
        super().__init__(rule, layers, model, regrow=True)
        self.rule = replace(rule, criterion="given masks")
        self.set_masks({x.name: self._packed(x, masks[x.name]) for x in layers}, self.schedule.sparsity)

    @property
    def ended(self) -> bool:
        return True

    def due(self, step: int) -> bool:
        return False

    def _scored(self, layers: list[PrunableLayer], model: nn.Module) -> dict[str, nn.Module | HeldMatrix]:
        return {}

    @staticmethod
    def _packed(layer: PrunableLayer, mask: Tensor) -> Tensor:
        return ops.pack_mask(layer.as_stored(mask.to(layer.parameter.device)))


def _criterion_config(rule: Rule) -> Mapping[str, Any]:
    """The rule's settings of its criterion, which must know them."""
    config = {} if rule.criterion_config is None else rule.criterion_config
    if not isinstance(config, Mapping):
        raise TypeError(f"criterion_config must map names to settings, got {type(config).__name__}")
    known = criterion_class(rule.criterion).known_settings
    if odd := [key for key in config if key not in known]:
        raise ValueError(
            f"criterion_config has an unknown setting {odd[0]!r}; criterion {rule.criterion!r} knows "
            f"{', '.join(sorted(known))}"
        )
    return config


def _check_trained(rule: Rule, layers: list[PrunableLayer]) -> None:
    frozen = [layer.name for layer in layers if not layer.parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"Pruner: criterion {rule.criterion!r} reads gradients, but {len(frozen)} of {len(layers)} weights are "
            f"frozen (requires_grad=False), {frozen[0]!r} first: exclude them, or choose criterion 'magnitude'"
        )


def _holders(model: nn.Module, layers: list[PrunableLayer]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Layer -> the modules that hold its parameter, with its name in each."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append((module, key))
    return {layer.name: holders[id(layer.parameter)] for layer in layers}


def _replaced(name: str, known: nn.Parameter, held: list[nn.Parameter | None]) -> nn.Parameter:
    """The parameter that has taken the place of a known one in all modules that hold it."""
    new = held[0]
    if new is None or new.shape != known.shape or type(new.data) is not Tensor or any(x is not new for x in held):
        raise ValueError(
            f"Pruner: the weight of {name!r} has been replaced by what its mask does not fit, which belongs to a "
            f"parameter of shape {list(known.shape)}, the same one in all modules that share it"
        )
    return new


def _check_entry(key: str, entry: Tensor | None, shape: list[int] | None) -> None:
    if entry is None:
        raise ValueError(f"load_state_dict: {key!r} is missing")
    if shape is not None and list(entry.shape) != shape:
        raise ValueError(f"load_state_dict: {key!r} has shape {list(entry.shape)}, here it is {shape}")
