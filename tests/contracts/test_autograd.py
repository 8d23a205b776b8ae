"""Operators and autograd: what a graph has made is not written to behind its back, parameters are."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from pruneops import ops

MASK = torch.tensor([True, False, True, False])


def ones():
    return nn.Parameter(torch.ones(4))


WRITES = {
    "apply_masks_": ("tensors", lambda x: ops.apply_masks_(x, MASK)),
    "apply_masks_ of blocks": ("tensors", lambda x: ops.apply_masks_(x.view(4, 1), MASK[:2, None], block=(2, 1))),
    "update_scores_": ("scores", lambda x: ops.update_scores_(x, torch.ones(4), None, metric="magnitude")),
    "update_block_scores_": (
        "scores",
        lambda x: ops.update_block_scores_(x[None], torch.ones(1, 4), None, block=(1, 1), metric="magnitude"),
    ),
    "update_topk_mask_": (
        "scores",
        lambda x: ops.update_topk_mask_(x, torch.ones(4), None, metric="magnitude", keep=2),
    ),
    "block_reduce": ("out", lambda x: ops.block_reduce(torch.ones(1, 4), (1, 1), out=x[None])),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_result_of_a_computation_is_not_written_to(name):
    argument, write = WRITES[name]
    before = 2 * ones()
    with pytest.raises(
        ValueError, match=rf": {argument} is the result of a computation that has a gradient: detach it"
    ):
        write(before)
    assert torch.equal(before, torch.full((4,), 2.0))
    with torch.no_grad():
        write(2 * ones())
    write((2 * ones()).detach())


@pytest.mark.parametrize("name", WRITES)
def test_parameters_and_their_views_are(name):
    _, write = WRITES[name]
    weight = ones()
    write(weight)
    write(nn.Parameter(torch.ones(2, 4))[1])
    assert weight.is_leaf
    assert weight.requires_grad


def test_one_of_a_list_is_named():
    with pytest.raises(ValueError, match=r"apply_masks_: tensors\[1\] is the result of a computation"):
        ops.apply_masks_([ones(), 2 * ones()], [MASK, MASK])


class Watched(torch.Tensor):
    """Calls an operator of its own in each call of one."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert ops.kth_value(torch.tensor([3.0, 1.0]), 1) == 1

        def inside(x):
            return x.inner if isinstance(x, cls) else x

        return func(*tree_map(inside, args), **tree_map(inside, kwargs or {}))


def test_a_call_within_a_call_leaves_the_checks_of_the_outer_one():
    with pytest.raises(ValueError, match=r"masks\[1\] has shape \[3\]"):
        ops.apply_masks_(
            [torch.ones(4), Watched(torch.empty(7, device="meta"))], [MASK, torch.ones(3, dtype=torch.bool)]
        )
    fine = torch.ones(4)
    ops.apply_masks_([torch.ones(4), Watched(fine)], [MASK, MASK])
    assert torch.equal(fine, MASK.float())
