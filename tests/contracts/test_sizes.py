"""Sizes: nothing and one entry; what 32 bits cannot count is in test_large.py."""

import numpy as np
import pytest
import torch
from tensors import array

from pruneops import ops


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_empty_tensor_through_every_op(device, shape):
    x, one = torch.zeros(shape, device=device), torch.ones(1, device=device)
    prefix = torch.zeros(1, dtype=torch.int64, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    assert ops.update_scores_(x, x, x, metric="snip").shape == shape
    assert ops.update_topk_mask_(x, x, x, metric="snip", keep=0).shape == shape
    assert ops.count_digits(x, prefix, 0).count_nonzero() == 0
    assert ops.kth_value([x, one, x], 1) == 1
    assert ops.empty_masks(x).shape == shape
    assert ops.topk_mask(x, keep=0).shape == shape
    assert ops.topk_mask(x, keep=0, packed=True).shape == (0,)
    assert ops.topk_mask(x, sparsity=0.5).shape == shape
    assert ops.row_topk_mask(x, keep=0).shape == shape
    assert ops.nm_mask(x, 2, 4 if shape[-1] % 4 == 0 else 3).shape == shape
    assert ops.apply_masks_(x, mask).shape == shape
    assert ops.pack_mask(mask).shape == (0,)
    assert ops.apply_masks_(x, ops.pack_mask(mask)).shape == shape
    assert ops.unpack_mask(ops.pack_mask(mask), shape).shape == shape
    assert ops.prune_by_importance(x, torch.zeros(shape[0], device=device), shape[0], 1).shape == shape


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (4, 0, 3), (0, 4, 3, 3)])
def test_empty_weight_through_every_block_op(device, shape):
    x = torch.zeros(shape, device=device)
    grid = (shape[0] // 2, int(np.prod(shape[1:])) // 2)
    blocks = torch.zeros(grid, device=device)
    assert ops.block_reduce(x, (2, 2)).shape == grid
    assert ops.update_block_scores_(blocks, x, x, block=(2, 2), metric="mask_gradient").shape == grid
    assert ops.expand_block_mask(blocks > 0, (2, 2), shape).shape == shape
    assert ops.apply_masks_(x, blocks > 0, block=(2, 2)).shape == shape


def test_no_tensors_through_every_op_of_several(device):
    assert ops.update_scores_([], [], [], metric="snip") == []
    assert ops.update_topk_mask_([], [], [], metric="snip", keep=0) == []
    assert ops.update_block_scores_([], [], [], metric="snip", block=(2, 2)) == []
    assert ops.topk_mask([], keep=0) == ops.empty_masks([]) == ops.apply_masks_([], []) == []
    for how in ({}, {"metric": "snip", "grads": []}, {"metric": "wanda", "input_norm": []}):
        counts = ops.count_digits([], torch.zeros(1, dtype=torch.int64, device=device), 0, **how)
        assert (counts.shape, counts.dtype, counts.device.type) == ((0, 2048), torch.int64, torch.device(device).type)
    with pytest.raises(ValueError, match="round must be between 0 and 2, got 3"):
        ops.count_digits([], torch.tensor(0, device=device), 3)


def test_zero_dimensions_through_every_op(device):
    x = torch.tensor(-3.0, device=device)
    assert array(ops.update_scores_(torch.tensor(1.0, device=device), x, x, metric="snip", alpha=1.0)) == 10
    score = torch.tensor(1.0, device=device)
    assert array(ops.update_topk_mask_(score, x, x, metric="snip", alpha=1.0, keep=1)) == True  # noqa: E712
    assert array(score) == 10
    assert array(ops.kth_value(x, 1)) == -3
    assert array(ops.count_digits(x, torch.zeros((), dtype=torch.int64, device=device), 0)).sum() == 1
    assert ops.empty_masks(x).shape == ()
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
