"""Criteria over the gradient of a block mask: one entry per block, which multiplies the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .base import setting
from .registry import register_criterion
from .weights import MomentumCriterion


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
        self.collects_grads = bool(setting(config, "collect_grads", True))
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
