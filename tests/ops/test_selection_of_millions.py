"""Selections of more entries than those from which CUDA, too, makes one pass with a sampled bracket."""

import numpy as np
import oracle
import pytest
from hostile import values
from tensors import assert_all_same, assert_same, tensor

from pruneops import ops

#: It is made from 2^22 entries (kShippedLimits in csrc/cuda/plan.cuh).
N = 2**22 + 77


def split(score):
    return np.split(score, [5, N // 3])


# The rank lies among distinct scores and among ties. A stable sort takes seconds where few scores are equal.
@pytest.mark.parametrize(("name", "dtype", "keep"), [
    ("normal", "float32", N // 2), ("normal", "bfloat16", N // 2), ("mostly_zero", "float32", N // 2),
    ("mostly_zero", "float64", N // 50),
])  # fmt: skip
def test_scores(device, name, dtype, keep):
    scores = split(values(name, (N,), dtype))
    given = [tensor(score, dtype, device) for score in scores]
    for ties in ("exact", "threshold"):
        expected, how = oracle.topk_mask(scores, keep, ties), {"keep": keep, "ties": ties}
        assert_all_same(ops.topk_mask(given, **how), expected)
        assert_all_same(ops.topk_mask(given, **how, strict=True), expected)
        assert_all_same(ops.topk_mask(given, **how, packed=True), map(oracle.packed, expected))
    value = ops.kth_value(given, N - keep)
    assert_same(value, np.asarray(oracle.kth_value(scores, N - keep), scores[0].dtype))


def test_scores_on_the_fly(device):
    weights, grads = (split(values("mostly_zero", (N,), seed=i)) for i in range(2))
    given, more = ([tensor(x, device=device) for x in part] for part in (weights, grads))
    scores = [oracle.entry_values("snip", *entry) for entry in zip(weights, grads, strict=True)]
    how = {"metric": "snip", "grads": more}
    assert_all_same(ops.topk_mask(given, keep=N // 200, **how), oracle.topk_mask(scores, N // 200))
    assert_same(ops.kth_value(given, N - N // 200, **how), np.float32(oracle.kth_value(scores, N - N // 200)))


@pytest.mark.parametrize(("name", "dtype"), [("normal", "float32"), ("few_distinct", "bfloat16")])
def test_update(device, name, dtype):
    scores, weights = (split(values(name, (N,), dtype, i)) for i in range(2))
    how = {"metric": "magnitude", "alpha": 0.9}
    updated = [oracle.update_scores(*entry, None, dtype=dtype, **how) for entry in zip(scores, weights, strict=True)]
    for ties, one_bit in (("exact", False), ("threshold", True)):
        given, more = ([tensor(x, dtype, device) for x in part] for part in (scores, weights))
        masks = ops.update_topk_mask_(given, more, None, keep=N // 2, ties=ties, packed=one_bit, **how)
        expected = oracle.topk_mask(updated, N // 2, ties)
        assert_all_same(given, updated)
        assert_all_same(masks, map(oracle.packed, expected) if one_bit else expected)
