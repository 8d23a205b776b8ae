"""Mask selection over named weights: global, per layer, per row, N:M and blocks, with exact counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from ._checks import BLOCK_METRICS, SCORE_METRICS, Checker
from ._library import compute_dtype, digit_rounds, digit_shift
from .patterns import Pattern, parse_pattern

SCOPES = ("global", "local", "row")


def select_masks(
    weights: Mapping[str, Tensor],
    *,
    sparsity: float | None,
    pattern: str | Pattern = "1x1",
    scope: str = "global",
    metric: str = "magnitude",
    scores: Mapping[str, Tensor] | None = None,
    grads: Mapping[str, Tensor] | None = None,
    input_norms: Mapping[str, Tensor] | None = None,
    min_sparsity: float | Mapping[str, float] | None = None,
    max_sparsity: float | None = None,
    packed: bool = False,
) -> dict[str, Tensor]:
    """Masks that keep the highest-scoring units of named weights.

    A unit is an entry, or a block where the pattern has blocks. Of n units exactly ``int(sparsity * n)`` are
    pruned: n counts all weights for ``global``, one weight for ``local``, one row of the score matrix for ``row``
    (a conv weight's output channel is a row). Among equals the earlier unit is kept (earlier weight, then lower
    row-major index). An N:M pattern fixes sparsity and scope itself.

    With ``min_sparsity`` or ``max_sparsity`` the global selection keeps each weight between the two, and the total
    is still ``int(sparsity * n)``: the result is the best-scoring selection under these bounds.

    Args:
        weights: name -> tensor, out x in or conv (O, I, k...), float32, bfloat16, float16 or float64; all on one
            device; the pattern divides each.
        sparsity: share of units to prune, 0 <= sparsity < 1. With an N:M pattern None, or ``1 - n/m``.
        pattern: see :func:`pruneops.parse_pattern`.
        scope: ``global``, ``local`` or ``row``.
        metric: what is ranked, computed on the fly: ``magnitude``, ``gradient``, ``snip``, ``taylor``, ``fisher``;
            for blocks its mean over the block, or ``mask_gradient``, ``mask_fisher`` (see
            :func:`pruneops.ops.update_block_scores_`). No weight-sized score is stored. ``wanda`` is abs(w) times
            the norm of the weight's input (Sun et al., 2024), for weights with two dimensions.
        scores: ranked instead of a metric: name -> tensor of the weight's shape (blocks take its mean) or, for
            block patterns, of the grid of blocks.
        grads: name -> gradient of the weight, for the metrics that read it.
        input_norms: name -> norms of the inputs, shape (C,) for a weight (R, C), for ``wanda``.
        min_sparsity: lowest sparsity of each weight; one for all, or by name (0 where a name is missing).
        max_sparsity: highest sparsity of each weight.
        packed: masks of one bit per unit, for scope ``global`` without N:M, where all masks exist together.

    Returns:
        name -> bool mask, True = keep: of the weight's shape, or (R/N, C/M) for block patterns. Where ``packed``, what
        :func:`pruneops.ops.pack_mask` makes of it.

    Raises:
        ValueError: a value is out of range, the pattern does not divide a weight, the bounds cannot be met, or a
            score or gradient is missing or of the wrong shape; it names the weight.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> select_masks({"fc": torch.tensor([[1.0, -3.0], [2.0, 0.5]])}, sparsity=0.5)
        {'fc': tensor([[False,  True],
                [ True, False]])}
    """
    check = Checker("select_masks")
    form = parse_pattern(pattern)
    check.choice("scope", scope, SCOPES)
    share = _check_sparsity(check, form, sparsity, min_sparsity, max_sparsity)
    _check_rows(check, form, scope)
    _check_weights(check, weights, form)
    if packed and (form.nm or scope != "global"):
        check.fail(f"packed masks are made with scope 'global' and without N:M, got {scope!r} and {form.spec!r}")
    units = _rank(check, weights, form, metric, scores, grads, input_norms)
    if form.nm:
        return units.named([units.nm(i, *form.nm) for i in range(len(units.tensors))])
    if scope == "row":
        return units.named([units.rows(i, share) for i in range(len(units.tensors))])
    if scope == "local":
        return units.named([units.topk([i], int(share * size))[0] for i, size in enumerate(units.sizes)])
    budget = int(share * sum(units.sizes))
    if min_sparsity is None and max_sparsity is None:
        return units.named(units.topk(range(len(units.tensors)), budget, packed))
    return units.named(_select_bounded(check, units, budget, min_sparsity, max_sparsity, packed))


def check_limits(
    shapes: Mapping[str, Sequence[int]],
    *,
    sparsity: float | None,
    pattern: str | Pattern = "1x1",
    scope: str = "global",
    min_sparsity: float | None = None,
    max_sparsity: float | None = None,
) -> float:
    """Whether :func:`select_masks` can meet its limits for weights of these shapes, without any weights.

    Args:
        shapes: name -> shape of the weight, out x in or conv.
        sparsity, pattern, scope, min_sparsity, max_sparsity: as in :func:`select_masks`.

    Returns:
        The sparsity to reach; that of the pattern where ``sparsity`` is None.

    Raises:
        ValueError, TypeError: as in :func:`select_masks`.

    Example:
        >>> check_limits({"fc": (8, 8)}, sparsity=None, pattern="2:4")
        0.5
    """
    check = Checker("check_limits")
    form = parse_pattern(pattern)
    check.choice("scope", scope, SCOPES)
    share = _check_sparsity(check, form, sparsity, min_sparsity, max_sparsity)
    _check_rows(check, form, scope)
    if scope == "global" and not form.nm:
        sizes = [torch.Size(form.grid(shape)).numel() for shape in shapes.values()]
        names = list(shapes)
        _check_bounds(check, names, sizes, int(share * sum(sizes)), *bounds(names, sizes, min_sparsity, max_sparsity))
    return share


def block_scores(
    weights: Mapping[str, Tensor],
    pattern: str | Pattern,
    metric: str = "magnitude",
    grads: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One score per block of each weight, in one call and without a weight-sized tensor.

    Args:
        weights, grads, metric: as in :func:`select_masks`.
        pattern: a block pattern that divides each weight.

    Returns:
        name -> float32 (float64 for float64 weights) tensor of shape (R/N, C/M).

    Raises:
        ValueError, TypeError: as in :func:`select_masks`.

    Example:
        >>> block_scores({"fc": torch.ones(4, 2)}, "4x1")
        {'fc': tensor([[1., 1.]])}
    """
    check = Checker("block_scores")
    form = parse_pattern(pattern)
    if form.block is None:
        check.fail(f"pattern {form.spec!r} has no blocks")
    check.choice("metric", metric, list(BLOCK_METRICS))
    _check_weights(check, weights, form)
    grad_list = _gradients(check, weights, grads) if BLOCK_METRICS[metric][1] else None
    weight_list = [weight.detach() for weight in weights.values()]
    found = [
        torch.empty(
            form.grid(weight.shape),
            dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
            device=weight.device,
        )
        for weight in weight_list
    ]
    ops.update_block_scores_(found, weight_list, grad_list, block=form.block, metric=metric)
    return dict(zip(weights, found, strict=True))


