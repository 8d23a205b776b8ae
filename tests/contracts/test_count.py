"""Count and masks: exactly ``keep`` entries are True, in bool masks of the shapes of the scores."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hostile import DTYPES, VALUES, values
from tensors import tensor

from pruneops import ops


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exactly_keep(device, name, dtype):
    scores = [tensor(values(name, shape, dtype), dtype, device) for shape in [(30, 40), (0,), (700,), ()]]
    total = sum(score.numel() for score in scores)
    for keep in (0, 1, 2, total // 3, total // 2, total - 1, total):
        masks = ops.topk_mask(scores, keep=keep)
        assert sum(int(mask.sum()) for mask in masks) == keep
        assert [(mask.shape, mask.dtype, mask.device) for mask in masks] == [
            (score.shape, torch.bool, score.device) for score in scores
        ]


@pytest.mark.parametrize("name", VALUES)
def test_exactly_keep_in_each_row_and_group(device, name):
    score = tensor(values(name, (21, 64)), device=device)
    for keep in (0, 1, 13, 63, 64):
        assert (ops.row_topk_mask(score, keep=keep).sum(-1) == keep).all()
    for n, m in [(0, 4), (1, 4), (2, 4), (4, 4), (5, 8), (1, 2), (16, 32)]:
        assert (ops.nm_mask(score, n, m).reshape(21, -1, m).sum(-1) == n).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 10, 99, 1000])
def test_sparsity_prunes_int_of_p_times_n(device, n):
    score = torch.zeros(n, device=device)
    for p in np.linspace(0, 1, 41):
        assert int((~ops.topk_mask(score, sparsity=p)).sum()) == int(p * n)
        assert int((~ops.row_topk_mask(score, sparsity=p)).sum()) == int(p * n)


def test_sparsity_counts_over_all_tensors(device):
    # 3 * int(0.5 * 3) would be 3; int(0.5 * 9) is 4.
    masks = ops.topk_mask([torch.zeros(3, device=device)] * 3, sparsity=0.5)
    assert sum(int((~mask).sum()) for mask in masks) == 4


@pytest.mark.parametrize("name", VALUES)
def test_growing_keep_only_adds(device, name):
    score = tensor(values(name, (500,)), device=device)
    masks = [ops.topk_mask(score, keep=keep) for keep in range(0, 501, 20)]
    for fewer, more in pairwise(masks):
        assert not (fewer & ~more).any()


def test_threshold_never_keeps_more(device):
    for name in VALUES:
        score = tensor(values(name, (500,)), device=device)
        for keep in (0, 1, 250, 499, 500):
            exact, threshold = ops.topk_mask(score, keep=keep), ops.topk_mask(score, keep=keep, ties="threshold")
            assert not (threshold & ~exact).any()
