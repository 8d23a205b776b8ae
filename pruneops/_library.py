"""Every operator of ``torch.ops.pruneops``: schema, fake kernel and PyTorch reference, one screen each.

The reference is the default implementation for every device and the specification that the compiled
kernels meet bit for bit (block sums: up to the order of summation). It is written for clarity and uses
whole-tensor temporaries; the compiled library replaces it on CPU and CUDA (see ``_native.py``).

Arguments are checked in ``ops``. Conventions of the schemas: an empty list stands for an argument
that the metric does not read; ``metric=None`` in a selection means that the first argument is the score.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_LIB = torch.library.Library("pruneops", "DEF")


class UncheckedCallError(RuntimeError):
    """An operator was called with unchecked arguments, and what runs is not the compiled one, which checks them."""


class _Caller(threading.local):
    """While ``unchecked``, this thread calls operators whose arguments nobody has checked: each raises, before anything
    is written, unless it is the compiled one and finds nothing wrong."""

    unchecked = False


CALLER = _Caller()


def _checked(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def call(*args: Any) -> object:
        if CALLER.unchecked:
            raise UncheckedCallError("pruneops: the arguments must be checked first")
        return function(*args)

    return call


def _op(schema: str, fake: Callable[..., object]) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Define ``schema`` with ``fake`` for tracing and the decorated function as its default kernel."""
    name = schema.partition("(")[0]

    def register(reference: Callable[..., object]) -> Callable[..., object]:
        _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        # Scores and masks have no gradient: neither a graph nor a check of leaves may come between.
        _LIB.impl(name, torch.no_grad()(_checked(reference)), "CompositeExplicitAutograd")
        _LIB.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"pruneops::{name}", _checked(fake), lib=_LIB)
        return reference

    return register


def _writes_only(*_: object) -> None:
    """Fake kernel of an operator that returns nothing and writes into its arguments."""


# --- formulas -------------------------------------------------------------------------------------


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which a formula over these tensors is computed."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _value(metric: str | None, first: Any, grad: Any, norm: Any) -> Tensor:
    """The value v of one entry, by metric; the inputs have the compute dtype."""
    match metric:
        case None:
            return first
        case "magnitude":
            return first.abs()
        case "gradient":
            return grad.abs()
        case "snip":
            return (first * grad).abs()
        case "taylor":
            return (first * grad).square()
        case "fisher":
            return grad.square()
        case "wanda":
            return first.abs() * norm
        case "mask_gradient" | "mask_fisher" | "mask_sum":
            return first * grad
    raise RuntimeError(f"pruneops: unknown metric {metric!r}")


def _values(
    metric: str | None,
    scores: Sequence[Tensor],
    firsts: Sequence[Tensor],
    grads: Sequence[Tensor],
    norms: Sequence[Tensor] = (),
    grad_scale: Tensor | None = None,
):
    """v for each tensor of a list, computed in float32 (float64 where one of its inputs is)."""
    for i in range(max(len(firsts), len(grads))):
        inputs = [x[i] if x else None for x in (firsts, grads, norms)]
        dtype = compute_dtype(*(x for x in (*inputs, *scores[i : i + 1]) if x is not None))
        first, grad, norm = (None if x is None else x.to(dtype) for x in inputs)
        if grad is not None and grad_scale is not None:
            grad = grad / grad_scale.reshape(()).to(dtype)
        yield _value(metric, first, grad, norm)


def _finite_or_zero(value: Tensor, skip_nonfinite: bool) -> Tensor:
    return torch.where(value.isfinite(), value, torch.zeros_like(value)) if skip_nonfinite else value


