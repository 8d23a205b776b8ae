"""The functional API: fused scoring, exact selection and masks.

Every function takes one tensor, or a sequence of tensors where its argument has a plural name; a sequence is
one call into the library, not a loop. All tensors of a call are on one device. Masks are ``torch.bool``, True = keep.

Order of scores: higher is kept; NaN ranks below -inf; -0.0 equals +0.0; among equals the earlier one (earlier
tensor in the list, then lower row-major index) is kept first. So every selection has exactly one right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ._checks import BLOCK_METRICS, SCORE_METRICS, SELECT_METRICS, Checker
from ._library import compute_dtype, digit_rounds, packed_size

__all__ = [
    "apply_masks_",
    "block_reduce",
    "count_digits",
    "expand_block_mask",
    "kth_value",
    "nm_mask",
    "pack_mask",
    "prune_by_importance",
    "row_topk_mask",
    "topk_mask",
    "unpack_mask",
    "update_block_scores_",
    "update_scores_",
    "update_topk_mask_",
]

Tensors = Tensor | Sequence[Tensor]
TensorOrList = TypeVar("TensorOrList", Tensor, Sequence[Tensor])
_OPS = torch.ops.pruneops
_REDUCES = ("mean", "sum", "max")


def _mark_written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd of an in-place write, so that a stale backward raises instead of using new values."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def update_scores_(
    scores: TensorOrList,
    weights: Tensors | None,
    grads: Tensors | None,
    *,
    metric: str,
    alpha: float = 0.0,
    beta: float = 1.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    skip_nonfinite: bool = False,
) -> TensorOrList:
    """Update scores in place: ``score = alpha * score + beta * v``, in one pass over all tensors.

    ``v`` by metric, of the weight w and its gradient g: ``magnitude`` abs(w), ``gradient`` abs(g), ``snip``
    abs(w*g) (Lee et al., 2019), ``taylor`` (w*g)^2 (Molchanov et al., 2019), ``fisher`` g^2. With ``alpha=0.9,
    beta=1.0`` and ``snip`` this is SNIP momentum. Computed in float32 (float64 where an input is), one rounding
    per operation, then rounded once to the score's dtype: bit-identical to the eager formula.

    Args:
        scores: float32, bfloat16, float16 or float64, any shape. With ``alpha == 0`` they are never read.
        weights: as ``scores`` in shape; None where the metric does not read them (``gradient``, ``fisher``).
        grads: as ``scores`` in shape; None for ``magnitude``.
        metric: name of ``v``.
        alpha: factor of the old score.
        beta: factor of ``v``.
        grad_scale: one float32 element; gradients are divided by it, as in torch's fused optimizers.
        found_inf: one float32 element; where it is not 0, nothing changes.
        skip_nonfinite: where ``v`` is not finite it counts as 0.

    Returns:
        ``scores``.

    Raises:
        ValueError: shapes, lengths or devices differ, or the metric is unknown or lacks an input.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> score = torch.zeros(2)
        >>> update_scores_(score, torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), metric="snip", alpha=0.9)
        tensor([3., 1.])
    """
    check = Checker("update_scores_")
    score_list = check.tensors("scores", scores)
    weight_list, grad_list = _element_inputs(check, metric, weights, grads, score_list)
    _update(check, _OPS.update_scores_, score_list, weight_list, grad_list, (metric,), alpha, beta,
            grad_scale, found_inf, skip_nonfinite)  # fmt: skip
    return scores


def update_topk_mask_(
    scores: TensorOrList,
    weights: Tensors | None,
    grads: Tensors | None,
    *,
    metric: str,
    keep: int | None = None,
    sparsity: float | None = None,
    ties: str = "exact",
    packed: bool = False,
    out: TensorOrList | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    skip_nonfinite: bool = False,
) -> TensorOrList:
    """Update scores in place and select among them, in one pass over the data where that is possible.

    Exactly :func:`update_scores_` followed by :func:`topk_mask` of the scores, bit for bit, with fewer bytes moved:
    on the CPU the masks are written as the scores are (17 bytes per float32 entry instead of 21); on CUDA the first
    counts of the selection are taken as the scores are written (one read of the scores less).

    Args:
        scores, weights, grads, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite: as in
            :func:`update_scores_`. Where ``found_inf`` is not 0 the selection is among the old scores.
        keep, sparsity, ties, packed, out: as in :func:`topk_mask`.

    Returns:
        The masks: one for one tensor, a list for a sequence, ``out`` where given.

    Raises:
        ValueError, TypeError: as in these two functions.

    Example:
        >>> score = torch.zeros(3)
        >>> update_topk_mask_(score, torch.tensor([1.0, -2.0, 3.0]), None, metric="magnitude", keep=2)
        tensor([False,  True,  True])
    """
    check = Checker("update_topk_mask_")
    score_list = check.tensors("scores", scores)
    weight_list, grad_list = _element_inputs(check, metric, weights, grads, score_list)
    check.choice("ties", ties, ("exact", "threshold"))
    kept = check.sparsity_to_keep(keep, sparsity, sum(score.numel() for score in score_list))
    masks = _masks_for(check, score_list, packed, out)
    check.same_device([("scores[0]", x) for x in score_list[:1]] + [(f"out[{i}]", x) for i, x in enumerate(masks)])

    def op(*arguments: Any) -> None:
        _OPS.update_topk_mask_(*arguments, masks, kept, ties)

    _update(check, op, score_list, weight_list, grad_list, (metric,), alpha, beta, grad_scale, found_inf,
            skip_nonfinite)  # fmt: skip
    _mark_written(masks)
    if out is not None:
        return out
    return masks[0] if isinstance(scores, Tensor) else masks


def update_block_scores_(
    scores: TensorOrList,
    weights: Tensors | None,
    grads: Tensors | None,
    *,
    block: Sequence[int],
    metric: str,
    reduce: str = "mean",
    alpha: float = 0.0,
    beta: float = 1.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    skip_nonfinite: bool = False,
) -> TensorOrList:
    """Update one score per (N, M) block in place, straight from weights and gradients.

    ``v`` is the ``reduce`` over the block of the element values of :func:`update_scores_`. Three more metrics come
    from the signed block sum d = sum of w*g, which is the gradient of a block mask that multiplies the weight:
    ``mask_gradient`` abs(d), ``mask_fisher`` d^2 (Kwon et al., 2022) and ``mask_sum`` d; ``reduce`` does not apply. No
    tensor of the weight's size is made. The order of a block's sum is fixed for a given call, not across devices.

    Args:
        scores: shape (R/N, C/M) for a weight of shape (R, C).
        weights: shape (R, C); conv weights (O, I, k...) are seen as (O, k... * I).
        grads: as ``weights``.
        block: (N, M); -1 is the whole extent, so (-1, 1) is one score per column.
        metric: as in :func:`update_scores_`, or ``mask_gradient``, ``mask_fisher``, ``mask_sum``.
        reduce: ``mean``, ``sum`` or ``max`` (NaN in a block makes its maximum NaN).
        alpha, beta, grad_scale, found_inf, skip_nonfinite: as in :func:`update_scores_`.

    Returns:
        ``scores``.

    Raises:
        ValueError: the block does not divide a weight, or as in :func:`update_scores_`.
        TypeError: as in :func:`update_scores_`.

    Example:
        >>> update_block_scores_(torch.zeros(1, 2), torch.ones(4, 2), None, block=(4, 1), metric="magnitude")
        tensor([[1., 1.]])
    """
    check = Checker("update_block_scores_")
    score_list = check.tensors("scores", scores)
    weight_list, grad_list = check.reads(metric, BLOCK_METRICS, weights, grads)
    check.choice("reduce", reduce, _REDUCES)
    size = check.block(block)
    reads_weight, reads_grad = BLOCK_METRICS[metric]
    first_name, firsts = ("weights", weight_list) if reads_weight else ("grads", grad_list)
    check.same_length(first_name, firsts, "scores", score_list)
    if reads_weight and reads_grad:
        _check_inputs(check, "grads", grad_list, weight_list, "weights")
    for i, (score, first) in enumerate(zip(score_list, firsts, strict=True)):
        check.floating(f"{first_name}[{i}]", first)
        check.shape(f"scores[{i}]", score, check.divides(f"{first_name}[{i}]", first.shape, size))
    _update(check, _OPS.update_block_scores_, score_list, weight_list, grad_list, (size, metric, reduce), alpha,
            beta, grad_scale, found_inf, skip_nonfinite)  # fmt: skip
    return scores


def _element_inputs(
    check: Checker, metric: str, weights: Any, grads: Any, scores: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """What an elementwise metric reads, checked against the scores."""
    lists = check.reads(metric, SCORE_METRICS, weights, grads)
    for name, values, read in zip(("weights", "grads"), lists, SCORE_METRICS[metric], strict=True):
        if read:
            _check_inputs(check, name, values, scores)
    return lists


def _masks_for(check: Checker, scores: list[Tensor], packed: bool, out: Any) -> list[Tensor]:
    """The masks to write for these scores: given ones, checked, or new ones."""
    if out is None:
        if packed:
            return [score.new_empty(packed_size(score.numel()), dtype=torch.uint8) for score in scores]
        return [torch.empty(score.shape, dtype=torch.bool, device=score.device) for score in scores]
    masks = check.tensors("out", out)
    check.same_length("out", masks, "scores", scores)
    for i, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        check.dtype(f"out[{i}]", mask, torch.uint8 if packed else torch.bool)
        check.mask_for(f"out[{i}]", mask, f"scores[{i}]", score)
        check.written(f"out[{i}]", mask)
    return masks


def _check_inputs(
    check: Checker, name: str, values: list[Tensor], likes: list[Tensor], like_name: str = "scores"
) -> None:
    """``values`` are as many floating tensors as ``likes``, of their shapes."""
    check.same_length(name, values, like_name, likes)
    for i, (value, like) in enumerate(zip(values, likes, strict=True)):
        check.floating(f"{name}[{i}]", value)
        check.same_shape(f"{name}[{i}]", value, f"{like_name}[{i}]", like.shape)


def _update(
    check: Checker,
    op: Any,
    scores: list[Tensor],
    weights: list[Tensor],
    grads: list[Tensor],
    how: tuple[Any, ...],
    alpha: float,
    beta: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    skip_nonfinite: bool,
) -> None:
    """The common end of both updates: the checks of what they share, then the operator."""
    alpha, beta = check.number("alpha", alpha), check.number("beta", beta)
    named = [(f"scores[{i}]", x) for i, x in enumerate(scores)]
    for name, score in named:
        check.floating(name, score)
        check.written(name, score)
    for kind, values in (("weights", weights), ("grads", grads)):
        named += [(f"{kind}[{i}]", x) for i, x in enumerate(values)]
    for scalar_name, scalar in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        check.optional_scalar(scalar_name, scalar)
        if scalar is not None:
            named.append((scalar_name, scalar))
    check.same_device(named)
    if scores:
        op(scores, weights, grads, *how, alpha, beta, grad_scale, found_inf, bool(skip_nonfinite))
        _mark_written(scores)


def block_reduce(score: Tensor, block: Sequence[int], reduce: str = "mean") -> Tensor:
    """Reduce each (N, M) block of a score to one value.

    Args:
        score: floating, shape (R, C); conv shapes (O, I, k...) are seen as (O, k... * I).
        block: (N, M); -1 is the whole extent.
        reduce: ``mean``, ``sum`` or ``max``.

    Returns:
        float32 (float64 for a float64 score) of shape (R/N, C/M).

    Raises:
        ValueError: the block does not divide the shape, or ``reduce`` is unknown.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> block_reduce(torch.arange(8.0).reshape(4, 2), (2, 2), "sum")
        tensor([[ 6.],
                [22.]])
    """
    check = Checker("block_reduce")
    check.floating("score", check.tensor("score", score))
    check.choice("reduce", reduce, _REDUCES)
    size = check.block(block)
    check.divides("score", score.shape, size)
    return _OPS.block_reduce(score, size, reduce)


class _Selection:
    """The checked inputs of a selection: what the scores are made of, and how many there are."""

    def __init__(self, op: str, scores: Tensors, metric: str | None, grads: Any, input_norm: Any) -> None:
        self.check = check = Checker(op)
        self.scores = check.tensors("scores", scores)
        self.metric = metric
        self.grads: list[Tensor] = []
        self.norms: list[Tensor] = []
        if metric is not None:
            _, self.grads = check.reads(metric, SELECT_METRICS, self.scores, grads)
        elif grads is not None:
            check.fail("grads are read only with a metric")
        for i, score in enumerate(self.scores):
            check.floating(f"scores[{i}]", score)
        if metric is not None and SELECT_METRICS[metric][1]:
            _check_inputs(check, "grads", self.grads, self.scores)
        if metric == "wanda":
            self._read_norms(input_norm)
        elif input_norm is not None:
            check.fail("input_norm is read only with metric 'wanda'")
        self.total = sum(score.numel() for score in self.scores)

    def _read_norms(self, input_norm: Any) -> None:
        if input_norm is None:
            self.check.fail("metric 'wanda' needs input_norm, got None")
        self.norms = self.check.tensors("input_norm", input_norm)
        self.check.same_length("input_norm", self.norms, "scores", self.scores)
        for i, (norm, score) in enumerate(zip(self.norms, self.scores, strict=True)):
            self.check.dtype(f"input_norm[{i}]", norm, torch.float32)
            self.check.shape(f"input_norm[{i}]", norm, score.shape[-1:] or [1])

    def named(self) -> list[tuple[str, Tensor]]:
        lists = (("scores", self.scores), ("grads", self.grads), ("input_norm", self.norms))
        return [(f"{name}[{i}]", x) for name, values in lists for i, x in enumerate(values)]

    def outputs(self, packed: bool, out: Tensors | None) -> list[Tensor]:
        """The masks to write, on the device of all inputs."""
        masks = _masks_for(self.check, self.scores, packed, out)
        self.check.same_device(self.named() + [(f"out[{i}]", x) for i, x in enumerate(masks)])
        return masks

    def single(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Score, gradient and norm of a selection over one tensor."""
        grad, norm = (values[0] if values else None for values in (self.grads, self.norms))
        return self.scores[0], grad, norm


