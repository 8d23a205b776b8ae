"""Determinism: the same bits for every run, thread count and split of the entries over tensors."""

import numpy as np
import pytest
import torch
from hostile import values
from hypothesis import given
from hypothesis import strategies as st
from tensors import bits, tensor

from pruneops import ops

N = 300_000
NAMES = ("normal", "few_distinct", "mostly_zero", "everything", "one_outlier")


def results(weight, grad):
    """What every op makes of one (R, C) weight and its gradient, as bytes."""
    mask = ops.topk_mask(weight, keep=weight.numel() // 3)
    blocks = torch.zeros(weight.shape[0] // 4, weight.shape[1] // 2, device=weight.device)
    packed, score = ops.pack_mask(mask), weight.clone()
    prefix = torch.zeros(1, dtype=torch.int64, device=weight.device)
    momentum = {"metric": "snip", "alpha": 0.9}
    outputs = {
        "update_scores_": ops.update_scores_(weight.clone(), weight, grad, **momentum),
        "update_topk_mask_": ops.update_topk_mask_(score, weight, grad, sparsity=0.7, **momentum),
        "update_topk_mask_ scores": score,
        "update_block_scores_": ops.update_block_scores_(blocks, weight, grad, block=(4, 2), metric="mask_fisher"),
        "block_reduce": ops.block_reduce(weight, (-1, 1), "sum"),
        "block_reduce row": ops.block_reduce(weight, (1, -1), "sum"),
        "kth_value": ops.kth_value(weight, weight.numel() // 2),
        "count_digits": ops.count_digits(weight, prefix, 0),
        "topk_mask": mask,
        "topk_mask strict": ops.topk_mask(weight, sparsity=0.7, strict=True),
        "topk_mask packed": ops.topk_mask(weight, sparsity=0.7, packed=True, out=ops.empty_masks(weight, packed=True)),
        "topk_mask metric": ops.topk_mask(weight, sparsity=0.7, metric="snip", grads=grad),
        "topk_mask threshold": ops.topk_mask(weight, sparsity=0.7, ties="threshold"),
        "row_topk_mask": ops.row_topk_mask(weight, sparsity=0.5),
        "nm_mask": ops.nm_mask(weight, 2, 4),
        "pack_mask": packed,
        "unpack_mask": ops.unpack_mask(packed, weight.shape),
        "expand_block_mask": ops.expand_block_mask(blocks > 1, (4, 2), weight.shape),
        "apply_masks_": ops.apply_masks_(weight.clone(), mask),
        "apply_masks_ packed": ops.apply_masks_(weight.clone(), packed),
        "apply_masks_ block": ops.apply_masks_(weight.clone(), blocks > 1, block=(4, 2)),
        "prune_by_importance": ops.prune_by_importance(weight, grad[:, 0].contiguous(), 100, 1),
    }
    return {name: bits(output) for name, output in outputs.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_runs(device, name, dtype):
    inputs = [tensor(values(name, (500, 600), dtype, i), dtype, device) for i in range(2)]
    assert results(*inputs) == results(*inputs)


@pytest.mark.parametrize("name", NAMES)
def test_thread_counts(threads, name):
    inputs = [tensor(values(name, (500, 600), "float32", i)) for i in range(2)]
    found = []
    for count in (1, 2, 3, 8):
        threads(count)
        found.append(results(*inputs))
    assert found[0] == found[1] == found[2] == found[3]


def joined(outputs):
    return b"".join(bits(output) for output in outputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pieces", [2, 3, 10, 1000])
def test_splits_of_the_same_entries(device, threads, name, pieces):
    rng = np.random.default_rng(pieces)
    weight, grad = (tensor(values(name, (N,), "float32", i), device=device) for i in range(2))
    cuts = np.sort(rng.integers(0, N + 1, pieces - 1)).tolist()
    sizes = np.diff([0, *cuts, N]).tolist()
    weights, grads = weight.split(sizes), grad.split(sizes)
    for count in (1, 2):
        threads(count)
        for keep in (N // 100, N // 2, N - 7):
            assert joined(ops.topk_mask(weights, keep=keep)) == bits(ops.topk_mask(weight, keep=keep))
        assert joined(ops.topk_mask(weights, sparsity=0.4, metric="snip", grads=grads)) == bits(
            ops.topk_mask(weight, sparsity=0.4, metric="snip", grads=grad)
        )
        assert bits(ops.kth_value(weights, N // 3)) == bits(ops.kth_value(weight, N // 3))
        scores = [torch.ones_like(w) for w in weights]
        how = {"metric": "taylor", "alpha": 0.9}
        whole = ops.update_scores_(torch.ones_like(weight), weight, grad, **how)
        assert joined(ops.update_scores_(scores, weights, grads, **how)) == bits(whole)
        mask = ops.update_topk_mask_(whole, weight, grad, sparsity=0.4, **how)
        assert joined(ops.update_topk_mask_(scores, weights, grads, sparsity=0.4, **how)) == bits(mask)
        assert joined(scores) == bits(whole)
        prefix = torch.zeros(1, dtype=torch.int64, device=device)
        counts = ops.count_digits(weights, prefix, 0).sum(0, keepdim=True)
        assert bits(counts) == bits(ops.count_digits(weight, prefix, 0))


def test_order_of_calls_leaves_no_trace(device):
    # Scratch memory of one call must not leak into the next.
    small, large = (tensor(values("few_distinct", (n,)), device=device) for n in (100, N))
    first = bits(ops.topk_mask(small, keep=30))
    ops.topk_mask(large, keep=1000)
    ops.topk_mask(tensor(values("all_nan", (N,)), device=device), keep=1000)
    assert bits(ops.topk_mask(small, keep=30)) == first


@given(
    entries=st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, np.nan, -np.inf]), min_size=1, max_size=200), data=st.data()
)
def test_any_split(device, entries, data):
    score = torch.tensor(entries, device=device)
    keep = data.draw(st.integers(0, len(entries)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(entries)), max_size=8)))
    parts = score.split(np.diff([0, *cuts, len(entries)]).tolist())
    assert joined(ops.topk_mask(parts, keep=keep)) == bits(ops.topk_mask(score, keep=keep))
