"""block_reduce against float64 sums and exact maxima."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, TAME, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import array, assert_same, bits, tensor

from pruneops import ops

REDUCES = ("mean", "sum", "max")


def check_reduce(device, score, block, reduce, dtype="float32", layout="contiguous"):
    result = ops.block_reduce(tensor(score, dtype, device, layout), block, reduce)
    assert result.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert result.is_contiguous()
    exact, absolute = oracle.reduce_blocks(score, block, reduce)
    if reduce == "max":
        return assert_same(array(result) + 0, exact.astype(score.dtype) + 0)  # either zero is a maximum of both
    size = max(score.size // max(exact.size, 1), 1)
    assert result.shape == exact.shape
    precision = np.finfo(score.dtype)
    error = (size + 1) * precision.eps * absolute + precision.smallest_subnormal
    assert (np.abs(array(result) - exact) <= error).all()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce_and_dtype(device, reduce, dtype):
    check_reduce(device, values("normal", (64, 96), dtype), (4, 3), reduce, dtype)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("name", TAME)
def test_values(device, reduce, name):
    check_reduce(device, values(name, (16, 64)), (2, 16), reduce)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 4), (16, 16), (-1, 1), (1, -1), (-1, -1), (2, -1)])
@pytest.mark.parametrize("shape", [(32, 64), (16, 48, 3), (16, 16, 3, 3), (16, 8, 1, 2, 4)])
def test_blocks_and_shapes(device, block, shape):
    score = values("normal", shape)
    for reduce in ("sum", "max"):
        for layout in layouts(len(shape)):
            check_reduce(device, score, block, reduce, layout=layout)


@pytest.mark.parametrize("cols", [1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097])
@pytest.mark.parametrize("block", [(2, 1), (1, -1)])
def test_widths(device, cols, block):
    check_reduce(device, values("normal", (4, cols)), block, "mean")
    check_reduce(device, values("infinities", (4, cols)), block, "max")


@pytest.mark.parametrize(
    ("shape", "block"), [((0, 4), (1, 2)), ((4, 0), (2, 1)), ((0, 4), (-1, 2)), ((4, 0), (2, -1)), ((0, 0), (-1, -1))]
)
@pytest.mark.parametrize("reduce", REDUCES)
def test_empty(device, shape, block, reduce):
    check_reduce(device, np.zeros(shape, np.float32), block, reduce)


def test_default_is_the_mean(device):
    score = torch.tensor([[1.0, 2.0], [3.0, 6.0]], device=device)
    assert array(ops.block_reduce(score, (2, 2))).tolist() == [[3.0]]


@pytest.mark.parametrize("reduce", REDUCES)
def test_nan_stays_in_its_block(device, reduce):
    score = values("normal", (8, 24))
    score[5, 13] = np.nan
    result = array(ops.block_reduce(tensor(score, device=device), (4, 8), reduce))
    assert np.argwhere(np.isnan(result)).tolist() == [[1, 1]]


def test_sums_are_wider_than_half(device):
    score = torch.full((1, 4096), 3.0, dtype=torch.float16, device=device)
    score[0, 0] = 60000
    assert array(ops.block_reduce(score, (1, -1), "sum")).tolist() == [[60000 + 3.0 * 4095]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_out_is_rounded_once(device, dtype, out_dtype):
    score = tensor(values("few_distinct", (16, 24), dtype), dtype, device)
    wide = score.double() if out_dtype == "float64" else score
    out = tensor(values("normal", (4, 12), out_dtype, 1), out_dtype, device)
    assert ops.block_reduce(score, (4, 2), out=out) is out
    assert_same(array(out), oracle.round_to(array(ops.block_reduce(wide, (4, 2))), out_dtype))


@pytest.mark.parametrize("block", [(4, 1), (64, 64), (1, -1), (-1, -1)])
def test_same_call_same_bits(device, block):
    score = tensor(values("normal", (512, 512)), device=device)
    assert len({bits(ops.block_reduce(score, block, "sum")) for _ in range(3)}) == 1


@given(data=st.data())
def test_any_grid(device, data):
    n, m, rows, cols = (data.draw(st.integers(1, 6)) for _ in range(4))
    shape = (n * rows, m * cols, *data.draw(st.lists(st.integers(1, 4), max_size=2)))
    dtype = data.draw(st.sampled_from(DTYPES))
    layout = data.draw(st.sampled_from(layouts(len(shape))))
    check_reduce(device, values("normal", shape, dtype), (n, m), data.draw(st.sampled_from(REDUCES)), dtype, layout)
