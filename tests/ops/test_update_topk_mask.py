"""update_topk_mask_ against the oracles of its two halves, exactly."""

import numpy as np
import oracle
import pytest
import torch
from hostile import VALUES, layouts, values
from tensors import assert_all_same, assert_same, bits, tensor

from pruneops import ops

#: The last two are below and above the size from which the CPU passes over the data once; tests/emulation knows.
SIZES = (0, 1, 1000, 2**18 - 1, 2**18 + 4321)


def check(device, n, name="normal", *, keep, dtypes=("float32",) * 3, **how):
    arrays = [values(name, (n,), dtype, seed=i) for i, dtype in enumerate(dtypes)]
    how = {"metric": "snip", "alpha": 0.9, **how}
    scalars = {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in how.items()}
    updated = oracle.update_scores(*arrays, dtype=dtypes[0], **scalars)
    for ties, packed in (("exact", False), ("threshold", True)):
        (expected,) = oracle.topk_mask([updated], keep, ties)
        scores, *inputs = (tensor(x, d, device) for x, d in zip(arrays, dtypes, strict=True))
        mask = ops.update_topk_mask_(scores, *inputs, keep=keep, ties=ties, packed=packed, **how)
        assert_same(scores, updated)
        assert_same(mask, np.packbits(expected, bitorder="little") if packed else expected)


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    for keep in sorted({0, n // 2, n}):
        check(device, n, keep=keep)


@pytest.mark.parametrize("name", VALUES)
def test_values(device, name):
    check(device, SIZES[-1], name, keep=SIZES[-1] // 2)


@pytest.mark.parametrize("dtypes", [("bfloat16",) * 3, ("float32", "bfloat16", "bfloat16"), ("float64",) * 3,
                                    ("float32", "float64", "float16")])  # fmt: skip
def test_dtypes(device, dtypes):
    check(device, SIZES[-1], keep=40_000, dtypes=dtypes)


def test_scalars(device):
    n = SIZES[-1]
    for found_inf in (0.0, 1.0):
        scalar = torch.tensor(found_inf, device=device)
        check(device, n, "nans", keep=n // 3, found_inf=scalar, skip_nonfinite=True)
    check(device, n, keep=n // 3, grad_scale=torch.tensor(1024.0, device=device), alpha=0.0, beta=0.5)


@pytest.mark.parametrize("layout", layouts(2))
def test_layouts_and_lists(device, layout):
    arrays = [[values("few_distinct", shape, seed=i) for shape in ((30, 40), (0, 3), (520, 520))] for i in range(3)]
    scores, weights, grads = ([tensor(x, device=device, layout=layout) for x in part] for part in arrays)
    out = [tensor(np.zeros(x.shape, bool), device=device, layout=layout) for x in arrays[0]]
    assert ops.update_topk_mask_(scores, weights, grads, metric="snip", alpha=0.5, sparsity=0.5, out=out) is out
    updated = [
        oracle.update_scores(*entry, dtype="float32", metric="snip", alpha=0.5) for entry in zip(*arrays, strict=True)
    ]
    total = sum(x.size for x in updated)
    assert total >= SIZES[-1]
    assert_all_same(scores, updated)
    assert_all_same(out, oracle.topk_mask(updated, total - total // 2))


def test_errors_write_nothing(device):
    score, weight = torch.ones(4, device=device), torch.ones(4, device=device)
    before = bits(score)
    for wrong, message in [
        ({"keep": 5}, "update_topk_mask_: keep must be between 0 and 4, got 5"),
        ({"keep": 1, "sparsity": 0.5}, "give exactly one of keep and sparsity"),
        ({"keep": 1, "ties": "some"}, "ties must be one of exact, threshold, got 'some'"),
        ({"keep": 1, "out": torch.ones(5, dtype=torch.bool, device=device)}, r"out\[0\] has shape \[5\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.update_topk_mask_(score, weight, None, metric="magnitude", **wrong)
    assert bits(score) == before