def kth_value(
    scores: Tensors,
    k: int,
    *,
    metric: str | None = None,
    grads: Tensors | None = None,
    input_norm: Tensors | None = None,
) -> Tensor:
    """The k-th smallest score over all tensors.

    Args:
        scores: floating tensors of any shapes; with ``metric``, the weights.
        k: rank from 1 (the smallest; NaN ranks lowest) to the number of entries.
        metric, grads, input_norm: as in :func:`topk_mask`.

    Returns:
        0-d tensor on the device of ``scores``: their promoted dtype, or the dtype in which a metric is computed.
        A zero is returned as +0.0.

    Raises:
        ValueError: ``k`` is out of range, or as in :func:`topk_mask`.
        TypeError: as in :func:`topk_mask`.

    Example:
        >>> kth_value([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
        tensor(2.)
    """
    select = _Selection("kth_value", scores, metric, grads, input_norm)
    select.check.same_device(select.named())
    select.check.integer("k", k, 1, select.total)
    return _OPS.kth_value(select.scores, k, metric, select.grads, select.norms)


def count_digits(
    scores: Tensors,
    prefix: Tensor,
    round: int,
    *,
    metric: str | None = None,
    grads: Tensors | None = None,
    input_norm: Tensors | None = None,
) -> Tensor:
    """One round of a selection by digits: how many scores of each tensor have which digit next.

    The order of scores is that of their keys, unsigned integers of 32 bits (64 if a score is computed in float64;
    NaN is 0). A selection decides the wanted key from the top, 11 bits a round: the counts of a round say which digit
    the wanted rank lies in. Counts are sums, so the rounds also find one threshold for scores that lie in several
    processes, or for limits per tensor (:func:`pruneops.selection.select_masks`).

    Args:
        scores: floating tensors of any shapes; with ``metric``, the weights.
        prefix: int64, one element on the device of ``scores``: the key decided so far, its other bits 0.
        round: from 0 to 2 (to 5 for keys of 64 bits). Its digit is the bits from ``max(0, bits - 11 * (round + 1))``
            on; in the last round it has 10 bits (9).
        metric, grads, input_norm: as in :func:`topk_mask`.

    Returns:
        int64 of shape (tensors, 2048): of the scores whose key has the digits of ``prefix`` before this round, how many
        have each digit.

    Raises:
        ValueError: ``round`` or ``prefix`` is out of range, or as in :func:`topk_mask`.
        TypeError: as in :func:`topk_mask`.

    Example:
        >>> counts = count_digits([torch.tensor([1.0, -1.0, 1.0])], torch.tensor(0), 0)
        >>> counts.nonzero().tolist(), counts.sum().item()
        ([[0, 515], [0, 1532]], 3)
    """
    select = _Selection("count_digits", scores, metric, grads, input_norm)
    check = select.check
    check.dtype("prefix", check.tensor("prefix", prefix), torch.int64)
    if prefix.numel() != 1:
        check.fail(f"prefix must have one element, got shape {list(prefix.shape)}")
    check.integer("round", round, 0, digit_rounds(compute_dtype(*select.scores, *select.grads)) - 1)
    check.same_device([("prefix", prefix), *select.named()])
    return _OPS.count_digits(select.scores, prefix, round, metric, select.grads, select.norms)


