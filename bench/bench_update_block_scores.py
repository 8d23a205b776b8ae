"""``update_block_scores_`` beside score, reshape and mean, as Neural Compressor does it, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneops import ops

from .blocks import BLOCKS, as_blocks, grid, inc_mean
from .common import Case, Config, as_one, beside, element_size, parts, warmed
from .shapes import GPT_125M, LLAMA_7B, Shape, largest, square, total, transformer, whole

ALPHA = 0.9


@dataclass(frozen=True)
class Data:
    block: Shape
    scores: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]


def _ours(data: Data) -> None:
    ops.update_block_scores_(data.scores, data.weights, data.grads, block=data.block, metric="snip", alpha=ALPHA)


def _layerwise(reduce: Callable[[Tensor, Shape], Tensor]) -> Callable[[Data], None]:
    def update(data: Data) -> None:
        for score, weight, grad in zip(data.scores, data.weights, data.grads, strict=True):
            score *= ALPHA
            score += 1.0 * reduce(torch.abs(weight * grad), data.block)

    return update


@torch.compile(dynamic=False)
def _formula(score: Tensor, weight: Tensor, grad: Tensor, block: Shape) -> None:
    score.copy_(ALPHA * score + as_blocks((weight * grad).abs(), block).mean((1, 3)))


@warmed
def _compiled(data: Data) -> None:
    for score, weight, grad in zip(data.scores, data.weights, data.grads, strict=True):
        _formula(score, weight, grad, data.block)


def _read(data: Data) -> None:
    """Reads what an update reads and writes nothing: no update of large blocks can be faster."""
    for weight, grad in zip(data.weights, data.grads, strict=True):
        torch.dot(weight.view(-1), grad.view(-1))


def _as_one(data: Data) -> Data:
    shape = whole(sum(weight.numel() for weight in data.weights))
    scores = as_one(data.scores, grid(shape, data.block))
    return replace(data, scores=scores, weights=as_one(data.weights, shape), grads=as_one(data.grads, shape))


def cases(config: Config) -> Iterator[Case]:
    peers = {
        "pruneops": _ours,
        "INC eager": _layerwise(inc_mean),
        "reshape + mean": _layerwise(lambda x, block: as_blocks(x, block).mean((1, 3))),
    }
    compiled = {**peers, "torch.compile": _compiled, "torch.dot (only reads)": _read}
    fastest = config.peers(peers, "reshape + mean")
    fp32, bf16 = torch.float32, torch.bfloat16

    def case(name: str, block: Shape, shapes: list[Shape], dtype: torch.dtype, contenders=peers, **more) -> Case:
        def data() -> Data:
            weights, grads = (parts(config.noise(n, dtype=dtype), shapes) for _ in range(2))
            return Data(block, parts(config.noise(blocks).abs_(), grids), weights, grads)

        grids = [grid(shape, block) for shape in shapes]
        n, blocks = total(shapes), total(grids)
        floor = element_size(dtype, dtype) + 8 * blocks / n
        needs = n * element_size(dtype, dtype) + 4 * blocks + 3 * largest(shapes) * element_size(dtype)
        return Case("update_block_scores_", name, n, floor, data, contenders, needs=needs, **more)

    one, many = [square(config.n)], transformer(300, config.n)
    for name, block, main in BLOCKS:
        yield case(f"{name}, fp32", block, one, fp32, compiled if main else fastest, headline=main)
    yield case("4x1, bf16 w and g, fp32 score", (4, 1), one, bf16, fastest)
    yield beside(case("300 tensors, 4x1, fp32", (4, 1), many, fp32, fastest), "as one tensor", _as_one)
    if config.smoke:
        return
    yield case("GPT 125M, 4x1, fp32", (4, 1), GPT_125M, fp32, fastest)
    if config.gpu:
        yield case("Llama 7B, 4x1, bf16 w and g", (4, 1), LLAMA_7B, bf16, headline=True)


def test_speed(timed, case, contender):
    timed(case, contender)
