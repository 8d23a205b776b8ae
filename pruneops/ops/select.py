"""Exact selection: over all tensors, per row and per group, and the rounds that others drive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import SELECT_METRICS, Checker
from .._library import DIGIT_BITS, compute_dtype, digit_rounds
from .common import OPS, TensorOrList, Tensors, check_inputs, checked, masks_for, written


class _Selection:
    """The checked inputs of a selection: what the scores are made of, and how many there are."""

    def __init__(self, check: Checker, scores: Tensors, metric: str | None, grads: Any, input_norm: Any) -> None:
        self.check = check
        self.scores = check.tensors("scores", scores)
        self.grads: list[Tensor] = []
        self.norms: list[Tensor] = []
        if metric is not None:
            self._read_inputs(metric, grads, input_norm)
        elif grads is not None:
            check.fail("grads are read only with a metric")
        if input_norm is not None and metric != "wanda":
            check.fail("input_norm is read only with metric 'wanda'")
        if check.thorough:
            for i, score in enumerate(self.scores):
                check.floating("scores", score, i)

    def _read_inputs(self, metric: str, grads: Any, input_norm: Any) -> None:
        _, self.grads = self.check.reads(metric, SELECT_METRICS, self.scores, grads)
        if SELECT_METRICS[metric][1]:
            check_inputs(self.check, "grads", self.grads, self.scores)
        if metric == "wanda":
            self._read_norms(input_norm)

    def _read_norms(self, input_norm: Any) -> None:
        if input_norm is None:
            self.check.fail("metric 'wanda' needs input_norm, got None")
        self.norms = self.check.tensors("input_norm", input_norm)
        self.check.same_length("input_norm", self.norms, "scores", self.scores)
        if not self.check.thorough:
            return
        for i, (norm, score) in enumerate(zip(self.norms, self.scores, strict=True)):
            self.check.dtype("input_norm", norm, torch.float32, i)
            self.check.shape("input_norm", norm, score.shape[-1:] or (1,), i)

    def total(self) -> int:
        """Entries of all scores."""
        return sum(map(Tensor.numel, self.scores))

    def check_device(self, **others: Any) -> None:
        """All inputs, and the others, are on one device."""
        self.check.same_device(scores=self.scores, grads=self.grads, input_norm=self.norms, **others)

    def outputs(self, packed: bool, out: Tensors | None) -> list[Tensor]:
        """The masks to write: new ones, or given ones on the device of all inputs."""
        self.check.flag("packed", packed)
        masks = masks_for(self.check, self.scores, packed, out)
        if self.check.thorough:
            self.check_device(out=None if out is None else masks)
        return masks


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
    return checked("kth_value", _kth_value, scores, k, metric, grads, input_norm)


def _kth_value(
    check: Checker, scores: Tensors, k: int, metric: str | None, grads: Any, input_norm: Any
) -> Callable[[], Tensor]:
    select = _Selection(check, scores, metric, grads, input_norm)
    select.check_device()
    check.integer("k", k, 1, select.total())
    return lambda: OPS.kth_value(select.scores, k, metric, select.grads, select.norms)


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
        prefix: int64, one element on the device of ``scores``: the key decided so far, its other bits 0. It is not
            read on the host; bits beyond those of a key are not looked at.
        round: from 0 to 2 (to 5 for keys of 64 bits). Its digit is the bits from ``max(0, bits - 11 * (round + 1))``
            on; in the last round it has 10 bits (9).
        metric, grads, input_norm: as in :func:`topk_mask`.

    Returns:
        int64 of shape (tensors, 2048): of the scores whose key has the digits of ``prefix`` before this round, how many
        have each digit.

    Raises:
        ValueError: ``round`` is out of range, ``prefix`` has not one element, or as in :func:`topk_mask`.
        TypeError: as in :func:`topk_mask`.

    Example:
        >>> counts = count_digits([torch.tensor([1.0, -1.0, 1.0])], torch.tensor(0), 0)
        >>> counts.nonzero().tolist(), counts.sum().item()
        ([[0, 515], [0, 1532]], 3)
    """
    return checked("count_digits", _count_digits, scores, prefix, round, metric, grads, input_norm)