def topk_mask(
    scores: TensorOrList,
    *,
    keep: int | None = None,
    sparsity: float | None = None,
    ties: str = "exact",
    packed: bool = False,
    strict: bool = False,
    out: TensorOrList | None = None,
    metric: str | None = None,
    grads: Tensors | None = None,
    input_norm: Tensors | None = None,
) -> TensorOrList:
    """Masks that keep the highest scores over all tensors together.

    Args:
        scores: floating tensors of any shapes; with ``metric``, the weights.
        keep: number of entries to keep, over all tensors.
        sparsity: instead of ``keep``: prune ``int(sparsity * n)`` of all n entries.
        ties: ``exact`` keeps exactly ``keep`` entries; ``threshold`` prunes everything up to and including the
            k-th smallest score (k = n - keep), ties too, as Neural Compressor and Torch-Pruning do.
        packed: masks of one bit per entry, as :func:`pack_mask` makes them; the masks in bytes never exist.
        strict: extra memory that does not grow with the scores (below 8 MiB on the CPU, 4 MiB on CUDA), for one more
            read of them on the CPU and two or three on CUDA. The masks are the same.
        out: masks to write into: bool, of the shapes of ``scores``; or uint8 and 1-D where ``packed``.
        metric: compute the score on the fly, never stored: any metric of :func:`update_scores_`, or ``wanda``
            abs(w) * input_norm[column] (Sun et al., 2024).
        grads: gradients for the metrics that read them.
        input_norm: float32, one of length C for each (..., C) weight, for ``wanda``.

    Returns:
        The masks: one for one tensor, a list for a sequence, ``out`` where given.

    Raises:
        ValueError: not exactly one of ``keep`` and ``sparsity``, a value out of range, or shapes, lengths or
            devices that differ.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> topk_mask(torch.tensor([0.5, 2.0, 2.0, 1.0]), keep=1)
        tensor([False,  True, False, False])
    """
    select = _Selection("topk_mask", scores, metric, grads, input_norm)
    select.check.choice("ties", ties, ("exact", "threshold"))
    kept = select.check.sparsity_to_keep(keep, sparsity, select.total)
    masks = select.outputs(packed, out)
    if masks:
        _OPS.topk_mask(select.scores, masks, kept, ties, strict, metric, select.grads, select.norms)
        _mark_written(masks)
    if out is not None:
        return out
    return masks[0] if isinstance(scores, Tensor) else masks


