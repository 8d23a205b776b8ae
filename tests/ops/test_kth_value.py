"""kth_value against a sort in NumPy, exactly."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from metrics import scored_on_the_fly
from tensors import array, assert_same, tensor

from pruneops import ops


def check_kth(device, scores, k, dtypes=None, layout="contiguous", result="float32"):
    dtypes = dtypes or [None] * len(scores)
    value = ops.kth_value([tensor(a, d, device, layout) for a, d in zip(scores, dtypes, strict=True)], k)
    assert value.dtype == getattr(torch, result)
    assert value.device.type == device
    expected = oracle.kth_value(scores, k)
    assert_same(value, np.asarray(expected, np.float64 if result == "float64" else np.float32))


def ranks(n):
    return sorted({1, 2, n // 2, n - 1, n} & set(range(1, n + 1)))


@pytest.mark.parametrize("n", SIZES[1:])
def test_sizes(device, n):
    for k in ranks(n):
        check_kth(device, [values("normal", (n,))], k)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    score = values(name, (30, 40), dtype)
    for k in (1, 2, 60, 600, 1100, 1199, 1200):
        check_kth(device, [score], k, [dtype], result=dtype)


@pytest.mark.parametrize("shape", [(70,), (9, 35), (5, 6, 7), (4, 5, 3, 6)])
def test_layouts(device, shape):
    score = values("normal", shape)
    for layout in layouts(len(shape)):
        for k in ranks(score.size):
            check_kth(device, [score], k, layout=layout)


def test_lists_with_empty_tensors(device):
    scores = [values("normal", shape, seed=i) for i, shape in enumerate([(0,), (5, 7), (), (40_000,), (0, 3)])]
    for k in ranks(sum(a.size for a in scores)):
        check_kth(device, scores, k)


@pytest.mark.parametrize(("dtypes", "result"), [
    (("float32", "bfloat16"), "float32"), (("bfloat16", "float16"), "float32"), (("float16", "float16"), "float16"),
    (("float64", "bfloat16"), "float64"), (("bfloat16", "bfloat16"), "bfloat16"),
])  # fmt: skip
def test_dtypes_are_promoted(device, dtypes, result):
    scores = [values("normal", (100,), d, i) for i, d in enumerate(dtypes)]
    for k in (1, 77, 200):
        check_kth(device, scores, k, dtypes, result=result)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_is_positive(device, zero):
    value = ops.kth_value(torch.full((9,), zero, device=device), 5)
    assert array(value) == 0
    assert not np.signbit(array(value))


def test_one_tensor_and_a_list_of_it(device):
    score = tensor(values("normal", (8, 9)), device=device)
    assert_same(ops.kth_value(score, 30), array(ops.kth_value([score], 30)))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_every_half_value(device, half):
    patterns = np.random.default_rng(0).permutation(2**16).astype(np.uint16).view(np.int16)
    score = torch.from_numpy(patterns).view(getattr(torch, half))
    for k in (1, 2047, 2048, 10_000, 2**15, 2**15 + 1, 40_000, 2**16):
        check_kth(device, [array(score)], k, [half], result=half)


@pytest.mark.parametrize("metric", oracle.SELECT_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metric_on_the_fly(device, metric, dtype):
    weight, inputs, scores = scored_on_the_fly(device, metric, "normal", (33, 40), (dtype, dtype))
    for k in (1, 700, 1320):
        value = ops.kth_value(weight, k, metric=metric, **inputs)
        assert_same(value, np.asarray(oracle.kth_value([scores], k), scores.dtype))


def test_threshold_of_topk_mask(device):
    score = tensor(values("few_distinct", (1001,)), device=device)
    threshold = ops.kth_value(score, 300)
    assert_same(ops.topk_mask(score, keep=701, ties="threshold"), array(score > threshold))


POOL = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, 2.0])


@given(data=st.data(), pieces=st.lists(st.lists(POOL, min_size=1, max_size=30), min_size=1, max_size=4))
def test_any_values(device, data, pieces):
    scores = [np.array(piece, np.float32) for piece in pieces]
    check_kth(device, scores, data.draw(st.integers(1, sum(map(len, pieces)))))
