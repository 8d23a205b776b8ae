"""Selection for Neural Compressor's patterns: its counts, bounds and rule for ties, on exact global selection.

Its own rules stay in charge: how many units are left to prune (``update_residual_cnt``) and which layers a bound
stops (``adjust_ratio``). What they count and rank is replaced: one mask over all scores in place of a copy of them
and ``kthvalue``, and counts of units that are known already in place of passes over masks, for every layer and layer.
A unit is a block of an N x M pattern, or a group of M entries of an N:M pattern.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._library import block_grid

#: Attributes of a pattern, in the order in which ``adjust_ratio`` takes them.
_BOUNDS = ("max_sparsity_ratio_per_op", "min_sparsity_ratio_per_op", "target_sparsity_ratio")


def with_selection(pattern: type, groups: bool) -> type:
    """A subclass of a pattern that selects with pruneops, of the same name, since pruners compare that.

    Args:
        pattern: Neural Compressor's class.
        groups: whether it is the one of N:M.
    """
    return type(pattern.__name__, (_Groups if groups else _Blocks, pattern), {})


class _Count(NamedTuple):
    """Pruned units of a layer; the fields have the names by which Neural Compressor's rules read them."""

    zero_cnt: int
    total_cnt: int
    sparsity_ratio: float

    @classmethod
    def of(cls, unit: Tensor) -> _Count:
        zeros = unit.numel() - int(unit.count_nonzero())
        return cls(zeros, unit.numel(), zeros / max(unit.numel(), 1))