def row_topk_mask(
    score: Tensor,
    *,
    keep: int | None = None,
    sparsity: float | None = None,
    packed: bool = False,
    out: Tensor | None = None,
    metric: str | None = None,
    grads: Tensor | None = None,
    input_norm: Tensor | None = None,
) -> Tensor:
    """Mask that keeps the highest scores of each row of the last dimension.

    Args:
        score: floating, shape (..., C); with ``metric``, the weight.
        keep: entries to keep in each row.
        sparsity: instead of ``keep``: prune ``int(sparsity * C)`` of each row.
        packed, out, metric, grads, input_norm: as in :func:`topk_mask`. A packed mask of rows whose length is not a
            multiple of 8 is made from one in bytes.

    Returns:
        The mask (``out`` where given) with exactly ``keep`` True in each row.

    Raises:
        ValueError, TypeError: as in :func:`topk_mask`.

    Example:
        >>> row_topk_mask(torch.tensor([[1.0, 3.0, 2.0]]), keep=2)
        tensor([[False,  True,  True]])
    """
    select = _single_selection("row_topk_mask", score, metric, grads, input_norm, out)
    kept = select.check.sparsity_to_keep(keep, sparsity, score.shape[-1] if score.dim() else 1)
    return _mask_one(select, packed, out, _OPS.row_topk_mask, kept)


