"""apply_masks_: kept entries keep their bits, pruned ones become +0.0, nothing else is touched."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import packed
from tensors import array, assert_all_same, assert_only_view_written, assert_same, bits, tensor

from pruneops import ops

OTHER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
                torch.float8_e4m3fn, torch.float8_e5m2)  # fmt: skip


def random_mask(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


def check_apply(device, values_, mask, given_mask, *, dtype="float32", layout="contiguous", **how):
    """Apply ``given_mask``, which stands for the element mask ``mask``."""
    x = tensor(values_, dtype, device, layout)
    assert ops.apply_masks_(x, given_mask, **how) is x
    assert_same(x, np.where(mask, values_, values_.dtype.type(0)))
    assert_only_view_written(x)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    mask = random_mask((33, 35))
    for given_mask in (mask, packed(mask)):
        check_apply(device, values(name, (33, 35), dtype), mask, tensor(given_mask, device=device), dtype=dtype)


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    mask = random_mask(n)
    for given_mask in (mask, packed(mask)):
        check_apply(device, values("normal", (n,)), mask, tensor(given_mask, device=device))


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_dtypes_of_every_width(device, dtype):
    x = torch.arange(1, 101, device=device).to(dtype)
    mask = tensor(random_mask(100), device=device)
    kept = bits(x[mask])
    ops.apply_masks_(x, mask)
    assert bits(x[mask]) == kept
    assert not any(bits(x[~mask]))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_every_half_pattern_is_kept_or_becomes_positive_zero(device, half):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(half).to(device)
    for keep in (True, False):
        x = patterns.clone()
        ops.apply_masks_(x, torch.full((2**16,), keep, device=device))
        assert bits(x) == (bits(patterns) if keep else bytes(2**17))


@pytest.mark.parametrize("shape", [(), (70,), (9, 35), (5, 6, 7), (4, 5, 3, 6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layouts_write_through(device, shape, dtype):
    array, mask = values("nans", shape, dtype), random_mask(shape)
    for layout in layouts(len(shape)):
        bits_ = tensor(packed(mask), device=device)
        check_apply(device, array, mask, tensor(mask, device=device), dtype=dtype, layout=layout)
        check_apply(device, array, mask, bits_, dtype=dtype, layout=layout)
        check_apply(device, array, mask, tensor(mask, device=device, layout=layout), dtype=dtype)


def test_packed_mask_may_be_a_misaligned_view(device):
    mask = random_mask((1000,))
    for layout in ("misaligned", "strided"):
        check_apply(device, values("normal", (1000,)), mask, tensor(packed(mask), device=device, layout=layout))


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 4), (16, 16), (-1, 1), (1, -1), (-1, -1), (2, 8)])
@pytest.mark.parametrize("shape", [(32, 64), (16, 48, 3), (16, 16, 3, 3), (16, 16, 1, 1), (16, 8, 1, 2, 4)])
def test_block_masks(device, shape, block):
    blocks = random_mask(oracle.block_ids(shape, block)[1])
    mask = oracle.expand_blocks(blocks, block, shape)
    for layout in layouts(len(shape)):
        given_mask = tensor(blocks, device=device, layout="transposed")
        check_apply(device, values("nans", shape), mask, given_mask, block=block, layout=layout)


@pytest.mark.parametrize("cols", [1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 4097, 32769])
@pytest.mark.parametrize("block", [(2, 1), (1, -1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_widths_of_block_masks(device, cols, block, dtype):
    blocks = random_mask(oracle.block_ids((4, cols), block)[1])
    mask = oracle.expand_blocks(blocks, block, (4, cols))
    given_mask = tensor(blocks, device=device)
    check_apply(device, values("normal", (4, cols), dtype), mask, given_mask, block=block, dtype=dtype)


SHAPES = [(0,), (5, 7), (), (40_000,), (0, 3), (1,), (4, 3, 3, 3), (1025,), (0,)]


@pytest.mark.parametrize("kind", ["bool", "packed", "both"])
def test_lists(device, kind):
    kinds = [DTYPES[i % 4] for i in range(len(SHAPES))]
    arrays = [values("nans", shape, d, i) for i, (shape, d) in enumerate(zip(SHAPES, kinds, strict=True))]
    masks = [random_mask(shape, i) for i, shape in enumerate(SHAPES)]
    pack = {"bool": lambda i: False, "packed": lambda i: True, "both": lambda i: i % 2 == 0}[kind]
    given_masks = [tensor(packed(m) if pack(i) else m, device=device) for i, m in enumerate(masks)]
    tensors = [tensor(a, d, device, "misaligned") for a, d in zip(arrays, kinds, strict=True)]
    assert ops.apply_masks_(tensors, given_masks) is tensors
    assert_all_same(tensors, [np.where(m, a, a.dtype.type(0)) for a, m in zip(arrays, masks, strict=True)])
    for x in tensors:
        assert_only_view_written(x)


def test_lists_of_block_masks(device):
    shapes, block = [(8, 6), (0, 6), (4, 0), (128, 1030), (4, 4, 3, 3), (4, 2)], (4, 2)
    arrays = [values("normal", shape, seed=i) for i, shape in enumerate(shapes)]
    blocks = [random_mask(oracle.block_ids(shape, block)[1], i) for i, shape in enumerate(shapes)]
    tensors = [tensor(a, device=device) for a in arrays]
    ops.apply_masks_(tensors, [tensor(b, device=device) for b in blocks], block=block)
    masks = [oracle.expand_blocks(b, block, shape) for b, shape in zip(blocks, shapes, strict=True)]
    assert_all_same(tensors, [np.where(m, a, np.float32(0)) for a, m in zip(arrays, masks, strict=True)])


@pytest.mark.parametrize("sequence", [list, tuple])
def test_empty_list(sequence):
    tensors = sequence()
    assert ops.apply_masks_(tensors, sequence()) is tensors


def test_masks_are_not_written(device):
    mask = tensor(random_mask((100,)), device=device)
    before = bits(mask)
    ops.apply_masks_(torch.ones(100, device=device), mask)
    assert bits(mask) == before


def test_parameters_are_pruned_and_autograd_is_told(device):
    weight = torch.nn.Parameter(torch.ones(4, device=device))
    loss = (weight * weight).sum()
    with torch.no_grad():
        ops.apply_masks_(weight, torch.tensor([True, False, True, False], device=device))
    assert array(weight).tolist() == [1, 0, 1, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_any_mask(device, data, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8))
    mask = data.draw(hnp.arrays(bool, shape))
    layout = data.draw(st.sampled_from(layouts(len(shape))))
    given_mask = tensor(packed(mask) if data.draw(st.booleans()) else mask, device=device)
    check_apply(device, values("everything", shape, dtype), mask, given_mask, dtype=dtype, layout=layout)
