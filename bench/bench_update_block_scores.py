"""``update_block_scores_`` beside score, reshape and mean, as Neural Compressor does it, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneops import ops

from .blocks import BLOCKS, as_blocks, grid, inc_mean
from .common import Case, Config, beside, element_size, warmed
from .shapes import GPT_125M, LLAMA_7B, Shape, largest, square, total, transformer

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
            weights, grads = ([config.noise(*s, dtype=dtype) for s in shapes] for _ in range(2))
            return Data(block, [config.noise(*grid(s, block)).abs_() for s in shapes], weights, grads)

        blocks = sum(rows * columns for rows, columns in (grid(s, block) for s in shapes))
        n = total(shapes)
        floor = element_size(dtype, dtype) + 8 * blocks / n
        needs = n * element_size(dtype, dtype) + 4 * blocks + 3 * largest(shapes) * element_size(dtype)
        return Case("update_block_scores_", name, n, floor, data, contenders, needs=needs, **more)

    one, many = [square(config.n)], transformer(300, config.n)
    for name, block, main in BLOCKS:
        yield case(f"{name}, fp32", block, one, fp32, compiled if main else fastest, headline=main)
    yield case("4x1, bf16 w and g, fp32 score", (4, 1), one, bf16, fastest)
    in_one = case("4x1, fp32", (4, 1), one, fp32)
    yield beside(case("300 tensors, 4x1, fp32", (4, 1), many, fp32, fastest), in_one, "one tensor")
    if config.smoke:
        return
    yield case("GPT 125M, 4x1, fp32", (4, 1), GPT_125M, fp32, fastest)
    if config.gpu:
        yield case("Llama 7B, 4x1, bf16 w and g", (4, 1), LLAMA_7B, bf16, headline=True)


def test_speed(timed, case, contender):
    timed(case, contender)