def nm_mask(
    score: Tensor,
    n: int,
    m: int,
    *,
    packed: bool = False,
    out: Tensor | None = None,
    metric: str | None = None,
    grads: Tensor | None = None,
    input_norm: Tensor | None = None,
) -> Tensor:
    """N:M mask: exactly ``n`` True in each ``m`` consecutive entries of the last dimension.

    Args:
        score: floating, shape (..., C) with C divisible by ``m``; with ``metric``, the weight.
        n: entries kept of each group, 0 to ``m``.
        m: entries in a group, at least 1.
        packed, out, metric, grads, input_norm: as in :func:`topk_mask`. A packed mask is made from one in bytes where
            neither ``m`` divides 8 nor 8 divides ``m``.

    Returns:
        The mask (``out`` where given).

    Raises:
        ValueError: ``m`` does not divide the last dimension, or as in :func:`topk_mask`.
        TypeError: as in :func:`topk_mask`.

    Example:
        >>> nm_mask(torch.tensor([4.0, 1.0, 3.0, 2.0]), 2, 4)
        tensor([ True, False,  True, False])
    """
    select = _single_selection("nm_mask", score, metric, grads, input_norm, out)
    select.check.integer("m", m, 1)
    select.check.integer("n", n, 0, m)
    columns = score.shape[-1] if score.dim() else 1
    if columns % m:
        select.check.fail(f"the last dimension of score is {columns}, which m={m} does not divide")
    return _mask_one(select, packed, out, _OPS.nm_mask, n, m)


