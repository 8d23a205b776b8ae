"""nm_mask against counting, for every group of entries of a small set of values."""

from itertools import product

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, VALUES, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from metrics import scored_on_the_fly
from tensors import assert_only_view_written, assert_same, tensor

from pruneops import ops

PATTERNS = [(1, 2), (2, 4), (1, 4), (4, 8), (3, 5), (8, 16), (16, 32), (1, 1), (7, 33), (40, 100)]


def check_nm(device, score, n, m, *, dtype="float32", layout="contiguous"):
    mask = ops.nm_mask(tensor(score, dtype, device, layout), n, m)
    assert mask.dtype == torch.bool
    assert_same(mask, oracle.nm_mask(score, n, m))
    assert (np.asarray(mask.cpu()).reshape(-1, m).sum(1) == n).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("name", ["normal", "few_distinct", "everything"])
def test_patterns(device, n, m, name):
    check_nm(device, values(name, (6, 5 * m)), n, m)


@pytest.mark.parametrize("m", [2, 4, 8])
def test_nothing_and_everything_kept(device, m):
    for n in (0, m):
        check_nm(device, values("everything", (5, 3 * m)), n, m)


def test_every_group_of_four(device):
    pool = [np.nan, -np.inf, -0.0, 0.0, 1.0, np.inf]
    score = np.array(list(product(pool, repeat=4)), np.float32)
    for n in range(5):
        check_nm(device, score, n, 4)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    for n, m in [(2, 4), (5, 16)]:
        check_nm(device, values(name, (9, 160), dtype), n, m, dtype=dtype)


@pytest.mark.parametrize("groups", [0, 1, 7, 8, 9, 31, 33, 255, 256, 257, 8191, 8192, 8193, 16385])
def test_numbers_of_groups(device, groups):
    check_nm(device, values("few_distinct", (groups * 4,)), 2, 4)


@pytest.mark.parametrize("shape", [(72,), (9, 36), (5, 6, 8), (4, 5, 3, 8), (0, 4), (3, 0), (4, 0, 8)])
def test_shapes_and_layouts(device, shape):
    for layout in layouts(len(shape)):
        check_nm(device, values("few_distinct", shape), 2, 4, layout=layout)


def test_zero_dimensions(device):
    check_nm(device, np.array(1.0, np.float32), 1, 1)
    check_nm(device, np.array(1.0, np.float32), 0, 1)


@pytest.mark.parametrize("shape", [(9, 36), (4, 5, 3, 8)])
def test_out_is_written_through_and_returned(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(len(shape)):
        out = tensor(np.ones(shape, bool), device=device, layout=layout)
        assert ops.nm_mask(tensor(score, device=device), 2, 4, out=out) is out
        assert_same(out, oracle.nm_mask(score, 2, 4))
        assert_only_view_written(out)


@pytest.mark.parametrize("metric", oracle.SELECT_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["normal", "everything"])
def test_metric_on_the_fly(device, metric, dtype, name):
    weight, inputs, scores = scored_on_the_fly(device, metric, name, (3, 7, 40), (dtype, dtype))
    assert_same(ops.nm_mask(weight, 2, 4, metric=metric, **inputs), oracle.nm_mask(scores, 2, 4))


POOL = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, 2.0])


@given(data=st.data(), m=st.integers(1, 40))
def test_any_group(device, data, m):
    group = st.lists(POOL, min_size=m, max_size=m)
    score = np.array(data.draw(st.lists(group, min_size=1, max_size=3)), np.float32)
    check_nm(device, score, data.draw(st.integers(0, m)), m)