def apply_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], pattern: str | Pattern) -> None:
    """Zero the pruned entries of named weights in place, in one call.

    Args:
        weights: name -> tensor; entries that are kept stay as they are, bit for bit.
        masks: the masks of these weights by :func:`select_masks` with the same pattern.
        pattern: see :func:`pruneops.parse_pattern`.

    Raises:
        ValueError: names or shapes do not fit; nothing is written.
        TypeError: a mask is not bool.

    Example:
        >>> weight = torch.tensor([[1.0, -3.0]])
        >>> apply_masks({"fc": weight}, {"fc": torch.tensor([[False, True]])}, "1x1")
        >>> weight
        tensor([[ 0., -3.]])
    """
    form = parse_pattern(pattern)
    if weights.keys() != masks.keys():
        odd = sorted(weights.keys() ^ masks.keys())
        raise ValueError(f"apply_masks: weights and masks differ in names: {', '.join(map(repr, odd))}")
    tensors = [weight.detach() for weight in weights.values()]
    ops.apply_masks_(tensors, [masks[name] for name in weights], block=form.block)


@dataclass(frozen=True)
class _Units:
    """What is ranked: tensors of scores, or weights from which ``metric`` makes the scores on the fly."""

    names: list[str]
    tensors: list[Tensor]
    metric: str | None = None
    grads: list[Tensor] | None = None
    norms: list[Tensor] | None = None

    @property
    def sizes(self) -> list[int]:
        return [x.numel() for x in self.tensors]

    def named(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, masks, strict=True))

    def topk(self, which: Sequence[int], prune: int, packed: bool = False) -> list[Tensor]:
        """Masks of the tensors ``which`` that prune the ``prune`` lowest units of all of them together."""
        tensors = [self.tensors[i] for i in which]
        grads = None if self.grads is None else [self.grads[i] for i in which]
        norms = None if self.norms is None else [self.norms[i] for i in which]
        keep = sum(x.numel() for x in tensors) - prune
        return list(ops.topk_mask(tensors, keep=keep, packed=packed, metric=self.metric, grads=grads, input_norm=norms))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the units are ranked."""
        return compute_dtype(*self.tensors, *(self.grads or ()))

    def count_digits(self, prefix: Tensor, round: int) -> Tensor:
        return ops.count_digits(
            self.tensors, prefix, round, metric=self.metric, grads=self.grads, input_norm=self.norms
        )

    def rows(self, i: int, sparsity: float) -> Tensor:
        score, grad = self._seen(i, lambda x: x.flatten(1) if x.dim() > 1 else x)
        mask = ops.row_topk_mask(score, sparsity=sparsity, metric=self.metric, grads=grad, input_norm=self._norm(i))
        return mask.view(self.tensors[i].shape)

    def nm(self, i: int, n: int, m: int) -> Tensor:
        score, grad = self._seen(i, _input_channels_last)
        mask = ops.empty_masks(self.tensors[i])
        out = _input_channels_last(mask)
        ops.nm_mask(score, n, m, out=out, metric=self.metric, grads=grad, input_norm=self._norm(i))
        return mask

    def _norm(self, i: int) -> Tensor | None:
        return None if self.norms is None else self.norms[i]

    def _seen(self, i: int, view: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Tensor i and its gradient through ``view``."""
        return view(self.tensors[i]), None if self.grads is None else view(self.grads[i])