def _count_digits(
    check: Checker, scores: Tensors, prefix: Tensor, round: int, metric: str | None, grads: Any, input_norm: Any
) -> Callable[[], Tensor]:
    select = _Selection(check, scores, metric, grads, input_norm)
    if not check.thorough:
        check.integer("round", round, 0)  # the operator would take a bool for one
    else:
        check.dtype("prefix", check.tensor("prefix", prefix), torch.int64)
        if prefix.numel() != 1:
            check.fail(f"prefix must have one element, got shape {list(prefix.shape)}")
        check.integer("round", round, 0, digit_rounds(compute_dtype(*select.scores, *select.grads)) - 1)
        select.check_device(prefix=prefix)
    if not select.scores:  # the operator counts at least one; nothing of ``prefix`` is read
        return lambda: prefix.new_empty((0, 2**DIGIT_BITS))
    return lambda: OPS.count_digits(select.scores, prefix, round, metric, select.grads, select.norms)


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
            read of them on the CPU and two or three on CUDA. The masks are the same. Inputs that are not contiguous
            are copied all the same.
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
    return checked(
        "topk_mask", _topk_mask, scores, keep, sparsity, ties, packed, strict, out, metric, grads, input_norm
    )


def _topk_mask(
    check: Checker,
    scores: TensorOrList,
    keep: int | None,
    sparsity: float | None,
    ties: str,
    packed: bool,
    strict: bool,
    out: TensorOrList | None,
    metric: str | None,
    grads: Any,
    input_norm: Any,
) -> Callable[[], TensorOrList]:
    select = _Selection(check, scores, metric, grads, input_norm)
    check.choice("ties", ties, ("exact", "threshold"))
    check.flag("strict", strict)
    kept = check.sparsity_to_keep(keep, sparsity, select.total())
    masks = select.outputs(packed, out)

    def call() -> TensorOrList:
        if masks:
            OPS.topk_mask(select.scores, masks, kept, ties, strict, metric, select.grads, select.norms)
        return written(masks, scores, out)

    return call


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

    def kept(check: Checker) -> tuple[int]:
        return (check.sparsity_to_keep(keep, sparsity, _columns(score)),)

    how = (OPS.row_topk_mask, kept, packed, out)
    return checked("row_topk_mask", _mask_one, score, *how, metric, grads, input_norm)


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

    def groups(check: Checker) -> tuple[int, int]:
        check.integer("m", m, 1)
        check.integer("n", n, 0, m)
        if _columns(score) % m:
            check.fail(f"the last dimension of score is {_columns(score)}, which m={m} does not divide")
        return n, m

    return checked("nm_mask", _mask_one, score, OPS.nm_mask, groups, packed, out, metric, grads, input_norm)


def _columns(score: Tensor) -> int:
    return score.shape[-1] if score.dim() else 1


def _mask_one(
    check: Checker,
    score: Tensor,
    op: Any,
    how: Callable[[Checker], tuple[int, ...]],
    packed: bool,
    out: Tensor | None,
    metric: str | None,
    grads: Tensor | None,
    input_norm: Tensor | None,
) -> Callable[[], Tensor]:
    """The mask of one tensor by ``op``, whose own arguments are what ``how(check)`` returns."""
    check.tensor("score", score)
    for name, value in (("grads", grads), ("input_norm", input_norm), ("out", out)):
        if value is not None:
            check.tensor(name, value)
    select = _Selection(check, score, metric, grads, input_norm)
    numbers = how(check)
    (mask,) = select.outputs(packed, out)
    grad, norm = (values[0] if values else None for values in (select.grads, select.norms))

    def call() -> Tensor:
        op(score, mask, *numbers, metric, grad, norm)
        return written([mask], score, out)

    return call
