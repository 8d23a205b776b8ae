"""Arithmetic: the float32 result is bit-identical to the eager PyTorch formula; half results are one rounding away."""

import oracle
import pytest
import torch
from hostile import DTYPES, values
from tensors import array, assert_same, bits, tensor

from pruneops import ops

EAGER = {
    "magnitude": lambda w, g: torch.abs(w),
    "gradient": lambda w, g: torch.abs(g),
    "snip": lambda w, g: torch.abs(w * g),
    "taylor": lambda w, g: (w * g) ** 2,
    "fisher": lambda w, g: g**2,
}


def steps(device, count=20, shape=(37, 65), dtype="float32"):
    for seed in range(count):
        yield tuple(tensor(values("wide_range", shape, dtype, seed + i), dtype, device) for i in (0, 1000))


@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 1.0), (0.99, 0.01), (-0.3, 1.7), (1.0, 1.0)])
def test_twenty_steps_of_the_eager_formula(device, metric, dtype, alpha, beta):
    score = torch.zeros(37, 65, dtype=getattr(torch, dtype), device=device)
    eager = score.clone()
    for weight, grad in steps(device, dtype=dtype):
        ops.update_scores_(score, weight, grad, metric=metric, alpha=alpha, beta=beta)
        eager = alpha * eager + beta * EAGER[metric](weight, grad)
    assert_same(score, array(eager))


def test_twenty_steps_of_neural_compressor(device):
    score = torch.zeros(37, 65, device=device)
    eager = score.clone()
    for weight, grad in steps(device):
        ops.update_scores_(score, weight, grad, metric="snip", alpha=0.9, beta=1.0)
        eager *= 0.9
        eager += 1.0 * torch.abs(weight * grad)
    assert_same(score, array(eager))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("metric", oracle.METRICS)
def test_half_inputs_and_scores_round_once(device, half, metric):
    weight, grad, old = (tensor(values("normal", (5000,), half, i), half, device) for i in range(3))
    score = ops.update_scores_(old.clone(), weight, grad, metric=metric, alpha=0.9, beta=0.7)
    wide = 0.9 * old.float() + 0.7 * EAGER[metric](weight.float(), grad.float())
    assert bits(score) == bits(wide.to(old.dtype))
    stored = ops.update_scores_(old.float(), weight, grad, metric=metric, alpha=0.9, beta=0.7)
    assert_same(stored, array(wide))


def test_small_products_of_half_do_not_underflow(device):
    weight = torch.full((9,), 1e-4, dtype=torch.float16, device=device)
    score = ops.update_scores_(torch.zeros(9, device=device), weight, weight, metric="snip")
    assert (score > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_kept(device, dtype):
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}[dtype]
    weight = torch.tensor([tiny, -tiny], dtype=getattr(torch, dtype), device=device)
    score = ops.update_scores_(torch.zeros_like(weight), weight, None, metric="magnitude")
    assert array(score).tolist() == [tiny, tiny]
    assert array(ops.topk_mask(weight, keep=1)).tolist() == [True, False]


def test_entries_of_a_score_do_not_depend_on_their_neighbours(device):
    # The head and tail of a vectorised loop compute what its body computes.
    weight, grad = (tensor(values("wide_range", (200,), seed=i), device=device) for i in range(2))
    whole = ops.update_scores_(torch.ones(200, device=device), weight, grad, metric="taylor", alpha=0.3, beta=0.9)
    for first in range(0, 40, 3):
        for size in (1, 5, 17, 100):
            part = slice(first, first + size)
            score = torch.ones(size, device=device)
            ops.update_scores_(score, weight[part], grad[part], metric="taylor", alpha=0.3, beta=0.9)
            assert bits(score) == bits(whole[part])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [(4, 1), (1, 128), (-1, 1), (1, -1), (-1, -1)])
def test_block_sums_repeat(device, dtype, block):
    weight, grad = (tensor(values("wide_range", (256, 384), dtype, i), dtype, device) for i in range(2))
    grid = ops.block_reduce(weight, block).shape
    scores = [
        ops.update_block_scores_(torch.zeros(grid, device=device), weight, grad, block=block, metric="mask_fisher")
        for _ in range(5)
    ]
    assert len({bits(score) for score in scores}) == 1
