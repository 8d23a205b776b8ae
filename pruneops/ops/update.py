"""Score updates, per entry and per block, and the update that also selects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._checks import BLOCK_METRICS, SCORE_METRICS, Checker
from .common import OPS, TensorOrList, Tensors, check_inputs, checked, mark_written, masks_for, written

_REDUCES = ("mean", "sum", "max")


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
    rule = (alpha, beta, grad_scale, found_inf, skip_nonfinite)
    return checked("update_scores_", _update_scores, scores, weights, grads, metric, rule)


def _update_scores(
    check: Checker, scores: TensorOrList, weights: Any, grads: Any, metric: str, rule: tuple[Any, ...]
) -> Callable[[], TensorOrList]:
    score_list = check.tensors("scores", scores)
    check.outside_graphs("scores", score_list)
    weight_list, grad_list = _element_inputs(check, metric, weights, grads, score_list)
    update = _update(check, OPS.update_scores_, score_list, weight_list, grad_list, (metric,), *rule)

    def call() -> TensorOrList:
        update()
        return scores

    return call


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
    where there are enough entries for a selection in one pass, the masks are written as the scores are (17 bytes per
    float32 entry instead of 21).

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
    rule = (alpha, beta, grad_scale, found_inf, skip_nonfinite)
    return checked(
        "update_topk_mask_", _update_topk_mask, scores, weights, grads, metric, rule, keep, sparsity, ties, packed, out
    )


def _update_topk_mask(
    check: Checker,
    scores: TensorOrList,
    weights: Any,
    grads: Any,
    metric: str,
    rule: tuple[Any, ...],
    keep: int | None,
    sparsity: float | None,
    ties: str,
    packed: bool,
    out: TensorOrList | None,
) -> Callable[[], TensorOrList]:
    score_list = check.tensors("scores", scores)
    check.outside_graphs("scores", score_list)
    weight_list, grad_list = _element_inputs(check, metric, weights, grads, score_list)
    check.choice("ties", ties, ("exact", "threshold"))
    kept = check.sparsity_to_keep(keep, sparsity, sum(map(Tensor.numel, score_list)))
    check.flag("packed", packed)
    masks = masks_for(check, score_list, packed, out)
    check.same_device(scores=score_list[:1], out=None if out is None else masks)

    def op(*arguments: Any) -> None:
        OPS.update_topk_mask_(*arguments, masks, kept, ties)

    update = _update(check, op, score_list, weight_list, grad_list, (metric,), *rule)

    def call() -> TensorOrList:
        update()
        return written(masks, scores, out)

    return call


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
    rule = (alpha, beta, grad_scale, found_inf, skip_nonfinite)
    return checked("update_block_scores_", _update_block_scores, scores, weights, grads, block, metric, reduce, rule)


def _update_block_scores(
    check: Checker,
    scores: TensorOrList,
    weights: Any,
    grads: Any,
    block: Sequence[int],
    metric: str,
    reduce: str,
    rule: tuple[Any, ...],
) -> Callable[[], TensorOrList]:
    score_list = check.tensors("scores", scores)
    check.outside_graphs("scores", score_list)
    weight_list, grad_list = check.reads(metric, BLOCK_METRICS, weights, grads)
    check.choice("reduce", reduce, _REDUCES)
    size = check.block(block)
    reads_weight, reads_grad = BLOCK_METRICS[metric]
    first_name, firsts = ("weights", weight_list) if reads_weight else ("grads", grad_list)
    check.same_length(first_name, firsts, "scores", score_list)
    if reads_weight and reads_grad:
        check_inputs(check, "grads", grad_list, weight_list, "weights")
    if check.thorough:
        for i, (score, first) in enumerate(zip(score_list, firsts, strict=True)):
            check.floating(first_name, first, i)
            check.shape("scores", score, check.divides(first_name, first.shape, size, i), i)
    how = (size, metric, reduce)
    update = _update(check, OPS.update_block_scores_, score_list, weight_list, grad_list, how, *rule)

    def call() -> TensorOrList:
        update()
        return scores

    return call


def _element_inputs(
    check: Checker, metric: str, weights: Any, grads: Any, scores: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """What an elementwise metric reads, checked against the scores."""
    lists = check.reads(metric, SCORE_METRICS, weights, grads)
    for name, values, read in zip(("weights", "grads"), lists, SCORE_METRICS[metric], strict=True):
        if read:
            check_inputs(check, name, values, scores)
    return lists


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
) -> Callable[[], None]:
    """The common end of all updates: the checks of what they share, and the call of the operator."""
    alpha, beta = check.number("alpha", alpha), check.number("beta", beta)
    if check.thorough:
        for i, score in enumerate(scores):
            check.floating("scores", score, i)
            check.written("scores", score, i)
    check.optional_scalar("grad_scale", grad_scale)
    check.optional_scalar("found_inf", found_inf)
    check.same_device(scores=scores, weights=weights, grads=grads, grad_scale=grad_scale, found_inf=found_inf)

    def call() -> None:
        if scores:
            op(scores, weights, grads, *how, alpha, beta, grad_scale, found_inf, bool(skip_nonfinite))
            mark_written(scores)

    return call


def block_reduce(score: Tensor, block: Sequence[int], reduce: str = "mean", *, out: Tensor | None = None) -> Tensor:
    """Reduce each (N, M) block of a score to one value.

    Args:
        score: floating, shape (R, C); conv shapes (O, I, k...) are seen as (O, k... * I).
        block: (N, M); -1 is the whole extent.
        reduce: ``mean``, ``sum`` or ``max``.
        out: to write into: floating, shape (R/N, C/M), on the device of ``score``. Large results are written faster
            into a tensor that is there than into a new one.

    Returns:
        ``out``, computed in float32 (float64 where it or ``score`` is) and rounded once to its dtype; or a new tensor
        of float32 (float64 for a float64 score).

    Raises:
        ValueError: the block does not divide the shape, ``reduce`` is unknown, or ``out`` has another shape or device.
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
    grid = check.divides("score", score.shape, size)
    if out is None:
        return OPS.block_reduce(score, size, reduce)
    check.floating("out", check.tensor("out", out))
    check.shape("out", out, grid)
    check.written("out", out)
    check.outside_graphs("out", [out])
    check.same_device(score=score, out=out)
    OPS.block_reduce.out(score, size, reduce, out)
    mark_written([out])
    return out
