"""Rows selected by the device code on the emulated grid, and by the CPU kernels, against NumPy: exactly."""

import numpy as np
import oracle
import pytest
from driver import assert_mask, undefined_mask
from hostile import DTYPES, VALUES, values
from hypothesis import given
from hypothesis import strategies as st
from oracle import round_to

#: Around what a warp holds with one vector for each lane and with four, and what blocks of one, two and the most warps
#: do; beyond it, rows are read for every threshold. Of whole vectors of bfloat16 a warp holds 8 or 16.
ROWS = (1, 2, 7, 8, 9, 31, 33, 255, 256, 257, 1023, 1024, 1025, 2049, 4095, 4096, 4097, 11_008, 28_672, 28_673)
ROWS_OF_BFLOAT16 = (257, 1024, 1025, 1032, 2048, 2056, 4096, 4104, 28_680, 43_008, 43_016)
ROWS_OF_DOUBLES = (257, 1025, 2049, 14_336, 14_337)
#: As many entries fall on each row that they are selected by the whole grid.
LONG = ((1, 15_000), (1, 20_008), (2, 30_000))

NAMES = ("normal", "few_distinct", "all_equal", "neighbours")
#: Made here, beside those of ``hostile.VALUES``.
OWN = ("neighbours", "powers", "clusters", "hidden")
ANY = (*sorted(VALUES), *OWN)


def scores_of(name, shape, dtype="float32", seed=0):
    """Hostile values; ``neighbours`` differ in the last bits of their keys, between ``powers`` and ``clusters`` lie all
    their keys, and what is ``hidden`` stands where no sample looks, in a few neighbouring places."""
    if name not in OWN:
        return values(name, shape, dtype, seed)
    rng = np.random.default_rng(seed)
    steps = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 2.0**-52}[dtype]
    if name == "neighbours":
        own = 1 + rng.integers(0, 64, shape) * steps
    elif name == "powers":
        own = 2.0 ** -rng.integers(0, 14, shape) * rng.choice([-1, 1], shape)
    elif name == "clusters":
        own = rng.choice([-60_000.0, -1.0, 0.0, 1.0, 60_000.0], shape) * (1 + rng.integers(0, 4, shape) * steps)
    else:
        own = np.where(
            np.arange(shape[-1]) % 64 < 33, 1 + rng.integers(0, 9, shape) * steps, rng.integers(-9, 0, shape)
        )
    return round_to(own, dtype)


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
        # So many that none is selected by the whole grid.
        check_rows(backend, scores_of(name, (2 if row < 30_000 else 3, row), dtype), row // 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_row_values(backend, name, dtype):
    for keep in (1, 20, 39):
        check_rows(backend, values(name, (3, 4, 40), dtype), keep, dtype, offset=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ANY)
def test_values_of_rows_of_a_block(backend, name, dtype):
    score = scores_of(name, (2, 1400), dtype)
    for keep in (1, 600, 1399):
        check_rows(backend, score, keep, dtype)
    check_rows(backend, score, 700, dtype, packed=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [300, 1403, 2600])
@pytest.mark.parametrize("special", [np.nan, -np.inf, np.inf])
def test_thresholds_that_are_no_numbers(backend, special, row, dtype):
    # Of each kind there are so many that they are kept in part, the other scores lying to both sides.
    score = values("normal", (2, row), dtype)
    score[np.random.default_rng(0).random(score.shape) < 0.4] = special
    score[0, ::17], score[1, ::19] = -np.inf, np.nan
    for keep in (row // 5, row - row // 5, row - 1):
        check_rows(backend, score, keep, dtype)


@pytest.mark.parametrize("row", [200, 1100, 1536, 5000])
@pytest.mark.parametrize("places", ["first", "last", "spread"])
def test_ties_of_a_row(backend, places, row):
    # The threshold's ties stand together in one vector, at an end, or apart.
    score = np.arange(row, dtype=np.float32)[None].repeat(2, 0) % 97 + 200
    at = {"first": slice(0, 30), "last": slice(row - 30, row), "spread": slice(3, row, row // 30)}[places]
    score[:, at] = 100
    count = int((score[0] == 100).sum())
    for dropped in (1, 2, count // 2, count - 1, count):
        check_rows(backend, score, row - dropped)


def test_many_short_rows(backend):
    # More than the warps of a block, and of three.
    for row in (33, 257):
        check_rows(backend, values("few_distinct", (60, row)), row // 2)


@pytest.mark.parametrize("row", [8, 40, 256, 264, 1024, 2048, 8200, 28_680])
def test_packed_rows(backend, row):
    for keep in keeps(row):
        check_rows(backend, values("few_distinct", (3, row)), keep, packed=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", LONG)
def test_long_rows(backend, shape, packed):
    for name in ("normal", "few_distinct"):
        check_rows(backend, values(name, shape), shape[1] // 3, packed=packed)
    check_rows(backend, values("normal", shape, "bfloat16"), shape[1] // 2, "bfloat16", packed=packed)


METRIC_ROWS = ((9, 40), (3, 300), (2, 1100), (2, 4104), (2, 28_680), (1, 16_000))


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