def _single_selection(op: str, score: Any, metric: Any, grads: Any, input_norm: Any, out: Any) -> _Selection:
    for name, value in (("score", score), ("grads", grads), ("input_norm", input_norm), ("out", out)):
        if value is not None or name == "score":
            Checker(op).tensor(name, value)
    return _Selection(op, score, metric, grads, input_norm)


def _mask_one(select: _Selection, packed: bool, out: Tensor | None, op: Any, *how: int) -> Tensor:
    (mask,) = select.outputs(packed, out)
    score, grad, norm = select.single()
    op(score, mask, *how, select.metric, grad, norm)
    _mark_written([mask])
    return mask


def expand_block_mask(mask: Tensor, block: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Expand a mask of (N, M) blocks to the shape of the weight.

    Args:
        mask: bool, shape (R/N, C/M).
        block: (N, M); -1 is the whole extent.
        shape: the weight's shape, (R, C) or (O, I, k...) seen as (O, k... * I).

    Returns:
        bool mask of ``shape``, contiguous.

    Raises:
        ValueError: the block does not divide ``shape``, or the mask has not the shape of its grid.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> expand_block_mask(torch.tensor([[True, False]]), (2, 1), (2, 2))
        tensor([[ True, False],
                [ True, False]])
    """
    check = Checker("expand_block_mask")
    check.dtype("mask", check.tensor("mask", mask), torch.bool)
    size = check.block(block)
    check.shape("mask", mask, check.divides("shape", tuple(shape), size))
    return _OPS.expand_block_mask(mask, size, tuple(shape))


def apply_masks_(tensors: TensorOrList, masks: Tensors, *, block: Sequence[int] | None = None) -> TensorOrList:
    """Zero the pruned entries in place: they become +0.0 whatever was there, NaN and Inf too.

    Args:
        tensors: any dtype and shape.
        masks: for each tensor a bool mask of its shape, or the uint8 result of :func:`pack_mask`, or with
            ``block`` a bool mask of shape (R/N, C/M). They are never expanded in memory.
        block: (N, M) where the masks are block masks; -1 is the whole extent.

    Returns:
        ``tensors``.

    Raises:
        ValueError: lengths, shapes or devices differ, or the block does not divide a tensor.
        TypeError: a mask is neither bool nor packed.

    Example:
        >>> apply_masks_(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    check = Checker("apply_masks_")
    tensor_list, mask_list = check.tensors("tensors", tensors), check.tensors("masks", masks)
    check.same_length("masks", mask_list, "tensors", tensor_list)
    size = None if block is None else check.block(block)
    for i, (tensor, mask) in enumerate(zip(tensor_list, mask_list, strict=True)):
        check.written(f"tensors[{i}]", tensor)
        if size is None:
            check.mask_for(f"masks[{i}]", mask, f"tensors[{i}]", tensor)
        else:
            check.dtype(f"masks[{i}]", mask, torch.bool)
            check.shape(f"masks[{i}]", mask, check.divides(f"tensors[{i}]", tensor.shape, size))
    lists = (("tensors", tensor_list), ("masks", mask_list))
    check.same_device([(f"{name}[{i}]", x) for name, values in lists for i, x in enumerate(values)])
    if tensor_list:
        _OPS.apply_masks_(tensor_list, mask_list, size)
        _mark_written(tensor_list)
    return tensors


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask to 1 bit per entry, as ``numpy.packbits(mask, bitorder="little")``.

    Args:
        mask: bool, any shape.

    Returns:
        uint8 of shape (ceil(n / 8),); the unused bits of the last byte are 0.

    Raises:
        TypeError: the mask is not a bool tensor.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    check = Checker("pack_mask")
    check.dtype("mask", check.tensor("mask", mask), torch.bool)
    return _OPS.pack_mask(mask)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_mask`.

    Args:
        packed: uint8 of shape (ceil(n / 8),).
        shape: shape of the mask, with n entries.

    Returns:
        bool mask of ``shape``.

    Raises:
        ValueError: ``packed`` has not the length that ``shape`` needs.
        TypeError: ``packed`` is not a uint8 tensor.

    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    check = Checker("unpack_mask")
    check.dtype("packed", check.tensor("packed", packed), torch.uint8)
    sizes = tuple(shape)
    for i, size in enumerate(sizes):
        check.integer(f"shape[{i}]", size, 0)
    check.shape("packed", packed, [packed_size(torch.Size(sizes).numel())])
    return _OPS.unpack_mask(packed, sizes)


def prune_by_importance(
    tensor: Tensor | np.ndarray,
    importance: Tensor | np.ndarray,
    num_instances: int,
    stride: int,
    *,
    dim: int = 0,
    order: str = "importance",
) -> Tensor | np.ndarray:
    """Keep the most important slabs of a tensor, such as the heads or neurons of a layer.

    A slab is ``stride`` consecutive rows along ``dim``; slab i has importance ``importance[i]``.

    Args:
        tensor: any dtype, with ``len(importance) * stride`` entries along ``dim``; a NumPy array gives a NumPy array.
        importance: floating, shape (instances,); ties keep the lower index first.
        num_instances: slabs to keep, 0 to ``len(importance)``.
        stride: rows of a slab, at least 1.
        dim: dimension of the slabs.
        order: ``importance`` for descending importance, ``original`` for the order in the tensor.

    Returns:
        A new tensor with ``num_instances * stride`` entries along ``dim``.

    Raises:
        ValueError: sizes that do not fit, or a value out of range.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> prune_by_importance(torch.tensor([10, 11, 20, 21]), torch.tensor([0.1, 0.7]), 1, 2)
        tensor([20, 21])
    """
    check = Checker("prune_by_importance")
    as_numpy = isinstance(tensor, np.ndarray)
    values = check.tensor("tensor", _from_numpy(tensor))
    ranks = check.tensor("importance", _from_numpy(importance))
    check.floating("importance", ranks)
    if ranks.dim() != 1:
        check.fail(f"importance must have 1 dimension, got shape {list(ranks.shape)}")
    if values.dim() == 0:
        check.fail("tensor must have at least 1 dimension, got a 0-d tensor")
    check.integer("dim", dim, -values.dim(), values.dim() - 1)
    check.integer("stride", stride, 1)
    check.integer("num_instances", num_instances, 0, ranks.numel())
    check.choice("order", order, ("importance", "original"))
    if values.shape[dim] != ranks.numel() * stride:
        check.fail(
            f"tensor has {values.shape[dim]} entries along dim {dim}, "
            f"expected {ranks.numel()} instances * stride {stride} = {ranks.numel() * stride}"
        )
    check.same_device([("tensor", values), ("importance", ranks)])
    kept = _OPS.prune_by_importance(values, ranks, num_instances, stride, dim % values.dim(), order)
    return kept.numpy() if as_numpy else kept


def _from_numpy(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
