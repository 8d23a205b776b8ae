"""Random calls of the operators, held against the oracle: hostile values × dtypes × layouts × splits × threads.

    python tests/fuzz.py [--cases N] [--seed SEED] [--first CASE] [--device cpu]

A case is all drawn from the seed and its number. The first mismatch ends the run, with the command that repeats it.
"""

import argparse
import math
import secrets
import sys
import time
import traceback
from collections import Counter

import numpy as np
import oracle
import torch
from hostile import DTYPES, SIZES, VALUES, layouts
from tensors import array, assert_all_same, assert_only_view_written, assert_same, tensor

from pruneops import ops

#: Values whose products and their sums are exact in every order.
EXACT = ("few_distinct", "all_equal", "all_zero")
THREADS = (1, 2, 3, 8)


class Draw:
    """The random choices of one case; ``said`` tells them."""

    def __init__(self, seed, number, device):
        self.rng = np.random.default_rng([seed, number])
        self.device = device
        self.said = []

    def say(self, **choices):
        self.said.append(", ".join(f"{name}={value}" for name, value in choices.items()))
        return choices

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def chance(self, share):
        return bool(self.rng.random() < share)

    def size(self):
        """Mostly small, often at the edges of vectors, tiles and chunks, sometimes long enough for several threads."""
        if self.chance(0.85):
            return int(self.rng.integers(0, 200))
        return self.pick(SIZES) if self.chance(0.93) else int(2 ** self.rng.uniform(16, 19))

    def count(self, most):
        """A number of entries to keep or to prune."""
        return int(self.pick((0, most, most // 2, most // 10, *self.rng.integers(0, most + 1, 4))))

    def kept(self, most):
        """``keep`` or ``sparsity`` of ``most`` entries, and how many it keeps."""
        if self.chance(0.5):
            keep = self.count(most)
            return self.say(keep=keep), keep
        sparsity = self.pick((0.0, 0.1, 0.5, 0.9, 1.0, float(self.rng.random())))
        return self.say(sparsity=sparsity), most - int(sparsity * most)

    def shape(self, n):
        """``n`` entries in up to four dimensions."""
        shape = [n]
        for _ in range(self.pick((0, 1, 1, 3))):
            size = self.pick([d for d in (1, 2, 3, 5) if shape[-1] % d == 0])
            shape[-1:] = [size, shape[-1] // size]
        return tuple(shape) if n != 1 or self.chance(0.5) else ()

    def split(self, n):
        """Shapes of tensors that have ``n`` entries together; some may be empty."""
        cuts = np.sort(self.rng.integers(0, n + 1, self.pick((0, 0, 0, 1, 1, 2, 2, 9))))
        return [self.shape(int(size)) for size in np.diff([0, *cuts, n])]

    def blocks(self):
        """A block, shapes that it divides, and their grids."""
        n, m = (self.pick((1, 1, 2, 3, 4, 8, 16, 33)) for _ in range(2))
        block = tuple(-1 if self.chance(0.15) else size for size in (n, m))
        shapes = []
        for _ in range(self.pick((1, 1, 2, 5))):
            count = min(self.size(), 2**17 // (n * m))
            rows = int(self.rng.integers(0, min(count, 40) + 1))
            shapes.append((n * rows, m * (count // max(1, rows)), *self.pick(((), (), (3,), (2, 2)))))
        self.say(block=block, shapes=shapes)
        return block, shapes, [oracle.block_ids(shape, block)[1] for shape in shapes]

    def bools(self, shape):
        return self.rng.random(shape) < 0.5

    def laid_out(self, array):
        """Its tensor, in any layout."""
        layout = self.say(layout=self.pick(layouts(array.ndim)))["layout"]
        return tensor(array, device=self.device, layout=layout)

    def tensors(self, name, shapes, kinds=tuple(VALUES)):
        """Values that run through all tensors: arrays, and the same as tensors of any dtype and layout."""
        kind, mixed = self.pick(kinds), self.chance(0.2)
        flat = VALUES[kind](self.rng, sum(map(math.prod, shapes)))
        parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        dtypes = [self.pick(DTYPES) if mixed else None for _ in shapes]
        common, layout = self.pick(DTYPES), self.pick(layouts(min(len(shape) for shape in shapes)))
        dtypes = [dtype or common for dtype in dtypes]
        self.said.append(f"{name}: {kind}, {'/'.join(sorted(set(dtypes)))}, {layout}")
        with np.errstate(all="ignore"):
            arrays = [oracle.round_to(x, d).reshape(s) for x, d, s in zip(parts, dtypes, shapes, strict=True)]
        return arrays, [tensor(x, d, self.device, layout) for x, d in zip(arrays, dtypes, strict=True)]


def ranked(draw, shapes):
    """What a selection ranks: its tensors, the arguments of a metric, and the scores in NumPy."""
    weights, given = draw.tensors("scores or weights", shapes)
    metric = draw.say(metric=draw.pick((None, None, None, *oracle.SELECT_METRICS)))["metric"]
    if metric is None:
        return given, {}, weights
    how, grads, norms = {"metric": metric}, [None] * len(shapes), [None] * len(shapes)
    if metric == "wanda":
        norms = [np.abs(draw.rng.standard_normal(shape[-1:] or 1)).astype(np.float32) for shape in shapes]
        how["input_norm"] = [tensor(norm, device=draw.device) for norm in norms]
    elif oracle.METRICS[metric][1]:
        grads, how["grads"] = draw.tensors("grads", shapes)
    scores = []
    for entry in zip(weights, grads, norms, strict=True):
        kind = oracle.compute_type(*entry[:2])
        scores.append(np.reshape(oracle.entry_values(metric, *entry, kind=kind), entry[0].shape))
    return given, how, scores


def target(draw, shapes):
    """``packed`` and ``out`` of a selection."""
    packed = draw.say(packed=draw.chance(0.3))["packed"]
    if draw.chance(0.5):
        return {"packed": packed}
    shapes = [((math.prod(shape) + 7) // 8,) if packed else shape for shape in shapes]
    layout = draw.pick(layouts(min(len(shape) for shape in shapes)))
    draw.say(out=layout)
    ones = [np.ones(shape, np.uint8 if packed else bool) for shape in shapes]
    return {"packed": packed, "out": [tensor(x, device=draw.device, layout=layout) for x in ones]}


def check_masks(masks, expected, how):
    if how["packed"]:
        expected = [oracle.packed(mask) for mask in expected]
    assert_all_same(masks, expected)
    for mask in how.get("out", ()):
        assert_only_view_written(mask)


def topk_mask(draw):
    shapes = draw.split(draw.size())
    scores, inputs, expected = ranked(draw, shapes)
    count, keep = draw.kept(sum(x.size for x in expected))
    how = target(draw, shapes)
    rule = draw.say(ties=draw.pick(("exact", "threshold")), strict=draw.chance(0.3))
    masks = ops.topk_mask(scores, **count, **rule, **how, **inputs)
    check_masks(masks, oracle.topk_mask(expected, keep, rule["ties"]), how)


def read(draw, shapes, metric, kinds=tuple(VALUES)):
    """Weights and gradients, as far as the metric reads them: arrays, and tensors."""
    reads = zip(("weights", "grads"), oracle.METRICS.get(metric, (True, True)), strict=True)
    return [draw.tensors(name, shapes, kinds) if needed else ([None] * len(shapes), None) for name, needed in reads]


def rule(draw, scales=(1.0, 1024.0, 3.0)):
    """How values become scores, for the oracle and for the operator."""
    factor = (0.0, 0.9, 1.0, -0.5)
    how = draw.say(alpha=draw.pick(factor), beta=draw.pick(factor[1:]), skip_nonfinite=draw.chance(0.3))
    if draw.chance(0.7):
        return how, how
    scalars = draw.say(grad_scale=draw.pick(scales), found_inf=draw.pick((0.0, 0.0, 1.0)))
    return how | scalars, how | {name: torch.tensor(x, device=draw.device) for name, x in scalars.items()}


def dtype_of(x):
    return str(x.dtype).removeprefix("torch.")


def update(draw, shapes):
    """The arguments of a score update, and the scores that it leaves."""
    old, scores = draw.tensors("scores", shapes)
    metric = draw.say(metric=draw.pick(list(oracle.METRICS)))
    (weights, w), (grads, g) = read(draw, shapes, metric["metric"])
    told, how = rule(draw)
    new = [
        oracle.update_scores(*entry, dtype=dtype_of(score), **metric, **told)
        for *entry, score in zip(old, weights, grads, scores, strict=True)
    ]
    return (scores, w, g), metric | how, new


def check_scores(scores, expected):
    assert_all_same(scores, expected)
    for score in scores:
        assert_only_view_written(score)


def update_scores(draw):
    arguments, how, expected = update(draw, draw.split(draw.size()))
    ops.update_scores_(*arguments, **how)
    check_scores(arguments[0], expected)


def update_topk_mask(draw):
    shapes = draw.split(draw.size())
    arguments, how, expected = update(draw, shapes)
    count, keep = draw.kept(sum(x.size for x in expected))
    masks, ties = target(draw, shapes), draw.say(ties=draw.pick(("exact", "threshold")))
    result = ops.update_topk_mask_(*arguments, **how, **count, **ties, **masks)
    check_scores(arguments[0], expected)
    check_masks(result, oracle.topk_mask(expected, keep, **ties), masks)


def update_block_scores(draw):
    block, shapes, grids = draw.blocks()
    how = draw.say(metric=draw.pick((*oracle.METRICS, *oracle.MASK_METRICS)), reduce=draw.pick(("mean", "sum", "max")))
    highest = how["reduce"] == "max" and how["metric"] in oracle.METRICS
    old, scores = draw.tensors("scores", grids)
    (weights, w), (grads, g) = read(draw, shapes, how["metric"], tuple(VALUES) if highest else EXACT)
    told, given = rule(draw, scales=(1.0, 1024.0))
    of_values = {name: told[name] for name in told.keys() & {"grad_scale", "skip_nonfinite"}}
    of_scores = {name: told[name] for name in told.keys() - of_values.keys()}
    expected = []
    for before, weight, grad, score in zip(old, weights, grads, scores, strict=True):
        kind = oracle.compute_type(before, weight, grad)
        v, _ = oracle.block_values(weight, grad, block=block, kind=kind, **how, **of_values)
        expected.append(oracle.write_scores(before, v.astype(kind), dtype=dtype_of(score), **of_scores))
    ops.update_block_scores_(scores, w, g, block=block, **how, **given)
    if how["metric"] == "mask_sum":  # products that are all -0.0 may sum up to either zero
        expected = [x + 0 for x in expected]
        for score in scores:
            score.add_(0)
    check_scores(scores, expected)


def block_reduce(draw):
    block, shapes, grids = draw.blocks()
    reduce = draw.say(reduce=draw.pick(("mean", "sum", "max")))["reduce"]
    (score,), (given,) = draw.tensors("score", shapes[:1], tuple(VALUES) if reduce == "max" else EXACT)
    (ones,), out = draw.tensors("out", grids[:1], ("all_equal",)) if draw.chance(0.5) else ([None], [])
    kind = oracle.compute_type(score, ones)
    expected = oracle.block_values(score, None, "stored", block, reduce, kind=kind)[0].astype(kind)
    result = ops.block_reduce(given, block, reduce, **({"out": out[0]} if out else {}))
    # Of zeros of both signs either is the highest.
    assert_same(array(result) + 0.0, oracle.round_to(expected, dtype_of(result)) + 0.0)


def kth_value(draw):
    scores, inputs, expected = ranked(draw, draw.split(max(1, draw.size())))
    k = draw.say(k=max(1, draw.count(sum(x.size for x in expected))))["k"]
    assert_same(array(ops.kth_value(scores, k, **inputs)).astype(np.float64), np.float64(oracle.kth_value(expected, k)))


def one(draw, shape):
    """The inputs, the scores and the target of a selection in one tensor."""
    (score,), inputs, (expected,) = ranked(draw, [shape])
    how = target(draw, [shape])
    single = {name: value if isinstance(value, (str, bool)) else value[0] for name, value in (inputs | how).items()}
    return score, expected, single, how


def row_topk_mask(draw):
    rows = int(draw.rng.integers(0, 20))
    columns = draw.size() // max(1, rows)
    score, expected, single, how = one(draw, (rows, columns))
    count, keep = draw.kept(columns)
    check_masks([ops.row_topk_mask(score, **count, **single)], [oracle.row_topk_mask(expected, keep)], how)


def nm_mask(draw):
    m = int(draw.rng.integers(1, 9)) if draw.chance(0.9) else draw.pick((13, 16, 32, 40))
    groups = draw.shape(draw.size() // m)
    n = draw.say(n=draw.count(m), m=m)["n"]
    score, expected, single, how = one(draw, (*groups[:-1], m * groups[-1]) if groups else (m,))
    check_masks([ops.nm_mask(score, n, m, **single)], [oracle.nm_mask(expected, n, m)], how)


def apply_masks(draw):
    shapes = draw.split(draw.size())
    arrays, tensors = draw.tensors("tensors", shapes)
    kept = [draw.bools(shape) for shape in shapes]
    packed = draw.say(packed=draw.chance(0.5))["packed"]
    masks = [oracle.packed(mask) if packed else mask for mask in kept]
    ops.apply_masks_(tensors, [tensor(mask, device=draw.device) for mask in masks])
    check_scores(tensors, [np.where(mask, x, x.dtype.type(0)) for x, mask in zip(arrays, kept, strict=True)])


def expand_block_mask(draw):
    block, (shape, *_), (grid, *_) = draw.blocks()
    mask = draw.bools(grid)
    assert_same(ops.expand_block_mask(draw.laid_out(mask), block, shape), oracle.expand_blocks(mask, block, shape))


def pack_mask(draw):
    mask = draw.bools(draw.shape(draw.size()))
    packed = oracle.packed(mask)
    assert_same(ops.pack_mask(draw.laid_out(mask)), packed)
    assert_same(ops.unpack_mask(draw.laid_out(packed), mask.shape), mask)


def prune_by_importance(draw):
    instances, stride = int(draw.pick((1, 7, 40, draw.size()))), draw.pick((1, 2, 3, 8))
    others = [draw.pick((1, 2, 5)) for _ in range(draw.pick((0, 1, 2)))]
    how = draw.say(dim=int(draw.rng.integers(-1 - len(others), 1 + len(others))))
    others.insert(how["dim"] % (1 + len(others)), instances * stride)
    (values,), (given,) = draw.tensors("tensor", [tuple(others)])
    (importance,), (ranks,) = draw.tensors("importance", [(instances,)])
    numbers = draw.say(num_instances=draw.count(instances), stride=stride, order=draw.pick(("importance", "original")))
    expected = oracle.prune_by_importance(values, importance, **numbers, **how)
    assert_same(ops.prune_by_importance(given, ranks, **numbers, **how), expected)


def count_digits(draw):
    scores, inputs, expected = ranked(draw, draw.split(draw.size()))
    kind = oracle.compute_type(*expected)
    keys = [oracle.key_bits(x.astype(kind).ravel()) for x in expected]
    bits, everything = 8 * np.dtype(kind).itemsize, np.concatenate(keys)
    round = draw.say(round=int(draw.rng.integers(0, -(-bits // 11))))["round"]
    before = max(0, bits - 11 * round)
    prefix = int(draw.pick(everything)) >> before << before if everything.size else 0
    signed = torch.tensor([prefix - 2**64 if prefix >= 2**63 else prefix], device=draw.device)
    counts = np.stack([oracle.count_digits(x, prefix, round) for x in keys])
    assert_same(ops.count_digits(scores, signed, round, **inputs), counts)


OTHERS = (
    update_scores, update_block_scores, block_reduce, update_topk_mask, kth_value, row_topk_mask, nm_mask, count_digits,
    expand_block_mask, apply_masks, pack_mask, prune_by_importance,
)  # fmt: skip
#: Half of the calls are of the selection with the most ways through it.
CALLS = (topk_mask,) * len(OTHERS) + OTHERS


def run_case(seed, number, device):
    """Make one call; its name, and what differs (None where nothing does) with what was called."""
    draw = Draw(seed, number, device)
    call, threads = draw.pick(CALLS), draw.pick(THREADS)
    draw.say(threads=threads)
    torch.set_num_threads(threads)
    try:
        call(draw)
    except Exception:
        return call.__name__, f"{call.__name__}: {'; '.join(draw.said)}\n{traceback.format_exc()}"
    return call.__name__, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="number of the first case")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"fuzz: {args.cases} cases on {args.device}, seed {args.seed}", flush=True)
    calls, start = Counter(), time.monotonic()
    for number in range(args.first, args.first + args.cases):
        name, mismatch = run_case(args.seed, number, args.device)
        if mismatch:
            repeat = f"python tests/fuzz.py --device {args.device} --seed {args.seed} --first {number} --cases 1"
            sys.exit(f"fuzz: MISMATCH in case {number}; again with\n    {repeat}\n{mismatch}")
        calls[name] += 1
    counts = ", ".join(f"{name} {count}" for name, count in calls.most_common())
    print(f"fuzz: {calls.total()} cases, no mismatch, {time.monotonic() - start:.0f} s ({counts})")


if __name__ == "__main__":
    main()
