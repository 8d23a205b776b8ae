"""Async: CUDA ops run on the current stream without host synchronisation, can be captured, and use bounded memory."""

import pytest
import torch
from tensors import bits

from pruneops import ops

pytestmark = pytest.mark.cuda


#: More entries than those from which a selection is made in one pass (kShippedLimits in csrc/cuda/plan.cuh).
N = 2**22 + 77


def state():
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator)

    score, weight, grad = (normal(512, 768) for _ in range(3))
    blocks, mask = torch.zeros(128, 192, device="cuda"), torch.zeros(512, 768, dtype=torch.bool, device="cuda")
    return score, weight, grad, blocks, mask, normal(N), normal(N)


def step(score, weight, grad, blocks, mask, many, more):
    """Every op, without a value that the host needs."""
    prefix = torch.zeros((), dtype=torch.int64, device=many.device)
    ops.update_scores_(score, weight, grad, metric="snip", alpha=0.9)
    ops.update_block_scores_(blocks, weight, grad, block=(4, 4), metric="mask_fisher", alpha=0.9)
    ops.topk_mask(score, sparsity=0.5, out=mask)
    ops.apply_masks_(weight, mask)
    ops.apply_masks_(weight, ops.pack_mask(ops.nm_mask(score, 2, 4)))
    ops.apply_masks_(weight, ops.row_topk_mask(weight, sparsity=0.2, metric="wanda", input_norm=grad[0].abs()))
    # Through copies, and back.
    score_of_few, mask_of_few = score[:, ::2], mask[:, ::2]
    ops.update_scores_(score_of_few, weight[:, ::2], grad[:, 1::2], metric="snip", alpha=0.9)
    ops.apply_masks_(weight[:, ::2], ops.topk_mask(score_of_few, sparsity=0.5, out=mask_of_few))
    kept = blocks > ops.kth_value(blocks, blocks.numel() // 2)
    ops.apply_masks_(weight, kept, block=(4, 4))
    packed = ops.update_topk_mask_(many, more, None, metric="magnitude", alpha=0.9, sparsity=0.5, packed=True)
    masks = ops.empty_masks([weight, many], packed=True)
    ops.topk_mask([weight, many], sparsity=0.5, metric="snip", grads=[grad, more], packed=True, out=masks)
    return [
        *masks,
        *ops.topk_mask([score, many], sparsity=0.5),
        *ops.topk_mask([score, many], sparsity=0.5, ties="threshold", strict=True),
        ops.kth_value([score, many], N // 3),
        ops.count_digits([score, many], prefix, 0),
        ops.unpack_mask(packed, many.shape),
        ops.expand_block_mask(kept, (4, 4), weight.shape),
        ops.prune_by_importance(weight, ops.block_reduce(weight, (64, -1)).flatten(), 4, 64),
    ]


def test_no_host_synchronisation():
    arguments = state()
    step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replay_is_the_eager_call():
    eager, captured = state(), state()
    step(*captured)
    for given, fresh in zip(captured, state(), strict=True):
        given.copy_(fresh)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(*captured)
    for _ in range(3):
        graph.replay()
        expected = step(*eager)
    assert [bits(x) for x in found] == [bits(x) for x in expected]
    assert [bits(x) for x in captured] == [bits(x) for x in eager]


def test_ops_wait_for_their_own_stream():
    stream = torch.cuda.Stream()
    score = torch.zeros(2**22, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        score.copy_(torch.arange(2**22, device="cuda"))
        mask = ops.topk_mask(score, keep=5)
    stream.synchronize()
    assert mask[-5:].all()
    assert int(mask.sum()) == 5


def test_memory_of_a_selection_is_a_fraction_of_the_scores():
    score = torch.randn(2**24, device="cuda")
    mask = torch.empty(2**24, dtype=torch.bool, device="cuda")
    ops.topk_mask(score, keep=2**23, out=mask)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.topk_mask(score, keep=2**23, out=mask)
    assert torch.cuda.max_memory_allocated() - before < 0.03 * score.nbytes + 2**22


def test_no_memory_is_kept():
    arguments = state()
    step(*arguments)
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        step(*arguments)
    assert torch.cuda.memory_allocated() == before
