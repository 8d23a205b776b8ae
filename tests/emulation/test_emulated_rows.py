"""Rows selected by the device code on the emulated grid, and by the CPU kernels, against NumPy: exactly."""

import numpy as np
import oracle
import pytest
from driver import assert_mask, undefined_mask
from hostile import DTYPES, VALUES, values
from hypothesis import given
from hypothesis import strategies as st

#: Around what a warp holds with one vector for each lane and with four, what a block holds, and what its shared memory
#: does, of 64 KiB; beyond it, rows are read in every round.
ROWS = (1, 2, 7, 8, 9, 255, 256, 257, 1023, 1024, 1025, 2049, 5000, 8191, 8192, 8193, 12_288, 12_289)
ROWS_OF_BFLOAT16 = (257, 1025, 8193, 26_624, 26_625)
ROWS_OF_DOUBLES = (257, 1025, 8192, 8193)
#: As many entries fall on each row that they are selected by the whole grid.
LONG = ((1, 15_000), (1, 20_008), (2, 30_000))

NAMES = ("normal", "few_distinct", "all_equal", "neighbours")
ANY = (*sorted(VALUES), "neighbours")


def scores_of(name, shape, dtype="float32", seed=0):
    """Hostile values; ``neighbours`` differ in the last bits of their keys."""
    if name != "neighbours":
        return values(name, shape, dtype, seed)
    steps = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 2.0**-52}[dtype]
    kind = np.float64 if dtype == "float64" else np.float32
    return (1 + np.random.default_rng(seed).integers(0, 64, shape) * steps).astype(kind)


def keeps(row):
    return sorted({0, 1, row // 2, row - row // 10, max(row - 1, 0), row})


def check_rows(backend, score, keep, dtype="float32", offset=0, packed=False):
    mask = undefined_mask(backend, score.shape, packed, offset)
    backend.row_topk_mask(backend.array(score, dtype, offset), mask, keep)
    assert_mask(mask, oracle.row_topk_mask(score, keep))


@pytest.mark.parametrize("row", ROWS)
def test_row_sizes(backend, row):
    for name in NAMES:
        score = scores_of(name, (3, row), seed=row)
        for keep in keeps(row) if name == "normal" else (row // 3, row // 2):
            check_rows(backend, score, keep)


@pytest.mark.parametrize(
    ("dtype", "row"), [*(("bfloat16", n) for n in ROWS_OF_BFLOAT16), *(("float64", n) for n in ROWS_OF_DOUBLES)]
)
def test_row_sizes_of_other_keys(backend, dtype, row):
    for name in NAMES:
        check_rows(backend, scores_of(name, (2, row), dtype), row // 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_row_values(backend, name, dtype):
    for keep in (1, 20, 39):
        check_rows(backend, values(name, (3, 4, 40), dtype), keep, dtype, offset=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_values_of_rows_of_a_block(backend, name, dtype):
    check_rows(backend, values(name, (2, 1400), dtype), 600, dtype)


def test_many_short_rows(backend):
    # More than the warps of a block, and of three.
    for row in (33, 257):
        check_rows(backend, values("few_distinct", (60, row)), row // 2)


@pytest.mark.parametrize("row", [8, 40, 256, 264, 1024, 2048, 8200, 12_288, 12_296])
def test_packed_rows(backend, row):
    for keep in keeps(row):
        check_rows(backend, values("few_distinct", (3, row)), keep, packed=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", LONG)
def test_long_rows(backend, shape, packed):
    for name in ("normal", "few_distinct"):
        check_rows(backend, values(name, shape), shape[1] // 3, packed=packed)
    check_rows(backend, values("normal", shape, "bfloat16"), shape[1] // 2, "bfloat16", packed=packed)


METRIC_ROWS = ((9, 40), (3, 300), (2, 1100), (2, 8200), (1, 16_000))


@pytest.mark.parametrize("metric", ["magnitude", "snip", "wanda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", METRIC_ROWS)
def test_metrics_of_rows(backend, metric, dtype, shape):
    weight, grad = (values("normal", shape, dtype, seed) for seed in range(2))
    norm = np.abs(values("normal", shape[-1:]))
    reads_grad = metric == "snip"
    kind = oracle.compute_type(weight, grad if reads_grad else None)
    scores = oracle.entry_values(metric, weight, grad, norm, kind=kind)
    inputs = {"grad": backend.array(grad, dtype)} if reads_grad else {}
    if metric == "wanda":
        inputs["norm"] = backend.array(norm)
    mask = undefined_mask(backend, shape)
    backend.row_topk_mask(backend.array(weight, dtype), mask, shape[1] // 2, metric=metric, **inputs)
    assert_mask(mask, oracle.row_topk_mask(scores, shape[1] // 2))


@pytest.mark.parametrize(("cols", "group"), [(120, 40), (3300, 1100), (60_000, 30_000)])
def test_groups_that_are_selected_as_rows(backend, cols, group):
    weight, norm = values("normal", (2, cols)), np.abs(values("normal", (cols,), seed=1))
    scores = oracle.entry_values("wanda", weight, None, norm).reshape(-1, group)
    mask = undefined_mask(backend, weight.shape)
    inputs = {"metric": "wanda", "norm": backend.array(norm), "row": group}
    for few in (weight, weight[:1]):
        mask = undefined_mask(backend, few.shape)
        backend.row_topk_mask(backend.array(few), mask, group // 3, **inputs)
        expected = oracle.row_topk_mask(scores[: few.size // group], group // 3)
        assert_mask(mask, expected.reshape(few.shape))


@given(data=st.data(), rows=st.integers(1, 5), row=st.integers(1, 2500), levels=st.integers(1, 3000))
def test_rows_of_any_levels(any_backend, data, rows, row, levels):
    any_backend.vary(data)
    score = np.random.default_rng(levels).integers(-levels, levels, (rows, row)).astype(np.float32)
    check_rows(any_backend, score, data.draw(st.integers(0, row)))


@given(data=st.data(), rows=st.integers(1, 6), row=st.integers(1, 1300))
def test_any_rows(any_backend, data, rows, row):
    any_backend.vary(data)
    name, dtype = data.draw(st.sampled_from(ANY)), data.draw(st.sampled_from(DTYPES))
    score = scores_of(name, (rows, row), dtype, data.draw(st.integers(0, 9)))
    check_rows(any_backend, score, data.draw(st.integers(0, row)), dtype, data.draw(st.sampled_from([0, 8])))