class _Selection:
    """What both patterns share; mixed into a class of Neural Compressor, which has the other attributes."""

    block: bool
    keep_mask_layers: dict[str, bool]
    invalid_layers: list[str]
    modules: dict[str, Any]
    config: Any
    adjust_ratio: Any
    update_residual_cnt: Any
    get_reduced_masks_from_data: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._known: dict[str, tuple[Tensor, _Count]] = {}
        super().__init__(*args, **kwargs)

    def get_masks_global(
        self, scores: dict[str, Tensor], cur_target_sparsity_ratio: float, pre_masks: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """``pre_masks`` with the masks of the layers that are selected anew; called for each layer in local scope."""
        left = self.update_residual_cnt(pre_masks, self._of_units(cur_target_sparsity_ratio))
        if left > 0:
            for key, unit in self._select(scores, left, pre_masks).items():
                mask = unit if self.block else self._expanded(key, unit)
                pre_masks[key] = mask.to(pre_masks[key].dtype)
                self._known[key] = (pre_masks[key], _Count.of(unit))
        return pre_masks

    def _select(self, scores: dict[str, Tensor], left: int, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks of units that prune ``left`` of them; what a bound stops keeps its own share of the count."""
        free = [key for key in scores if key not in self.invalid_layers and not self.keep_mask_layers.get(key)]
        units = {key: self._unit_scores(key, scores[key]) for key in free}
        counts, _ = self.get_sparsity_ratio_each_layer(masks)
        bounds = [self._of_units(getattr(self, name)) for name in _BOUNDS]
        chosen: dict[str, Tensor] = {}
        before: list[str] = []
        while left > 0 and free and free != before:
            keep = sum(units[key].numel() for key in free) - left
            found = ops.topk_mask([units[key] for key in free], keep=max(keep, 0), ties="threshold")
            for key, mask in zip(free, found, strict=True):
                count = _Count.of(mask)
                adjust, share = self.adjust_ratio(counts, key, count, *bounds)
                if adjust:
                    self.keep_mask_layers[key] = True
                    keep = mask.numel() - max(int(share * mask.numel()), 0)
                    mask = ops.topk_mask(units[key], keep=keep, ties="threshold")
                    count = _Count.of(mask)
                    left -= count.zero_cnt
                chosen[key], counts[key] = mask, count
            before, free = free, [key for key in free if not self.keep_mask_layers.get(key)]
        return chosen

    def get_sparsity_ratio_each_layer(self, masks: dict[str, Any]) -> tuple[dict[str, _Count], _Count]:
        """Counts by layer and in all, of masks or of counts that are known already."""
        counts = {key: self._count(key, mask) for key, mask in masks.items() if key not in self.invalid_layers}
        zeros = sum(count.zero_cnt for count in counts.values())
        total = sum(count.total_cnt for count in counts.values())
        return counts, _Count(zeros, total, zeros / max(total, 1))

    def get_sparsity_ratio(self, pre_masks: dict[str, Tensor], return_dict: bool = False) -> Any:
        _, count = self.get_sparsity_ratio_each_layer(pre_masks)
        count = count._replace(sparsity_ratio=self._of_weights(count.sparsity_ratio))
        return count._asdict() if return_dict else count.sparsity_ratio

    def _count(self, key: str, mask: Any) -> _Count:
        if isinstance(mask, _Count):
            return mask
        if self.block:
            return _Count.of(mask)
        if key not in self._known or self._known[key][0] is not mask:
            self._known[key] = (mask, _Count.of(self.get_reduced_masks_from_data(mask, key)))
        return self._known[key][1]

    def _of_units(self, share: float) -> float:
        """A share of weights as one of units."""
        return share

    def _of_weights(self, share: float) -> float:
        return share

    def _unit_scores(self, key: str, score: Tensor) -> Tensor:
        raise NotImplementedError

    def _expanded(self, key: str, unit: Tensor) -> Tensor:
        raise NotImplementedError


class _Blocks(_Selection):
    block_size: dict[str, list[int]]

    def _unit_scores(self, key: str, score: Tensor) -> Tensor:
        grid = block_grid(self.block_size[key], self.modules[key].weight.shape)
        if score.shape == grid:
            return score
        return ops.block_reduce(score, self.block_size[key], self.config["criterion_reduce_type"])

    def _expanded(self, key: str, unit: Tensor) -> Tensor:
        shape = self.modules[key].weight.shape
        return unit if unit.shape == shape else ops.expand_block_mask(unit, self.block_size[key], shape)


class _Groups(_Selection):
    """A pruned group loses its N lowest entries, and those that tie with them; it is ranked by what it loses."""

    N: int
    M: int
    _reshape_orig_to_2dims: Any
    _reshape_2dims_to_orig: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lost: dict[str, Tensor] = {}
        super().__init__(*args, **kwargs)

    def _of_units(self, share: float) -> float:
        return share * self.M / self.N

    def _of_weights(self, share: float) -> float:
        return share * self.N / self.M

    def _unit_scores(self, key: str, score: Tensor) -> Tensor:
        score = self._reshape_orig_to_2dims(score)
        self._lost[key] = lost = _lowest_with_ties(score, self.N, self.M)
        return ops.block_reduce(
            ops.apply_masks_(score.clone(), lost), (1, self.M), self.config["criterion_reduce_type"]
        )

    def _expanded(self, key: str, unit: Tensor) -> Tensor:
        kept = self._lost.pop(key).logical_not_()
        # Side by side: units of so few entries are expanded four times as fast as by ``expand_block_mask``.
        mask = kept.logical_or_(torch.stack([unit] * self.M, -1).view(kept.shape))
        return self._reshape_2dims_to_orig(mask, self.modules[key].weight.shape)


def _lowest_with_ties(score: Tensor, n: int, m: int) -> Tensor:
    """Mask of the ``n`` lowest of each ``m`` consecutive entries, and of those that tie with the n-th."""
    # Of equals N:M masks keep the earlier. So here the later are among the lowest, and by the negated score the
    # earlier: the two masks differ in the groups in which the n-th lowest ties with the next, and in no other.
    lowest, earlier = ops.nm_mask(score, m - n, m).logical_not_(), ops.nm_mask(-score, n, m)
    differs = earlier.logical_xor_(lowest)
    if differs.count_nonzero():
        tied = differs.view(-1, m).any(1)
        groups = score.reshape(-1, m)[tied]
        lowest.view(-1, m)[tied] = groups <= groups.kthvalue(n, keepdim=True).values
    return lowest
