"""What every operator must return, in NumPy and plain Python, apart from the package and from torch.

Values of bfloat16 and float16 are held in float32 arrays, which represent them exactly; float64 stays float64.
"""

import math

import numpy as np

# --- metrics ----------------------------------------------------------------------------------------

#: Metric -> whether it reads the weight and the gradient, from the documentation of ``update_scores_``.
METRICS = {
    "magnitude": (True, False),
    "gradient": (False, True),
    "snip": (True, True),
    "taylor": (True, True),
    "fisher": (False, True),
}
#: Of blocks, beside those of their entries: they read both.
MASK_METRICS = ("mask_gradient", "mask_fisher", "mask_sum")
#: Of a selection that computes its scores; ``wanda`` reads the norm of the inputs too.
SELECT_METRICS = {**METRICS, "wanda": (True, False)}

# --- rounding and formulas --------------------------------------------------------------------------

#: How far, relative to a value, the nearest one of a dtype may be.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def round_to(values, dtype):
    """Round to nearest even, once, to ``dtype``; the result is held in float32 (float64 for float64)."""
    if dtype == "float64":
        return np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        if dtype == "float16":
            return np.asarray(values).astype(np.float16).astype(np.float32)
        single = np.array(values, np.float32)
    return _round_to_bfloat16(_to_odd(single, values)) if dtype == "bfloat16" else single


def _to_odd(single, exact):
    """Where ``single`` is not exact, that neighbour of the exact value whose last bit is 1: no second rounding errs."""
    even = (single.view(np.uint32) & np.uint32(1)) == 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        neighbour = np.nextafter(single, np.where(exact > single, np.float32(np.inf), np.float32(-np.inf)))
        return np.where(even & (single != exact), neighbour, single)


def _round_to_bfloat16(single):
    bits = single.view(np.uint32).astype(np.uint64)
    half_to_even = 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    rounded = ((bits + half_to_even) & np.uint64(0xFFFF0000)).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(single), single, rounded)


def compute_type(*arrays):
    """float64 where one of the inputs is, otherwise float32."""
    return np.float64 if any(a is not None and a.dtype == np.float64 for a in arrays) else np.float32


def entry_values(metric, weight=None, grad=None, norm=None, *, kind=np.float32, grad_scale=None):
    """v of each entry, one rounding to ``kind`` per operation."""
    w, g, norm = (None if a is None else a.astype(kind) for a in (weight, grad, norm))
    with np.errstate(all="ignore"):
        if g is not None and grad_scale is not None:
            g = g / kind(grad_scale)
        if metric == "magnitude":
            return np.abs(w)
        if metric == "gradient":
            return np.abs(g)
        if metric == "fisher":
            return g * g
        if metric == "wanda":
            return np.abs(w) * norm
        product = w * g
        return {"snip": np.abs(product), "taylor": product * product, "mask": product}[metric]


def update_scores(score, weight, grad, *, metric, dtype, grad_scale=None, skip_nonfinite=False, **how):
    kind = compute_type(score, weight, grad)
    v = entry_values(metric, weight, grad, kind=kind, grad_scale=grad_scale)
    if skip_nonfinite:
        v = np.where(np.isfinite(v), v, kind(0))
    return write_scores(score, v, dtype=dtype, **how)


def write_scores(score, v, *, dtype, alpha=0.0, beta=1.0, found_inf=0.0):
    if found_inf != 0:
        return score
    kind = v.dtype.type
    with np.errstate(all="ignore"):
        new = kind(beta) * v
        if alpha != 0:
            new = kind(alpha) * score.astype(kind) + new
    return round_to(new, dtype)


# --- blocks -----------------------------------------------------------------------------------------


