"""Selections that write packed masks: the bits of the masks that they write in bytes."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, layouts, values
from oracle import packed
from tensors import array, assert_only_view_written, assert_same, tensor

from pruneops import ops

SHAPES = [(0,), (5, 7), (), (40_000,), (0, 3), (1,), (4, 3, 3, 3), (1025,)]


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    score = values("few_distinct", (n,))
    for keep in sorted({0, n // 3, n}):
        mask = ops.topk_mask(tensor(score, device=device), keep=keep, packed=True)
        assert_same(mask, packed(oracle.topk_mask([score], keep)[0]))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    score = values(name, (40, 52), dtype)
    given = tensor(score, dtype, device)
    for keep in (0, 1, 1000, score.size):
        for ties in ("exact", "threshold"):
            expected = packed(oracle.topk_mask([score], keep, ties)[0])
            assert_same(ops.topk_mask(given, keep=keep, ties=ties, packed=True), expected)
    for n, m in [(1, 1), (1, 2), (2, 4), (5, 13), (20, 52)]:
        assert_same(ops.nm_mask(given, n, m, packed=True), packed(oracle.nm_mask(score, n, m)))
    assert_same(ops.row_topk_mask(given, keep=20, packed=True), packed(oracle.row_topk_mask(score, 20)))


@pytest.mark.parametrize("shape", [(33, 16), (9, 24), (3, 40_000), (5, 1), (0, 8), (7, 33)])
def test_rows(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(2):
        mask = ops.row_topk_mask(tensor(score, device=device, layout=layout), keep=shape[1] // 3, packed=True)
        assert_same(mask, packed(oracle.row_topk_mask(score, shape[1] // 3)))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 8), (7, 16), (11, 32), (2, 3), (5, 40)])
@pytest.mark.parametrize("groups", [1, 7, 8, 33, 257])
def test_groups(device, n, m, groups):
    score = values("few_distinct", (groups * m,))
    assert_same(ops.nm_mask(tensor(score, device=device), n, m, packed=True), packed(oracle.nm_mask(score, n, m)))


def test_lists_into_given_masks(device):
    scores = [values("few_distinct", shape, seed=i) for i, shape in enumerate(SHAPES)]
    out = [tensor(np.full((a.size + 7) // 8, 255, np.uint8), device=device, layout="misaligned") for a in scores]
    given = [tensor(a, device=device, layout="transposed" if a.ndim > 1 else "misaligned") for a in scores]
    assert ops.topk_mask(given, keep=20_000, packed=True, out=out) is out
    for mask, expected in zip(out, oracle.topk_mask(scores, 20_000), strict=True):
        assert_same(mask, packed(expected))
        assert_only_view_written(mask)


def test_update_and_select(device):
    weights = [values("normal", shape, seed=i) for i, shape in enumerate(SHAPES)]
    scores = [torch.zeros(shape, device=device) for shape in SHAPES]
    given = [tensor(weight, device=device) for weight in weights]
    masks = ops.update_topk_mask_(scores, given, None, metric="magnitude", sparsity=0.3, packed=True)
    total = sum(weight.size for weight in weights)
    expected = oracle.topk_mask([np.abs(weight) for weight in weights], total - total * 3 // 10)
    for mask, score, weight, bits in zip(masks, scores, weights, expected, strict=True):
        assert_same(mask, packed(bits))
        assert_same(score, np.abs(weight))


def test_a_packed_mask_is_applied_as_it_is(device):
    weight = tensor(values("normal", (30, 50)), device=device)
    mask = ops.topk_mask(weight, sparsity=0.5, metric="magnitude", packed=True)
    assert int((array(ops.apply_masks_(weight, mask)) != 0).sum()) == 750


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out": torch.zeros(10, dtype=torch.bool), "packed": True}, TypeError, "out\\[0\\] must be torch.uint8"),
        ({"out": torch.zeros(2, dtype=torch.uint8)}, TypeError, "out\\[0\\] must be torch.bool"),
        ({"out": torch.zeros(3, dtype=torch.uint8), "packed": True}, ValueError, "has shape \\[3\\], expected \\[2\\]"),
    ],
)
def test_errors(arguments, error, message):
    score = torch.arange(10.0)
    for select in (lambda: ops.topk_mask(score, keep=1, **arguments), lambda: ops.nm_mask(score, 1, 2, **arguments)):
        with pytest.raises(error, match=message):
            select()