def _input_channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1) if x.dim() > 2 else x


def _check_sparsity(
    check: Checker,
    form: Pattern,
    sparsity: float | None,
    low: float | Mapping[str, float] | None,
    high: float | None,
) -> float:
    """The sparsity to reach; an error where pattern, bounds and wish disagree."""
    by_name = low if isinstance(low, Mapping) else {}
    lowest = None if isinstance(low, Mapping) else low
    named = [(f"min_sparsity[{name!r}]", value) for name, value in by_name.items()]
    if sparsity is None and form.sparsity is None:
        check.fail(f"pattern {form.spec!r} needs a sparsity, got None")
    for name, value in [("sparsity", sparsity), ("min_sparsity", lowest), ("max_sparsity", high), *named]:
        # max_sparsity=1 is the bound that bounds nothing.
        if value is not None and not (0 <= check.number(name, value) < 1 or (name == "max_sparsity" and value == 1)):
            check.fail(f"{name} must be at least 0 and below 1, got {value}")
    share = float(sparsity if form.sparsity is None else form.sparsity)  # type: ignore[arg-type]
    if sparsity is not None and abs(share - sparsity) > 1e-3:
        check.fail(f"pattern {form.spec!r} gives sparsity {share:.4g}, got sparsity={sparsity}")
    if not (lowest or 0.0) <= share <= (1.0 if high is None else high):
        check.fail(f"sparsity {share:.4g} is outside of min_sparsity={lowest}, max_sparsity={high}")
    return share


