"""pack_mask and unpack_mask against numpy.packbits."""

import numpy as np
import pytest
import torch
from hostile import SIZES, layouts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensors import array, assert_same, tensor

from pruneops import ops


def check_round_trip(device, mask, layout="contiguous"):
    packed = ops.pack_mask(tensor(mask, device=device, layout=layout))
    assert packed.is_contiguous()
    assert_same(packed, np.packbits(mask.ravel(), bitorder="little"))
    unpacked = ops.unpack_mask(packed, mask.shape)
    assert unpacked.dtype == torch.bool
    assert unpacked.is_contiguous()
    assert_same(unpacked, mask)


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    check_round_trip(device, np.random.default_rng(n).random(n) < 0.5)


@pytest.mark.parametrize("keep", [True, False])
def test_all_and_nothing(device, keep):
    for n in range(20):
        check_round_trip(device, np.full(n, keep))


@pytest.mark.parametrize("shape", [(), (70,), (9, 35), (5, 6, 7), (4, 5, 3, 6), (0, 4), (3, 0)])
def test_shapes_and_layouts(device, shape):
    for layout in layouts(len(shape)):
        check_round_trip(device, np.random.default_rng(0).random(shape) < 0.5, layout)


def test_every_byte(device):
    every = np.arange(256, dtype=np.uint8)
    mask = ops.unpack_mask(tensor(every, device=device), (256, 8))
    assert_same(mask, np.unpackbits(every, bitorder="little").reshape(256, 8).astype(bool))
    assert_same(ops.pack_mask(mask), every)


def test_first_entry_is_the_lowest_bit(device):
    assert array(ops.pack_mask(torch.tensor([True] + [False] * 8 + [True], device=device))).tolist() == [1, 2]


def test_any_byte_but_0_keeps(device):
    # torch.bool can hold other bytes than 0 and 1.
    values = np.arange(600).astype(np.uint8)
    mask = tensor(values, device=device).view(torch.bool)
    assert_same(ops.pack_mask(mask), np.packbits(values != 0, bitorder="little"))
    assert_same(ops.apply_masks_(torch.ones(600, device=device), mask), (values != 0).astype(np.float32))
    expanded = ops.expand_block_mask(mask.view(20, 30), (2, 1), (40, 30)).view(torch.uint8)
    assert_same(expanded, (values.reshape(20, 30) != 0).repeat(2, 0).astype(np.uint8))


def test_unused_bits_are_ignored(device):
    mask = ops.unpack_mask(torch.tensor([0b11111010], dtype=torch.uint8, device=device), (3,))
    assert array(mask).tolist() == [False, True, False]


@pytest.mark.parametrize("layout", ["strided", "misaligned", "sliced"])
def test_packed_may_be_a_view(device, layout):
    mask = np.random.default_rng(0).random((30, 70)) < 0.5
    packed = tensor(np.packbits(mask.ravel(), bitorder="little"), device=device, layout=layout)
    assert_same(ops.unpack_mask(packed, [30, 70]), mask)


def test_expanded_mask(device):
    assert_same(ops.pack_mask(torch.ones((), dtype=torch.bool, device=device).expand(3, 5)), np.array([255, 127], "u1"))


@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40)), data=st.data())
def test_any_mask(device, mask, data):
    check_round_trip(device, mask, data.draw(st.sampled_from(layouts(mask.ndim))))