def block_ids(shape, block):
    """The number of the block of every entry, and the grid; a conv weight (O, I, k...) is (O, k... * I)."""
    rows, cols = shape[0], math.prod(shape[1:])
    n = rows if block[0] == -1 else block[0]
    m = cols if block[1] == -1 else block[1]
    grid = (rows // max(n, 1), cols // max(m, 1))
    row, in_channel, *kernel = np.indices(shape)
    col = np.zeros(shape, np.int64)
    for position, size in zip(kernel, shape[2:], strict=True):
        col = col * size + position
    col = col * shape[1] + in_channel
    return (row // max(n, 1)) * grid[1] + col // max(m, 1), grid


def reduce_blocks(values, block, reduce):
    """Block sums, means or maxima in float64, and the sum of absolute values, which bounds their error."""
    ids, grid = block_ids(values.shape, block)
    count = math.prod(grid)
    flat, wide = ids.ravel(), values.astype(np.float64).ravel()
    absolute, result = np.zeros(count), np.zeros(count)
    np.add.at(absolute, flat, np.abs(wide))
    if reduce == "max":
        result[:] = -np.inf
        with np.errstate(invalid="ignore"):  # signalling NaN
            np.maximum.at(result, flat, wide)
    else:
        np.add.at(result, flat, wide)
    if reduce == "mean" and count:
        size = wide.size // count
        result, absolute = result / size, absolute / size
    return result.reshape(grid), absolute.reshape(grid)


def block_values(weight, grad, metric, block, reduce, *, kind, grad_scale=None, skip_nonfinite=False):
    """v of every block in float64, and how far a sum in ``kind`` in any order may be from it."""
    of_mask = metric.startswith("mask_")
    if metric == "stored":
        entry = weight.astype(kind)
    else:
        entry = entry_values("mask" if of_mask else metric, weight, grad, kind=kind, grad_scale=grad_scale)
    if skip_nonfinite and not of_mask:
        entry = np.where(np.isfinite(entry), entry, 0)
    total, absolute = reduce_blocks(entry, block, "sum" if of_mask else reduce)
    size = entry.size // max(total.size, 1)
    exact = reduce == "max" and not of_mask
    error = np.zeros_like(absolute) if exact else (size + 1) * np.finfo(kind).eps * absolute
    if skip_nonfinite and of_mask:
        error, total = (np.where(np.isfinite(total), x, 0) for x in (error, total))
    if metric == "mask_gradient":
        return np.abs(total), error
    if metric == "mask_fisher":
        return total**2, (2 * np.abs(total) + error) * error + np.finfo(kind).eps * total**2
    return total, error


def as_blocks(array, block):
    """(O, I, k...) as (R/N, N, C/M, M), the input channels innermost; -1 is the whole extent."""
    matrix = np.moveaxis(array, 1, -1).reshape(len(array), -1)
    (rows, n), (cols, m) = ((size, size if b == -1 else b) for size, b in zip(matrix.shape, block, strict=True))
    return matrix.reshape(rows // n, n, cols // m, m)


def expand_blocks(mask, block, shape):
    return mask.ravel()[block_ids(shape, block)[0]]


def packed(mask):
    return np.packbits(mask.ravel(), bitorder="little")


# --- selection --------------------------------------------------------------------------------------


def ranking(scores):
    """Positions from the highest score to the lowest; equal scores (and all NaN) in their order."""
    scores = np.asarray(scores, np.float64)
    missing = np.isnan(scores)
    return np.lexsort((-np.where(missing, 0.0, scores), missing))


def flat(arrays):
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays] or [np.zeros(0)])


def kth_value(arrays, k):
    scores = flat(arrays)
    # Turned around, since NumPy sorts NaN behind everything else.
    return -np.sort(-scores)[len(scores) - k] + 0.0


def keep_highest(scores, keep):
    mask = np.zeros(len(scores), bool)
    mask[ranking(scores)[:keep]] = True
    return mask


def above_threshold(scores, keep):
    """``ties="threshold"``: everything up to and including the k-th smallest score is pruned."""
    pruned = len(scores) - keep
    if pruned == 0:
        return np.ones(len(scores), bool)
    threshold = kth_value([scores], pruned)
    return ~np.isnan(scores) if np.isnan(threshold) else scores > threshold


def topk_mask(arrays, keep, ties="exact"):
    mask = (keep_highest if ties == "exact" else above_threshold)(flat(arrays), keep)
    ends = np.cumsum([a.size for a in arrays])
    return [mask[end - a.size : end].reshape(a.shape) for a, end in zip(arrays, ends, strict=True)]


def row_topk_mask(score, keep):
    if score.size == 0:
        return np.zeros(score.shape, bool)
    rows = score.reshape(-1, score.shape[-1] if score.ndim else 1)
    return np.stack([keep_highest(row, keep) for row in rows]).reshape(score.shape)


def nm_mask(score, n, m):
    """Entry i is kept if fewer than n entries of its group come before it in the order of scores."""
    groups = np.asarray(score, np.float64).reshape(-1, m)
    number, missing = np.nan_to_num(groups, nan=0.0, posinf=np.inf, neginf=-np.inf), np.isnan(groups)
    mask = np.zeros(groups.shape, bool)
    for i in range(m):
        before = np.zeros(len(groups), np.int64)
        for j in range(m):
            higher = (missing[:, i] & ~missing[:, j]) | (
                ~missing[:, i] & ~missing[:, j] & (number[:, j] > number[:, i])
            )
            equal = (missing[:, i] & missing[:, j]) | (~missing[:, i] & ~missing[:, j] & (number[:, j] == number[:, i]))
            before += higher | (equal & (j < i))
        mask[:, i] = before < n
    return mask.reshape(np.shape(score))


def key_bits(scores):
    """The order of float32 or float64 scores as unsigned integers of their size; NaN is 0."""
    word = np.dtype(f"u{scores.itemsize}").type
    bits, top = (scores + scores.dtype.type(0)).view(word), word(1 << (8 * scores.itemsize - 1))
    return np.where(np.isnan(scores), word(0), np.where(bits & top, ~bits, bits | top))


def count_digits(keys, prefix, round):
    """Of the keys whose bits before a round's digit, of 11 bits, are those of ``prefix``: how many have each digit."""
    shift, before = (max(0, 8 * keys.itemsize - 11 * r) for r in (round + 1, round))
    same = [key for key in map(int, keys) if key >> before == prefix >> before]
    return np.bincount(np.array([key >> shift & (1 << (before - shift)) - 1 for key in same], int), minlength=2048)


def prune_by_importance(array, importance, num_instances, stride, dim=0, order="importance"):
    kept = ranking(importance)[:num_instances]
    if order == "original":
        kept = np.sort(kept)
    slabs = [np.take(array, range(i * stride, (i + 1) * stride), axis=dim) for i in kept]
    return np.concatenate([np.take(array, [], axis=dim), *slabs], axis=dim).astype(array.dtype)
