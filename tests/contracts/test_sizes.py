"""Sizes: nothing, one entry, and more entries than 32 bits can count."""

import numpy as np
import pytest
import torch
from tensors import array, bits

import pruneops
from pruneops import ops

LARGE = 2**31 + 4097


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_empty_tensor_through_every_op(device, shape):
    x = torch.zeros(shape, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    assert ops.update_scores_(x, x, x, metric="snip").shape == shape
    assert ops.topk_mask(x, keep=0).shape == shape
    assert ops.topk_mask(x, sparsity=0.5).shape == shape
    assert ops.row_topk_mask(x, keep=0).shape == shape
    assert ops.nm_mask(x, 2, 4 if shape[-1] % 4 == 0 else 3).shape == shape
    assert ops.apply_masks_(x, mask).shape == shape
    assert ops.pack_mask(mask).shape == (0,)
    assert ops.apply_masks_(x, ops.pack_mask(mask)).shape == shape
    assert ops.unpack_mask(ops.pack_mask(mask), shape).shape == shape


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (4, 0, 3), (0, 4, 3, 3)])
def test_empty_weight_through_every_block_op(device, shape):
    x = torch.zeros(shape, device=device)
    grid = (shape[0] // 2, int(np.prod(shape[1:])) // 2)
    blocks = torch.zeros(grid, device=device)
    assert ops.block_reduce(x, (2, 2)).shape == grid
    assert ops.update_block_scores_(blocks, x, x, block=(2, 2), metric="mask_gradient").shape == grid
    assert ops.expand_block_mask(blocks > 0, (2, 2), shape).shape == shape
    assert ops.apply_masks_(x, blocks > 0, block=(2, 2)).shape == shape


def test_zero_dimensions_through_every_op(device):
    x = torch.tensor(-3.0, device=device)
    assert array(ops.update_scores_(torch.tensor(1.0, device=device), x, x, metric="snip", alpha=1.0)) == 10
    assert array(ops.kth_value(x, 1)) == -3
    for keep in (0, 1):
        for mask in (ops.topk_mask(x, keep=keep), ops.row_topk_mask(x, keep=keep), ops.nm_mask(x, keep, 1)):
            assert mask.shape == ()
            assert array(mask) == bool(keep)
    mask = torch.tensor(True, device=device)
    assert array(ops.pack_mask(mask)).tolist() == [1]
    assert array(ops.unpack_mask(ops.pack_mask(mask), ())) == True  # noqa: E712
    assert array(ops.apply_masks_(x, ~mask)) == 0


@pytest.mark.parametrize("trailing", [0, 1, 5])
def test_empty_tensors_before_between_and_behind(device, trailing):
    full, empty = (
        [torch.arange(1.0, 6.0, device=device), torch.arange(6.0, 9.0, device=device)],
        torch.zeros(0, device=device),
    )
    scores = [empty, full[0], empty, empty, full[1], *[empty] * trailing]
    masks = ops.topk_mask(scores, keep=4)
    assert [mask.numel() for mask in masks] == [score.numel() for score in scores]
    assert array(torch.cat(masks)).tolist() == [False] * 4 + [True] * 4
    ops.apply_masks_(scores, masks)
    assert array(torch.cat(scores)).tolist() == [0, 0, 0, 0, 5, 6, 7, 8]
    ops.update_scores_(scores, scores, None, metric="magnitude", alpha=1.0)
    assert array(torch.cat(scores)).tolist() == [0, 0, 0, 0, 10, 12, 14, 16]


def native(device):
    if pruneops.backend_info()[device] != "native":
        pytest.skip("the reference holds temporaries of 8 and more bytes an entry")


@pytest.mark.large
def test_masks_of_a_tensor_past_32_bits(device):
    native(device)
    mask = torch.zeros(LARGE, dtype=torch.bool, device=device)
    kept = torch.tensor([0, 5, 2**31 - 1, 2**31, 2**31 + 9, LARGE - 1], device=device)
    mask[kept] = True
    packed = ops.pack_mask(mask)
    assert packed.shape == ((LARGE + 7) // 8,)
    assert int(packed.count_nonzero()) == 5
    assert bits(ops.unpack_mask(packed, (LARGE,))[kept]) == b"\x01" * 6
    x = torch.ones(LARGE, dtype=torch.uint8, device=device)
    ops.apply_masks_(x, packed)
    assert int(x.count_nonzero()) == 6
    assert bits(x[kept]) == b"\x01" * 6
    x.fill_(1)
    ops.apply_masks_(x, mask)
    assert int(x.count_nonzero()) == 6
    assert bits(x[kept]) == b"\x01" * 6


@pytest.mark.large
def test_selection_in_a_tensor_past_32_bits(device):
    native(device)
    score = torch.zeros(LARGE, dtype=torch.bfloat16, device=device)
    high = torch.tensor([7, 2**31 - 1, 2**31, LARGE - 1], device=device)
    score[high] = 1.0
    mask = ops.topk_mask(score, keep=4)
    assert int(mask.count_nonzero()) == 4
    assert mask[high].all()
    ops.topk_mask(score, keep=2**31 + 100, out=mask)  # three of the four high ones come before the last zero kept
    assert int(mask.count_nonzero()) == 2**31 + 100
    assert array(mask[[2**31 + 98, 2**31 + 99, -2, -1]]).tolist() == [True, False, False, True]
    assert float(ops.kth_value(score, LARGE - 4)) == 0
    assert float(ops.kth_value(score, LARGE - 3)) == 1


@pytest.mark.large
def test_scores_of_a_tensor_past_32_bits(device):
    native(device)
    score = torch.zeros(LARGE, dtype=torch.bfloat16, device=device)
    weight = torch.full((1,), 2.0, dtype=torch.bfloat16, device=device).repeat(LARGE)
    weight[2**31 + 5] = -3.0
    ops.update_scores_(score, weight, None, metric="magnitude")
    assert float(score[2**31 + 5]) == 3.0
    assert int((score == 2.0).count_nonzero()) == LARGE - 1  # sum() would widen every entry to 64 bits


@pytest.mark.large
def test_tensors_past_33_bits_together(device):
    native(device)
    shared = torch.zeros(2**31 + 8, dtype=torch.bfloat16, device=device)
    shared[-1] = 1.0
    out = [torch.empty(shared.shape, dtype=torch.bool, device=device) for _ in range(2)]
    ops.topk_mask([shared, shared], keep=2**32 - 5, out=out)
    assert [int(mask.count_nonzero()) for mask in out] == [2**31 + 8, 2**31 - 13]
    assert bool(out[1][-1])
