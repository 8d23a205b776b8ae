"""row_topk_mask against a stable sort of each row in NumPy, exactly."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, keeps, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from metrics import scored_on_the_fly
from tensors import array, assert_only_view_written, assert_same, bits, tensor

from pruneops import ops


def check_rows(device, score, keep, *, dtype="float32", layout="contiguous"):
    mask = ops.row_topk_mask(tensor(score, dtype, device, layout), keep=keep)
    assert mask.dtype == torch.bool
    assert_same(mask, oracle.row_topk_mask(score, keep))


@pytest.mark.parametrize("n", SIZES)
def test_row_lengths(device, n):
    score = values("few_distinct" if n % 2 else "normal", (3, n))
    for keep in keeps(n):
        check_rows(device, score, keep)


@pytest.mark.parametrize("rows", [0, 1, 2, 31, 32, 33, 255, 256, 257, 1025])
def test_numbers_of_rows(device, rows):
    check_rows(device, values("few_distinct", (rows, 33)), 10)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    score = values(name, (4, 300), dtype)
    for keep in keeps(300):
        check_rows(device, score, keep, dtype=dtype)


@pytest.mark.parametrize("shape", [(), (70,), (9, 35), (5, 6, 7), (4, 5, 3, 6), (0, 5), (5, 0), (2, 0, 3)])
def test_shapes_and_layouts(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(len(shape)):
        for keep in keeps(shape[-1] if shape else 1):
            check_rows(device, score, keep, layout=layout)


@pytest.mark.parametrize("shape", [(9, 35), (4, 5, 3, 6)])
def test_out_is_written_through_and_returned(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(len(shape)):
        out = tensor(np.ones(shape, bool), device=device, layout=layout)
        assert ops.row_topk_mask(tensor(score, device=device), keep=3, out=out) is out
        assert_same(out, oracle.row_topk_mask(score, 3))
        assert_only_view_written(out)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.29, 0.5, 0.7, 1.0])
def test_sparsity_prunes_its_floor_in_each_row(device, sparsity):
    score = values("normal", (5, 101))
    mask = ops.row_topk_mask(tensor(score, device=device), sparsity=sparsity)
    assert array(mask.sum(-1)).tolist() == [101 - int(sparsity * 101)] * 5
    assert_same(mask, oracle.row_topk_mask(score, 101 - int(sparsity * 101)))


@pytest.mark.parametrize("metric", oracle.SELECT_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["normal", "everything"])
def test_metric_on_the_fly(device, metric, dtype, name):
    weight, inputs, scores = scored_on_the_fly(device, metric, name, (3, 7, 40), (dtype, dtype))
    assert_same(ops.row_topk_mask(weight, keep=13, metric=metric, **inputs), oracle.row_topk_mask(scores, 13))


def test_rows_are_independent(device):
    score = tensor(values("few_distinct", (33, 64)), device=device)
    rows = torch.stack([ops.row_topk_mask(row, keep=20) for row in score])
    assert bits(ops.row_topk_mask(score, keep=20)) == bits(rows)


POOL = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, 2.0])


@given(data=st.data(), score=hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=20), elements=POOL))
def test_any_values(device, data, score):
    check_rows(device, score, data.draw(st.integers(0, score.shape[-1])))