def _rounded_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; torch rounds a float64 to a half type twice, through float32.

    So float32 is rounded to odd: cut off, with the last bit set where something was lost.
    """
    if x.dtype != torch.float64 or dtype in (torch.float32, torch.float64):
        return x.to(dtype)
    nearest = x.float()
    back = nearest.double()
    odd = (nearest.view(torch.int32) - (back.abs() > x.abs()).int()) | 1
    return torch.where((back == x) | x.isnan(), nearest, odd.view(torch.float32)).to(dtype)


def _write_score(score: Tensor, value: Tensor, alpha: float, beta: float, found_inf: Tensor | None) -> None:
    new = beta * value
    if alpha != 0:
        new = alpha * score.to(value.dtype) + new
    new = _rounded_once(new, score.dtype)
    if found_inf is not None:
        new = torch.where(found_inf.reshape(()) != 0, score, new)
    score.copy_(new)


# --- score updates --------------------------------------------------------------------------------


@_op(
    "update_scores_(Tensor(a!)[] scores, Tensor[] weights, Tensor[] grads, str metric, float alpha, float beta, "
    "Tensor? grad_scale, Tensor? found_inf, bool skip_nonfinite) -> ()",
    fake=_writes_only,
)
def update_scores_(scores, weights, grads, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite):
    values = _values(metric, scores, weights, grads, grad_scale=grad_scale)
    for score, value in zip(scores, values, strict=True):
        _write_score(score, _finite_or_zero(value, skip_nonfinite), alpha, beta, found_inf)


def matrix_and_block(shape: Sequence[int], block: Sequence[int]) -> tuple[int, int, int, int]:
    """R and C of the matrix that a weight is seen as, and N and M: -1 is the whole extent, an empty one counts as 1."""
    rows, *others = shape
    cols = prod(others)
    return rows, cols, (rows or 1) if block[0] == -1 else block[0], (cols or 1) if block[1] == -1 else block[1]


def block_grid(block: Sequence[int], shape: Sequence[int]) -> tuple[int, int]:
    """Number of blocks along the rows and the columns of a weight of ``shape``."""
    rows, cols, n, m = matrix_and_block(shape, block)
    return (rows // n, cols // m)


def _as_blocks(x: Tensor, block: Sequence[int]) -> Tensor:
    """A weight as (R/N, N, C/M, M); conv weights (O, I, k...) become (O, k... * I) first."""
    rows, cols, n, m = matrix_and_block(x.shape, block)
    matrix = x.movedim(1, -1) if x.dim() > 2 else x
    return matrix.reshape(rows // n, n, cols // m, m)


def _reduce(values: Tensor, reduce: str) -> Tensor:
    if reduce == "max":
        return values.amax((1, 3))
    total = values.sum((1, 3))
    return total / (values.shape[1] * values.shape[3]) if reduce == "mean" else total


@_op(
    "update_block_scores_(Tensor(a!)[] scores, Tensor[] weights, Tensor[] grads, int[] block, str metric, "
    "str reduce, float alpha, float beta, Tensor? grad_scale, Tensor? found_inf, bool skip_nonfinite) -> ()",
    fake=_writes_only,
)
def update_block_scores_(
    scores, weights, grads, block, metric, reduce, alpha, beta, grad_scale, found_inf, skip_nonfinite
):
    values = _values(metric, scores, weights, grads, grad_scale=grad_scale)
    for score, value in zip(scores, values, strict=True):
        if metric.startswith("mask_"):
            total = _reduce(_as_blocks(value, block), "sum")
            value = {"mask_gradient": total.abs, "mask_fisher": total.square, "mask_sum": total.clone}[metric]()
            value = _finite_or_zero(value, skip_nonfinite)
        else:
            value = _reduce(_as_blocks(_finite_or_zero(value, skip_nonfinite), block), reduce)
        _write_score(score, value, alpha, beta, found_inf)


def _block_values(score: Tensor, block: Sequence[int], reduce: str, dtype: torch.dtype) -> Tensor:
    return _reduce(_as_blocks(score.to(dtype), block), reduce)


def _block_reduce_fake(score, block, reduce):
    return score.new_empty(block_grid(block, score.shape), dtype=compute_dtype(score))


@_op("block_reduce(Tensor score, int[] block, str reduce) -> Tensor", fake=_block_reduce_fake)
def block_reduce(score, block, reduce):
    return _block_values(score, block, reduce, compute_dtype(score))


@_op("block_reduce.out(Tensor score, int[] block, str reduce, Tensor(a!) out) -> ()", fake=_writes_only)
def block_reduce_out(score, block, reduce, out):
    out.copy_(_rounded_once(_block_values(score, block, reduce, compute_dtype(score, out)), out.dtype))


# --- selection ------------------------------------------------------------------------------------


def _sort_key(score: Tensor) -> Tensor:
    """int64 keys in the order of scores: NaN < -inf < ... < -0.0 == +0.0 < ... < +inf."""
    bits = (score + 0.0).view(torch.int64 if score.dtype == torch.float64 else torch.int32).to(torch.int64)
    magnitude = 2**63 - 1 if score.dtype == torch.float64 else 2**31 - 1
    keys = torch.where(bits < 0, bits ^ magnitude, bits)
    return torch.where(score.isnan(), -(2**63), keys)


#: A selection by rounds decides a key digit by digit from the top.
DIGIT_BITS = 11


def digit_rounds(dtype: torch.dtype) -> int:
    """Rounds until the key of a score that is computed in ``dtype`` is decided."""
    return -(-8 * dtype.itemsize // DIGIT_BITS)


def digit_shift(dtype: torch.dtype, round: int) -> int:
    """The bits of a key below the digit of ``round``; round -1 has the whole key below it."""
    return max(0, 8 * dtype.itemsize - DIGIT_BITS * (round + 1))


def _key_bits(score: Tensor) -> Tensor:
    """The order of scores as the bits of an unsigned integer, in int64: NaN is 0."""
    keys = _sort_key(score)
    if score.dtype == torch.float64:
        return keys ^ -(2**63)
    return torch.where(score.isnan(), 0, keys + 2**31)


def _all_scores(scores, metric, grads, norms) -> Tensor:
    values = [value.reshape(-1) for value in _values(metric, (), scores, grads, norms)]
    dtype = compute_dtype(*values)
    return torch.cat([value.to(dtype) for value in values])


def _keep_highest(scores: Tensor, keep: int, ties: str = "exact") -> Tensor:
    """Masks along the last dimension: the ``keep`` highest, earlier ones first among equals."""
    keys = _sort_key(scores)
    ordered, order = keys.sort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(keys, dtype=torch.bool)
    if ties == "threshold" and keep < keys.shape[-1]:
        return torch.gt(keys, ordered[..., keep : keep + 1])
    return mask.scatter(-1, order[..., :keep], True)


def _kth_value_fake(scores, k, metric, grads, input_norms):
    dtype = compute_dtype(*scores, *grads)
    if metric is None:
        dtype = scores[0].dtype
        for score in scores[1:]:
            dtype = torch.promote_types(dtype, score.dtype)
    return scores[0].new_empty((), dtype=dtype)


@_op(
    "kth_value(Tensor[] scores, SymInt k, str? metric, Tensor[] grads, Tensor[] input_norms) -> Tensor",
    fake=_kth_value_fake,
)
def kth_value(scores, k, metric, grads, input_norms):
    flat = _all_scores(scores, metric, grads, input_norms)
    index = _sort_key(flat).argsort()[k - 1]
    return (flat[index] + 0.0).to(_kth_value_fake(scores, k, metric, grads, input_norms).dtype)


@_op(
    "topk_mask(Tensor[] scores, Tensor(a!)[] out, SymInt keep, str ties, bool strict, str? metric, Tensor[] grads, "
    "Tensor[] input_norms) -> ()",
    fake=_writes_only,
)
def topk_mask(scores, out, keep, ties, strict, metric, grads, input_norms):
    mask = _keep_highest(_all_scores(scores, metric, grads, input_norms), keep, ties)
    for part, target in zip(mask.split([score.numel() for score in scores]), out, strict=True):
        _write_mask(target, part)


def _digits_fake(scores, prefix, round, metric, grads, input_norms):
    return prefix.new_empty((len(scores), 2**DIGIT_BITS))


@_op(
    "count_digits(Tensor[] scores, Tensor prefix, int round, str? metric, Tensor[] grads, Tensor[] input_norms) "
    "-> Tensor",
    fake=_digits_fake,
)
def count_digits(scores, prefix, round, metric, grads, input_norms):
    values = list(_values(metric, (), scores, grads, input_norms))
    dtype = compute_dtype(*values)
    counts = _digits_fake(scores, prefix, round, metric, grads, input_norms).zero_()
    shift, before = digit_shift(dtype, round), digit_shift(dtype, round - 1)
    for value, row in zip(values, counts, strict=True):
        keys = _key_bits(value.reshape(-1).to(dtype))
        decided = prefix & (2**32 - 1) if dtype == torch.float32 else prefix
        matching = keys if round == 0 else keys[(keys >> before) == (decided >> before)]
        # The last digit may have fewer bits.
        digits = (matching >> shift) & (2 ** min(DIGIT_BITS, before - shift) - 1)
        row.copy_(digits.bincount(minlength=len(row)))
    return counts


@_op(
    "update_topk_mask_(Tensor(a!)[] scores, Tensor[] weights, Tensor[] grads, str metric, float alpha, float beta, "
    "Tensor? grad_scale, Tensor? found_inf, bool skip_nonfinite, Tensor(b!)[] out, SymInt keep, str ties) -> ()",
    fake=_writes_only,
)
def update_topk_mask_(
    scores, weights, grads, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite, out, keep, ties
):
    update_scores_(scores, weights, grads, metric, alpha, beta, grad_scale, found_inf, skip_nonfinite)
    topk_mask(scores, out, keep, ties, False, None, [], [])


def _write_mask(target: Tensor, mask: Tensor) -> None:
    """``mask``, or its bits, into a given one."""
    written: Any = pack_mask(mask) if target.dtype == torch.uint8 else mask
    target.copy_(written.reshape(target.shape))


def _one_score(score: Tensor, metric, grad, input_norm) -> Tensor:
    scores, grads, norms = ([x] if x is not None else [] for x in (score, grad, input_norm))
    return next(_values(metric, (), scores, grads, norms))


_ONE = "Tensor score, Tensor(a!) out, {}, str? metric, Tensor? grad, Tensor? input_norm) -> ()"


@_op("row_topk_mask(" + _ONE.format("SymInt keep"), fake=_writes_only)
def row_topk_mask(score, out, keep, metric, grad, input_norm):
    _write_mask(out, _keep_highest(torch.atleast_1d(_one_score(score, metric, grad, input_norm)), keep))


@_op("nm_mask(" + _ONE.format("int n, int m"), fake=_writes_only)
def nm_mask(score, out, n, m, metric, grad, input_norm):
    groups = _one_score(score, metric, grad, input_norm).reshape(-1, m)
    _write_mask(out, _keep_highest(groups, n))


# --- masks ----------------------------------------------------------------------------------------


def packed_size(numel: int) -> int:
    """Bytes of a packed mask of ``numel`` entries."""
    return (numel + 7) // 8


def _empty_masks(scores, packed):
    if packed:
        return [score.new_empty(packed_size(score.numel()), dtype=torch.uint8) for score in scores]
    return [score.new_empty(score.shape, dtype=torch.bool) for score in scores]


@_op("empty_masks(Tensor[] scores, bool packed) -> Tensor[]", fake=_empty_masks)
def empty_masks(scores, packed):
    return _empty_masks(scores, packed)


def _expand_fake(mask, block, shape):
    return mask.new_empty(shape, dtype=torch.bool)


@_op("expand_block_mask(Tensor mask, int[] block, SymInt[] shape) -> Tensor", fake=_expand_fake)
def expand_block_mask(mask, block, shape):
    _, _, n, m = matrix_and_block(shape, block)
    matrix = mask.repeat_interleave(n, 0).repeat_interleave(m, 1)
    if len(shape) > 2:
        return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
    return matrix.reshape(shape)


@_op("pack_mask(Tensor mask) -> Tensor", fake=lambda mask: mask.new_empty(packed_size(mask.numel()), dtype=torch.uint8))
def pack_mask(mask):
    bits = mask.new_zeros(packed_size(mask.numel()) * 8, dtype=torch.uint8)
    bits[: mask.numel()] = mask.reshape(-1)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (bits.reshape(-1, 8) * weights).sum(1, dtype=torch.uint8)


@_op(
    "unpack_mask(Tensor packed, SymInt[] shape) -> Tensor",
    fake=lambda packed, shape: packed.new_empty(shape, dtype=torch.bool),
)
def unpack_mask(packed, shape):
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    return ((packed.reshape(-1, 1) & weights) != 0).reshape(-1)[: prod(shape)].reshape(shape)


@_op("apply_masks_(Tensor(a!)[] tensors, Tensor[] masks, int[]? block) -> ()", fake=_writes_only)
def apply_masks_(tensors, masks, block):
    for tensor, mask in zip(tensors, masks, strict=True):
        if block is not None:
            mask = expand_block_mask(mask, block, tensor.shape)
        elif mask.dtype == torch.uint8:
            mask = unpack_mask(mask, tensor.shape)
        if tensor.is_quantized:
            raise TypeError("pruneops: expected dense tensors, got a quantized one")
        # The 8-bit floating types have no masked_fill_; their zero is the zero byte.
        (tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor).masked_fill_(~mask, 0)


def _slabs_fake(tensor, importance, num_instances, stride, dim, order):
    shape = list(tensor.shape)
    shape[dim] = num_instances * stride
    return tensor.new_empty(shape)


@_op(
    "prune_by_importance(Tensor tensor, Tensor importance, SymInt num_instances, int stride, int dim, str order) "
    "-> Tensor",
    fake=_slabs_fake,
)
def prune_by_importance(tensor, importance, num_instances, stride, dim, order):
    kept = _sort_key(importance.to(compute_dtype(importance))).argsort(descending=True, stable=True)[:num_instances]
    if order == "original":
        kept = kept.sort().values
    rows = (kept[:, None] * stride + torch.arange(stride, device=tensor.device)).reshape(-1)
    return tensor.index_select(dim, rows)
