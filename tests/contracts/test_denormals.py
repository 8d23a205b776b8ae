"""Denormals are numbers, also where the calling thread, and not those of the pool, takes them for zero."""

import pytest
import torch
from tensors import bits

import pruneops
from pruneops import ops

compiled = pytest.mark.skipif(pruneops.backend_info()["cpu"] != "native", reason="the reference is torch's own code")
WIDEST = 2**19  # beyond what one thread selects


def denormals(n, seed=0):
    """Half of them denormal, and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(1, 1 << 24, (n,), generator=generator, dtype=torch.int32) & ~0xFF
    return whole.view(torch.float32)


def results(weight, grad, wide):
    """``wide`` is the weight in float64, which torch itself would not convert as it is."""
    n, score = weight.numel(), weight.clone()
    return [
        bits(x)
        for x in (
            ops.topk_mask(weight, sparsity=0.25),
            ops.topk_mask(weight, sparsity=0.4, strict=True),
            ops.topk_mask(wide, sparsity=0.25),
            ops.kth_value(weight, n // 3),
            ops.row_topk_mask(weight, keep=20),
            ops.nm_mask(weight, 2, 4),
            ops.nm_mask(weight, 3, 8),
            ops.count_digits(weight, torch.tensor(0), 0),
            ops.update_topk_mask_(score, weight, grad, metric="gradient", alpha=0.5, sparsity=0.3),
            score,
            ops.update_scores_(weight.clone(), weight, grad, metric="gradient", alpha=0.5),
            ops.update_block_scores_(torch.zeros(n // 256, 64), weight, grad, block=(4, 1), metric="magnitude"),
            ops.prune_by_importance(weight, weight[:, 0].contiguous(), n // 128, 1),
        )
    ]


@compiled
@pytest.mark.parametrize("n", [256, 4096, WIDEST])
def test_flushing_them_to_zero_changes_nothing(n, threads):
    threads(2)
    weight, grad = denormals(n).reshape(-1, 64), denormals(n, 1).reshape(-1, 64)
    inputs = weight, grad, weight.double()
    expected = results(*inputs)  # by threads that flush nothing, as those of the pool go on
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert (denormals(8) * 0.5).count_nonzero() == 0
        found = results(*inputs)
        assert (denormals(8) * 0.5).count_nonzero() == 0
    finally:
        torch.set_flush_denormal(False)
    assert found == expected
