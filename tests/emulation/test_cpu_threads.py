"""The CPU kernels where selections are shared by threads, which smaller ones are not, and whole columns are blocks."""

import numpy as np
import oracle
import pytest
from driver import Backend
from hostile import values
from tensors import assert_same
from test_emulated_selection import check_topk, check_update_topk
from test_emulated_updates import check_blocks

SHAPES = [(0,), (700, 300), (100_000,), (33,)]
TOTAL = sum(int(np.prod(shape)) for shape in SHAPES)
assert TOTAL > 2**18, "smaller selections stay on one thread"


@pytest.fixture(params=[2, 5])
def backend(emulation, request):
    return Backend(emulation, "cpu", request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "mostly_zero", "all_equal", "everything", "ascending"])
def test_topk(backend, name, dtype):
    scores = [values(name, shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    for keep in (1000, TOTAL // 2):
        check_topk(backend, scores, keep, dtypes=[dtype] * len(scores))
    check_topk(backend, scores, TOTAL // 10, dtypes=[dtype] * len(scores), ties="threshold")


@pytest.mark.parametrize("name", ["normal", "few_distinct", "everything"])
def test_update_and_topk(backend, name):
    entries = [(*(values(name, shape, seed=3 * i + j) for j in range(3)), "float32") for i, shape in enumerate(SHAPES)]
    check_update_topk(backend, entries, TOTAL // 3, alpha=0.9)


@pytest.mark.parametrize("name", ["normal", "few_distinct", "one_outlier"])
def test_kth_value(backend, name):
    scores = [values(name, shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    for k in (1, TOTAL // 2, TOTAL):
        value = backend.kth_value([backend.array(score) for score in scores], k)
        assert_same(np.asarray(value), np.float32(oracle.kth_value(scores, k)))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_blocks_of_whole_columns_and_rows(backend, reduce):
    check_blocks(backend, (3000, 40), (3000, 1), reduce=reduce)
    check_blocks(backend, (20, 9000), (1, 9000), reduce=reduce)
    check_blocks(backend, (64, 9000), (4, 1), reduce=reduce)
