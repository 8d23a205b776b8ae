"""One rule of a pruning run at work: the scores and masks of its layers, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._library import packed_size
from .criteria import get_criterion
from .layers import PrunableLayer
from .patterns import parse_pattern
from .recipe import Rule
from .selection import bounds, select_masks


class LayerGroup:
    """The layers that one rule prunes together.

    Args:
        rule: what to prune and how.
        layers: its layers, which the pattern divides.
        modules: name -> module, of these layers.
        regrow: whether a pruned unit may come back.

    Attributes:
        layers: the layers, in the model's order.
        pattern: the parsed pattern.
        schedule: the sparsity by step.
        criterion: the scores.
        reached: the scheduled sparsity for which the masks were selected; None before the first selection.
        masks: name -> packed mask of the units, one bit per entry or block, out x in; empty before the first
            selection.
        stored_masks: the packed masks of the entries in the layout of the stored parameter, in the order of
            ``layers``.

    Raises:
        ValueError, TypeError: a setting of the rule is out of range.
    """

    def __init__(
        self, rule: Rule, layers: list[PrunableLayer], modules: Mapping[str, nn.Module], regrow: bool = False
    ) -> None:
        self.rule = rule
        self.layers = layers
        self.pattern = parse_pattern(rule.pattern)
        self.schedule = rule.plan({layer.name: layer.weight.shape for layer in layers})
        config = {
            **rule.criterion_config,
            "criterion_type": rule.criterion,
            "pattern": self.pattern.spec,
            "block_scores": self.pattern.block is not None,
            "end_step": self.schedule.end_step,
            "collect_grads": False,
        }
        self.criterion = get_criterion(config, modules)
        self.regrow = regrow
        self.reached: float | None = None
        self.masks: dict[str, Tensor] = {}
        self.stored_masks: list[Tensor] = []

    def due(self, step: int) -> bool:
        """Whether the masks are to be selected anew for this step."""
        return self.schedule.at(step) not in (None, self.reached)

    def begin(self, step: int) -> None:
        """The criterion's part at the beginning of a step."""
        if self._scores_at(step):
            self.criterion.on_step_begin()

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
        if not self.regrow:
            self._bury_pruned()
        weights = {layer.name: layer.as_stored(layer.parameter.detach()) for layer in self.layers}
        scores = {layer.name: self._score(layer) for layer in self.layers}
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
        """The mask of a layer's entries, in the shape of the stored parameter."""
        mask = self.mask(layer)
        if self.pattern.block:
            mask = ops.expand_block_mask(mask, self.pattern.block, layer.as_stored(layer.parameter).shape)
        return layer.as_stored(mask)

    def grid(self, layer: PrunableLayer) -> torch.Size:
        """Shape of the mask of a layer's units."""
        return torch.Size(self.pattern.grid(layer.as_stored(layer.parameter).shape))

    def state_dict(self) -> dict[str, Tensor]:
        """``<section>.<layer>`` -> tensor: packed masks, and what a criterion with a memory has collected."""
        state: dict[str, Tensor] = {}
        for section, entries in self._sections().items():
            for name, value in entries.items():
                state[f"{section}.{name}"] = value.detach().clone(memory_format=torch.contiguous_format)
        return state

    def read_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], set[str]]:
        """This group's part of a flat state, for :meth:`take_state`, and its keys there.

        Raises:
            ValueError: an entry is missing or has not the shape that it has here; the message names it.
        """
        names = [layer.name for layer in self.layers]
        keys: set[str] = set()
        sections: dict[str, Any] = {}
        for section, own in self._sections().items():
            found = {name: state[f"{section}.{name}"] for name in names if f"{section}.{name}" in state}
            keys.update(f"{section}.{name}" for name in found)
            if found or (own and section != "masks"):
                for name in names:
                    _check_entry(f"{section}.{name}", found.get(name), self._shape(section, name))
            sections[section] = found
        return sections, keys

    def take_state(self, sections: dict[str, Any], reached: float | None) -> None:
        """Go on from what :meth:`read_state` has read."""
        masks = {name: mask.to(self.device, copy=True) for name, mask in sections.pop("masks").items()}
        if not self.criterion.memoryless:
            self.criterion.load_state_dict(sections)
        self.set_masks(masks, reached)

    @property
    def device(self) -> torch.device:
        """The device of the layers."""
        return self.layers[0].parameter.device

    def _sections(self) -> dict[str, dict[str, Any]]:
        memory = {} if self.criterion.memoryless else self.criterion.state_dict()
        return {"masks": self.masks, **memory}

    def _shape(self, section: str, name: str) -> list[int] | None:
        """The shape that an entry of the state must have; None where that is up to the criterion."""
        if section == "masks":
            layer = next(layer for layer in self.layers if layer.name == name)
            return [packed_size(self.grid(layer).numel())]
        score = self.criterion.scores.get(name)
        return list(score.shape) if section == "scores" and score is not None else None

    def _stored_mask(self, layer: PrunableLayer) -> Tensor:
        if self.pattern.block is None and not layer.transposed:
            return self.masks[layer.name]
        return ops.pack_mask(self.entry_mask(layer))

    def _score(self, layer: PrunableLayer) -> Tensor:
        """A layer's score, out x in; the criterion keeps those of entries in the stored layout."""
        score = self.criterion.scores[layer.name]
        return score if self.criterion.block_scores else layer.as_stored(score)

    def _bury_pruned(self) -> None:
        """Pruned units score -inf and all others more, so that no tie and no NaN lets a mask shrink."""
        for layer in self.layers if self.masks else ():
            score = self._score(layer)
            lowest = torch.finfo(score.dtype).min
            score.nan_to_num_(nan=lowest, posinf=torch.inf, neginf=lowest)
            score.masked_fill_(~self.mask(layer), -torch.inf)

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


def _check_entry(key: str, entry: Tensor | None, shape: list[int] | None) -> None:
    if entry is None:
        raise ValueError(f"load_state_dict: {key!r} is missing")
    if shape is not None and list(entry.shape) != shape:
        raise ValueError(f"load_state_dict: {key!r} has shape {list(entry.shape)}, here it is {shape}")