def _check_rows(check: Checker, form: Pattern, scope: str) -> None:
    if scope == "row" and form.block and form.block[1] == -1:
        check.fail(f"scope 'row' prunes nothing with pattern {form.spec!r}: each row is one block")


def _check_weights(check: Checker, weights: Mapping[str, Tensor], form: Pattern) -> None:
    if not isinstance(weights, Mapping):
        check.fail(f"weights must map names to tensors, got {type(weights).__name__}", TypeError)
    for name, weight in weights.items():
        check.floating("weights", check.tensor("weights", weight, name), name)
        if not form.divides(weight.shape):
            what = f"weights[{name!r}] has shape {list(weight.shape)}"
            check.fail(f"{what}, which pattern {form.spec!r} does not divide")
    check.same_device(weights=weights)


def _rank(
    check: Checker,
    weights: Mapping[str, Tensor],
    form: Pattern,
    metric: str,
    scores: Mapping[str, Tensor] | None,
    grads: Mapping[str, Tensor] | None,
    input_norms: Mapping[str, Tensor] | None,
) -> _Units:
    names = list(weights)
    if scores is not None:
        return _Units(names, [_given_score(check, name, weights[name], form, scores) for name in names])
    if metric == "wanda":
        return _rank_by_input(check, weights, form, input_norms)
    if form.block:
        return _Units(names, list(block_scores(weights, form, metric, grads).values()))
    check.choice("metric", metric, [*SCORE_METRICS, "wanda"])
    grad_list = _gradients(check, weights, grads) if SCORE_METRICS[metric][1] else None
    return _Units(names, [weight.detach() for weight in weights.values()], metric, grad_list)


def _rank_by_input(
    check: Checker, weights: Mapping[str, Tensor], form: Pattern, input_norms: Mapping[str, Tensor] | None
) -> _Units:
    norms = []
    for name, weight in weights.items():
        if input_norms is None or name not in input_norms:
            check.fail(f"metric 'wanda' needs input_norms[{name!r}], which is missing")
        if weight.dim() != 2:
            check.fail(f"metric 'wanda' needs weights with 2 dimensions, weights[{name!r}] has {list(weight.shape)}")
        check.shape("input_norms", check.tensor("input_norms", input_norms[name], name), (weight.shape[1],), name)
        norms.append(input_norms[name].to(weight.device, torch.float32))
    names, tensors = list(weights), [weight.detach() for weight in weights.values()]
    if not form.block:
        return _Units(names, tensors, "wanda", norms=norms)
    # There is no fused form for blocks; one weight-sized score exists at a time.
    scores = (weight.abs() * norm for weight, norm in zip(tensors, norms, strict=True))
    return _Units(names, [ops.block_reduce(score, form.block) for score in scores])


def _gradients(check: Checker, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor] | None) -> list[Tensor]:
    found = []
    for name, weight in weights.items():
        grad = (grads or {}).get(name)
        if grad is None:
            check.fail(f"the metric needs grads[{name!r}], which is missing")
        check.shape("grads", check.tensor("grads", grad, name), weight.shape, name, "weights")
        found.append(grad.detach())
    return found


def _given_score(check: Checker, name: str, weight: Tensor, form: Pattern, scores: Mapping[str, Tensor]) -> Tensor:
    if name not in scores:
        check.fail(f"scores[{name!r}] is missing")
    score = check.tensor("scores", scores[name], name).detach()
    grid = torch.Size(form.grid(weight.shape))
    if score.shape not in (weight.shape, grid):
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys((weight.shape, grid)))
        check.fail(f"scores[{name!r}] has shape {list(score.shape)}, expected {wanted}")
    if form.block and score.shape != grid:
        return ops.block_reduce(score, form.block)
    return score


