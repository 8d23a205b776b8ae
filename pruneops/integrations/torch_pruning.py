"""Torch-Pruning on pruneops: channel importance from weights and gradients in one fused pass for each layer.

In place of its Taylor importance::

    importance = pruneops.integrations.torch_pruning.ChannelImportance("snip")
    pruner = torch_pruning.pruner.MetaPruner(model, example, importance=importance, pruning_ratio=0.5)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import BLOCK_METRICS, Checker

try:
    from torch_pruning.pruner import function
    from torch_pruning.pruner.importance import GroupTaylorImportance
except ImportError as error:
    raise ImportError("this needs Torch-Pruning: pip install 'pruneops[torch-pruning]'") from error

_OUT = (function.prune_conv_out_channels, function.prune_linear_out_channels)
_IN = (function.prune_conv_in_channels, function.prune_linear_in_channels)
_NORM = (function.prune_groupnorm_out_channels, function.prune_layernorm_out_channels)
#: What a metric of a channel's signed sum is for a channel of one entry.
_OF_ONE = {"mask_gradient": "snip", "mask_fisher": "taylor"}


class ChannelImportance(GroupTaylorImportance):
    """The sum of a metric over each channel of the layers that are pruned together.

    ``snip`` is Torch-Pruning's Taylor importance, ``mask_gradient`` its ``multivariable`` form. No product of weight
    and gradient is stored. As there, batch norms do not count.

    Args:
        metric: ``magnitude``, ``gradient``, ``snip``, ``taylor``, ``fisher``, ``mask_gradient`` or ``mask_fisher``;
            see :func:`pruneops.ops.update_block_scores_`.
        group_reduction, normalizer, bias: as of ``torch_pruning.importance.GroupTaylorImportance``.
        target_types: classes of layers that count; by default its own.

    Raises:
        ValueError: the metric is unknown, or on a call a gradient that it reads is missing.

    Example:
        >>> loss.backward()  # doctest: +SKIP
        >>> group = dependency_graph.get_pruning_group(model.conv1, prune_fn, idxs=[0, 1])  # doctest: +SKIP
        >>> ChannelImportance("snip")(group)  # doctest: +SKIP
        tensor([1.2069, 0.7931])
    """

    def __init__(
        self,
        metric: str = "snip",
        group_reduction: str | None = "mean",
        normalizer: str | Callable[[Tensor], Tensor] | None = "mean",
        bias: bool = False,
        target_types: Sequence[type[nn.Module]] | None = None,
    ) -> None:
        Checker("ChannelImportance").choice("metric", metric, list(BLOCK_METRICS))
        types = {} if target_types is None else {"target_types": list(target_types)}
        super().__init__(group_reduction=group_reduction, normalizer=normalizer, bias=bias, **types)
        self.metric = metric

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Importance of the channels of a group, shape (channels,); None where no layer of it counts."""
        found: list[Tensor] = []
        roots: list[list[int]] = []
        for (dependency, indices), member in zip(group, group, strict=True):
            layer = dependency.target.module
            if not isinstance(layer, tuple(self.target_types)):
                continue
            for importance in self._of_layer(layer, dependency.handler, dependency.target.name):
                found.append(importance[indices])
                roots.append(member.root_idxs)
        return self._normalize(self._reduce(found, roots), self.normalizer) if found else None

    def _of_layer(self, layer: Any, pruned: Any, name: str) -> list[Tensor]:
        """What a layer adds for all of its channels along the pruned dimension: the weight's part, and the bias's."""
        if pruned in _IN:
            inputs = self._of_channels(layer.weight, not getattr(layer, "transposed", False), name)
            shared = pruned == function.prune_conv_in_channels and layer.groups not in (1, layer.in_channels)
            return [inputs.repeat(layer.groups) if shared else inputs]
        if pruned in _OUT:
            parts = [self._of_channels(layer.weight, getattr(layer, "transposed", False), name)]
        elif pruned in _NORM and layer.weight is not None:
            parts = [self._of_entries(layer.weight, name)]
        else:
            return []
        return [*parts, self._of_entries(layer.bias, name)] if self.bias and layer.bias is not None else parts

    def _of_channels(self, weight: Tensor, along_columns: bool, name: str) -> Tensor:
        """The metric summed over each row, or each slice along the second dimension."""
        grad = self._gradient(weight, name)
        block = (1, -1)
        if along_columns and weight.dim() == 2:
            block = (-1, 1)
        elif along_columns:
            weight, grad = weight.transpose(0, 1), None if grad is None else grad.transpose(0, 1)
        channels = weight.shape[1 if block == (-1, 1) else 0]
        score = weight.new_empty((1, channels) if block == (-1, 1) else (channels, 1), dtype=_wide(weight))
        ops.update_block_scores_(score, weight.detach(), grad, block=block, metric=self.metric, reduce="sum")
        return score.flatten()

    def _of_entries(self, x: Tensor, name: str) -> Tensor:
        score = torch.empty_like(x, dtype=_wide(x))
        metric = _OF_ONE.get(self.metric, self.metric)
        return ops.update_scores_(score, x.detach(), self._gradient(x, name), metric=metric)

    def _gradient(self, x: Tensor, name: str) -> Tensor | None:
        if not BLOCK_METRICS[self.metric][1]:
            return None
        if x.grad is None:
            raise ValueError(f"ChannelImportance: metric {self.metric!r} reads the gradient of {name}, which has none")
        return x.grad


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
