"""expand_block_mask: every entry of the weight shows the mask of its block."""

import numpy as np
import oracle
import pytest
import torch
from hostile import layouts
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same, tensor

from pruneops import ops


def check_expand(device, shape, block, layout="contiguous"):
    mask = np.random.default_rng(0).random(oracle.block_ids(shape, block)[1]) < 0.5
    expanded = ops.expand_block_mask(tensor(mask, device=device, layout=layout), block, shape)
    assert expanded.dtype == torch.bool
    assert expanded.is_contiguous()
    assert_same(expanded, oracle.expand_blocks(mask, block, shape))


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 4), (16, 16), (-1, 1), (1, -1), (-1, -1), (2, 8)])
@pytest.mark.parametrize("shape", [(32, 64), (16, 48, 3), (16, 16, 3, 3), (16, 16, 1, 1), (16, 8, 1, 2, 4)])
@pytest.mark.parametrize("layout", layouts(2))
def test_blocks_shapes_and_layouts(device, shape, block, layout):
    check_expand(device, shape, block, layout)


@pytest.mark.parametrize("cols", [1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 4097, 32769])
@pytest.mark.parametrize("block", [(2, 1), (1, -1)])
def test_widths(device, cols, block):
    check_expand(device, (4, cols), block)


@pytest.mark.parametrize(
    ("shape", "block"), [((0, 4), (1, 2)), ((4, 0), (2, 1)), ((0, 4), (-1, 2)), ((4, 0), (2, -1)), ((0, 0), (-1, -1))]
)
def test_empty(device, shape, block):
    check_expand(device, shape, block)


def test_shape_may_be_any_sequence_of_integers(device):
    mask = torch.tensor([[True, False]], device=device)
    for shape in (torch.Size([2, 4]), [2, 4], np.array([2, 4]), iter([2, 4])):
        assert_same(ops.expand_block_mask(mask, [2, 2], shape), np.array([[True, True, False, False]] * 2))


@given(data=st.data())
def test_any_grid(device, data):
    n, m, rows, cols = (data.draw(st.integers(1, 6)) for _ in range(4))
    shape = (n * rows, m * cols, *data.draw(st.lists(st.integers(1, 4), max_size=2)))
    check_expand(device, shape, (n, m), data.draw(st.sampled_from(layouts(2))))