def _lowest_count(share: float, size: int) -> int:
    """The smallest count whose share of ``size`` is at least ``share``."""
    count = int(share * size)
    return count + (count < size and count / size < share)


def _highest_count(share: float, size: int) -> int:
    """The largest count whose share of ``size`` is at most ``share``."""
    count = int(share * size)
    return count + (count < size and (count + 1) / size <= share)


def _select_bounded(
    check: Checker,
    units: _Units,
    budget: int,
    min_sparsity: float | Mapping[str, float] | None,
    max_sparsity: float | None,
    packed: bool,
) -> list[Tensor]:
    """The best global selection of ``budget`` pruned units with a lowest and a highest count per tensor."""
    low, high = bounds(units.names, units.sizes, min_sparsity, max_sparsity)
    _check_bounds(check, units.names, units.sizes, budget, low, high)
    counts = _bounded_counts(units, budget, low, high) if units.tensors else []
    return [units.topk([i], count, packed)[0] for i, count in enumerate(counts)]


def _bounded_counts(units: _Units, budget: int, low: list[int], high: list[int]) -> list[int]:
    """How many units of each tensor are pruned, ``budget`` in all and each between its bounds.

    The bounds clamp each tensor's count at one common threshold (Bitran and Hax, 1981). The clamped total only grows
    with the threshold, so its digits are decided from counts like those of a selection without bounds: three reads of
    the scores, whatever the number of tensors, and then each tensor is selected once.
    """
    device = units.tensors[0].device
    least, most = (torch.tensor(x, device=device)[:, None] for x in (low, high))
    below = torch.zeros_like(least)
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    for round in range(digit_rounds(units.dtype)):
        counts = units.count_digits(prefix, round)
        reached = below + counts.cumsum(1)
        digit = (reached.clamp(least, most).sum(0) < budget).sum()
        tied = counts.index_select(1, digit[None])
        below = reached.index_select(1, digit[None]) - tied
        prefix = prefix | digit << digit_shift(units.dtype, round)
    # Of the ties with the threshold, the last tensor's are pruned first.
    pruned = below.clamp(least, most)
    ties = (below + tied).clamp(least, most) - pruned
    after = ties.flip(0).cumsum(0).flip(0) - ties
    pruned = pruned + (budget - pruned.sum() - after).clamp(torch.zeros_like(ties), ties)
    return pruned.flatten().tolist()


def bounds(
    names: Sequence[str],
    sizes: Sequence[int],
    min_sparsity: float | Mapping[str, float] | None,
    max_sparsity: float | None,
) -> tuple[list[int], list[int]]:
    """The lowest and the highest count of pruned units of each tensor of ``sizes`` units.

    Example:
        >>> bounds(["a", "b"], [10, 5], 0.25, None)
        ([3, 2], [10, 5])
    """
    lows = min_sparsity if isinstance(min_sparsity, Mapping) else dict.fromkeys(names, min_sparsity or 0.0)
    low = [_lowest_count(lows.get(name, 0.0), size) for name, size in zip(names, sizes, strict=True)]
    return low, [_highest_count(1.0 if max_sparsity is None else max_sparsity, size) for size in sizes]


def _check_bounds(
    check: Checker, names: Sequence[str], sizes: Sequence[int], budget: int, low: list[int], high: list[int]
) -> None:
    for name, size, least, most in zip(names, sizes, low, high, strict=True):
        if least > most:
            check.fail(f"{name!r} has {size} units: no whole number of them lies between the two bounds")
    if not sum(low) <= budget <= sum(high):
        check.fail(
            f"sparsity asks to prune {budget} of {sum(sizes)} units, "
            f"the bounds of the weights allow {sum(low)} to {sum(high)}"
        )
