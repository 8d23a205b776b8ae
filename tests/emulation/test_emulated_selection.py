"""Selection by the device code on the emulated grid, and by the CPU kernels, against NumPy: exactly."""

import numpy as np
import oracle
import pytest
from driver import READS_GRAD
from hostile import DTYPES, VALUES, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same

SIZES = (1, 7, 8, 9, 31, 33, 255, 257, 2047, 2048, 2049, 8191, 8192, 8193, 16_385)
METRICS = ("magnitude", "gradient", "snip", "taylor", "fisher", "wanda")


def keeps(n):
    return sorted({0, 1, n // 10, n // 2, n - n // 10, max(n - 1, 0), n})


def check_topk(backend, scores, keep, *, dtypes=None, ties="exact", offset=0):
    dtypes = dtypes or ["float32"] * len(scores)
    device = [backend.array(a, d, offset) for a, d in zip(scores, dtypes, strict=True)]
    masks = [backend.undefined(a.shape, "bool", offset) for a in scores]
    backend.topk_mask(device, masks, keep, ties)
    for mask, expected in zip(masks, oracle.topk_mask(scores, keep, ties), strict=True):
        assert_same(mask.read(), expected)


@pytest.mark.parametrize("n", SIZES)
def test_topk_sizes(backend, n):
    for keep in keeps(n):
        check_topk(backend, [values("normal", (n,))], keep)
    check_topk(backend, [values("few_distinct", (n,))], n // 2)
    check_topk(backend, [values("all_equal", (n,))], n // 3)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_values(backend, name, dtype):
    score = values(name, (30, 40), dtype)
    for keep in (1, 120, 600, 1199):
        for ties in ("exact", "threshold"):
            check_topk(backend, [score], keep, dtypes=[dtype], ties=ties)


SHAPES = [(0,), (5, 7), (17_000,), (0, 3), (1,), (4, 3, 3, 3), (1025,), (0,)]


@pytest.mark.parametrize("ties", ["exact", "threshold"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "all_equal", "everything", "one_outlier"])
def test_topk_lists(backend, ties, name):
    scores = [values(name, shape, seed=i) for i, shape in enumerate(SHAPES)]
    for keep in keeps(sum(a.size for a in scores)):
        check_topk(backend, scores, keep, ties=ties, offset=4)


def test_topk_of_more_tensors_than_a_table_holds(backend):
    scores = [values("few_distinct", (i % 30,), seed=i) for i in range(700)]
    check_topk(backend, scores, sum(a.size for a in scores) // 2)


def test_topk_of_mixed_dtypes(backend):
    scores = [values("few_distinct", (500,), d, i) for i, d in enumerate(DTYPES)]
    for keep in keeps(2000):
        check_topk(backend, scores, keep, dtypes=DTYPES)


def test_topk_of_nothing(backend):
    check_topk(backend, [], 0)
    check_topk(backend, [np.zeros(0, np.float32)], 0)


@given(data=st.data(), sizes=st.lists(st.integers(0, 400), min_size=1, max_size=5), levels=st.integers(1, 300))
def test_topk_of_any_lists(backend, data, sizes, levels):
    seed = data.draw(st.integers(0, 2**32))
    backend.module.set_seed(seed)
    rng = np.random.default_rng(seed)
    scores = [rng.integers(-levels, levels, n).astype(np.float32) for n in sizes]
    check_topk(
        backend, scores, data.draw(st.integers(0, sum(sizes))), ties=data.draw(st.sampled_from(["exact", "threshold"]))
    )


def check_update_topk(backend, entries, keep, *, ties="exact", **how):
    """``entries`` are (score, weight, grad, dtype)."""
    device = [[backend.array(a, dtype) for a in arrays] for *arrays, dtype in entries]
    masks = [backend.undefined(score.shape, "bool") for score, *_ in entries]
    backend.update_topk_mask(*zip(*device, strict=True), masks, keep, ties, metric="snip", **how)
    expected = [oracle.update_scores(*arrays, metric="snip", dtype=dtype, **how) for *arrays, dtype in entries]
    for (score, *_), value in zip(device, expected, strict=True):
        assert_same(score.read(), value)
    for mask, kept in zip(masks, oracle.topk_mask(expected, keep, ties), strict=True):
        assert_same(mask.read(), kept)


@pytest.mark.parametrize("ties", ["exact", "threshold"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "everything", "all_zero"])
def test_update_and_topk(backend, name, ties):
    shapes = [(0,), (5, 7), (9000,), (1,), (1025,), (700,)]
    kinds = ["float32", "float32", "bfloat16", "float64", "float16", "float32"]
    entries = [
        (*(values(name, shape, d, 3 * i + j) for j in range(3)), d)
        for i, (shape, d) in enumerate(zip(shapes, kinds, strict=True))
    ]
    for how in ({"alpha": 0.9}, {"alpha": 0.0, "grad_scale": 3.0}, {"alpha": 0.5, "found_inf": 1.0}):
        for keep in (0, 1, 5000, 10_761):
            check_update_topk(backend, entries, keep, ties=ties, **how)


# --- k-th value -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_kth_value(backend, name, dtype):
    score = values(name, (1200,), dtype)
    for k in (1, 2, 600, 1199, 1200):
        value = backend.kth_value([backend.array(score, dtype)], k, dtype)
        assert_same(np.asarray(value), np.asarray(oracle.kth_value([score], k), value.dtype))


@pytest.mark.parametrize("n", SIZES)
def test_kth_value_sizes(backend, n):
    scores = [values("normal", (size,), seed=i) for i, size in enumerate((n, 0, 3))]
    device = [backend.array(a) for a in scores]
    for k in {1, n // 2 + 1, n + 3}:
        assert backend.kth_value(device, k) == np.float32(oracle.kth_value(scores, k))


# --- rows -------------------------------------------------------------------------------------------


def check_rows(backend, score, keep, dtype="float32", offset=0):
    mask = backend.undefined(score.shape, "bool", offset)
    backend.row_topk_mask(backend.array(score, dtype, offset), mask, keep)
    assert_same(mask.read(), oracle.row_topk_mask(score, keep))


@pytest.mark.parametrize("row", [1, 2, 7, 8, 9, 255, 257, 2047, 2049, 5000])
def test_row_sizes(backend, row):
    for name in ("normal", "few_distinct", "all_equal"):
        for keep in keeps(row):
            check_rows(backend, values(name, (5, row)), keep)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_row_values(backend, name, dtype):
    for keep in (1, 20, 39):
        check_rows(backend, values(name, (3, 4, 40), dtype), keep, dtype, offset=8)


# --- N:M --------------------------------------------------------------------------------------------


def check_nm(backend, score, n, m, dtype="float32", offset=0):
    mask = backend.undefined(score.shape, "bool", offset)
    backend.nm_mask(backend.array(score, dtype, offset), mask, n, m)
    assert_same(mask.read(), oracle.nm_mask(score, n, m))


@pytest.mark.parametrize("m", range(1, 33))
def test_nm_groups(backend, m):
    for n in {0, 1, m // 2, m - 1, m}:
        for groups in (1, 13, 80):
            check_nm(backend, values("few_distinct", (groups * m,)), n, m)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_nm_values(backend, name, dtype, n, m):
    check_nm(backend, values(name, (6, 20 * m), dtype), n, m, dtype)
    check_nm(backend, values(name, (6, 20 * m), dtype), n, m, dtype, offset=8)


# --- scores made on the fly -------------------------------------------------------------------------


def metric_inputs(backend, metric, shape, dtypes, name, seed=0):
    """The arrays of a selection by ``metric`` and the scores that it selects among."""
    weight, grad = (values(name, shape, d, seed + i) for i, d in enumerate(dtypes))
    norm = np.abs(values(name, shape[-1:], seed=seed + 2))
    reads_grad = metric in READS_GRAD
    kind = oracle.compute_type(weight, grad if reads_grad else None)
    scores = oracle.entry_values(metric, weight, grad, norm, kind=kind)
    arrays = {"grad": backend.array(grad, dtypes[1]) if reads_grad else None}
    arrays["norm"] = backend.array(norm) if metric == "wanda" else None
    return backend.array(weight, dtypes[0]), arrays, scores


DTYPE_PAIRS = [(d, d) for d in DTYPES] + [("bfloat16", "float32"), ("float16", "float64")]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("name", ["normal", "few_distinct", "everything"])
def test_metrics(backend, metric, dtypes, name):
    shapes = [(33, 40), (7, 300), (2, 12)]
    inputs = [metric_inputs(backend, metric, shape, dtypes, name, 10 * i) for i, shape in enumerate(shapes)]
    weights, arrays, scores = zip(*inputs, strict=True)
    masks = [backend.undefined(shape, "bool") for shape in shapes]
    listed = {f"{key}s": [a[key] for a in arrays] for key in ("grad", "norm")}
    backend.topk_mask(weights, masks, 1300, metric=metric, **listed)
    for mask, expected in zip(masks, oracle.topk_mask(scores, 1300), strict=True):
        assert_same(mask.read(), expected)
    backend.row_topk_mask(weights[0], masks[0], 17, metric=metric, **arrays[0])
    assert_same(masks[0].read(), oracle.row_topk_mask(scores[0], 17))
    for n, m in ((2, 4), (3, 10)):
        backend.nm_mask(weights[0], masks[0], n, m, metric=metric, **arrays[0])
        assert_same(masks[0].read(), oracle.nm_mask(scores[0], n, m))
