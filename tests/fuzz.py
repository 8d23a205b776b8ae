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

#: Metric -> whether it reads the weight and the gradient, from the documentation of ``update_scores_``.
METRICS = {
    "magnitude": (True, False),
    "gradient": (False, True),
    "snip": (True, True),
    "taylor": (True, True),
    "fisher": (False, True),
}
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

    def tensors(self, name, shapes):
        """Hostile values that run through all tensors: arrays, and the same as tensors of any dtype and layout."""
        kind, mixed = self.pick(list(VALUES)), self.chance(0.2)
        flat = VALUES[kind](self.rng, sum(map(math.prod, shapes)))
        parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        dtypes = [self.pick(DTYPES) if mixed else None for _ in shapes]
        common, layout = self.pick(DTYPES), self.pick(layouts(min(len(shape) for shape in shapes)))
        dtypes = [dtype or common for dtype in dtypes]
        self.said.append(f"{name}: {kind}, {'/'.join(sorted(set(dtypes)))}, {layout}")
        with np.errstate(all="ignore"):
            arrays = [oracle.round_to(x, d).reshape(s) for x, d, s in zip(parts, dtypes, shapes, strict=True)]
        return arrays, [tensor(x, d, self.device, layout) for x, d in zip(arrays, dtypes, strict=True)]

    def scalar(self, values):
        value = self.pick(values)
        return value, torch.tensor(value, dtype=torch.float32, device=self.device)


def ranked(draw, shapes):
    """What a selection ranks: its tensors, the arguments of a metric, and the scores in NumPy."""
    weights, given = draw.tensors("scores or weights", shapes)
    metric = draw.say(metric=draw.pick((None, None, None, "wanda", *METRICS)))["metric"]
    if metric is None:
        return given, {}, weights
    how, grads, norms = {"metric": metric}, [None] * len(shapes), [None] * len(shapes)
    if metric == "wanda":
        norms = [np.abs(draw.rng.standard_normal(shape[-1:] or 1)).astype(np.float32) for shape in shapes]
        how["input_norm"] = [tensor(norm, device=draw.device) for norm in norms]
    elif METRICS[metric][1]:
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
        expected = [np.packbits(mask.ravel(), bitorder="little") for mask in expected]
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


def update(draw, shapes):
    """The arguments of a score update, and the scores that it leaves."""
    old, scores = draw.tensors("scores", shapes)
    metric = draw.pick(list(METRICS))
    factor = (0.0, 0.9, 1.0, -0.5)
    how = draw.say(metric=metric, alpha=draw.pick(factor), beta=draw.pick(factor[1:]), skip_nonfinite=draw.chance(0.3))
    read = [draw.tensors(name, shapes) if reads else ([None] * len(shapes), None)
            for name, reads in zip(("weights", "grads"), METRICS[metric], strict=True)]  # fmt: skip
    (weights, w), (grads, g) = read
    scalars = {}
    if draw.chance(0.3):
        scalars = {"grad_scale": draw.scalar((1.0, 1024.0, 3.0)), "found_inf": draw.scalar((0.0, 0.0, 1.0))}
        draw.say(**{name: value for name, (value, _) in scalars.items()})
    new = [
        oracle.update_scores(*entry, dtype=str(score.dtype)[6:], **how, **{name: x for name, (x, _) in scalars.items()})
        for *entry, score in zip(old, weights, grads, scores, strict=True)
    ]
    return (scores, w, g), {**how, **{name: x for name, (_, x) in scalars.items()}}, new


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
    kept = [draw.rng.random(shape) < 0.5 for shape in shapes]
    packed = draw.say(packed=draw.chance(0.5))["packed"]
    masks = [np.packbits(mask.ravel(), bitorder="little") if packed else mask for mask in kept]
    ops.apply_masks_(tensors, [tensor(mask, device=draw.device) for mask in masks])
    check_scores(tensors, [np.where(mask, x, x.dtype.type(0)) for x, mask in zip(arrays, kept, strict=True)])


#: Half of the calls are of the selection with the most ways through it.
CALLS = (topk_mask,) * 7 + (update_topk_mask, update_scores, kth_value, row_topk_mask, nm_mask, apply_masks, topk_mask)


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
