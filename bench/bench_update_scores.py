"""``update_scores_`` beside the eager formula, ``torch._foreach_*`` and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pruneops import ops

from .common import Case, Config, as_one, beside, element_size, parts, warmed
from .shapes import BERT_BASE, GPT_125M, LLAMA_7B, Shape, largest, square, total, transformer, whole

ALPHA = 0.9
Data = tuple[list[Tensor], list[Tensor], list[Tensor]]


def _ours(data: Data) -> None:
    ops.update_scores_(*data, metric="snip", alpha=ALPHA)


def _eager(data: Data) -> None:
    """SNIP momentum as Neural Compressor computes it, layer by layer."""
    for score, weight, grad in zip(*data, strict=True):
        score *= ALPHA
        score += 1.0 * torch.abs(weight * grad)


def _foreach(data: Data) -> None:
    scores, weights, grads = data
    values = torch._foreach_mul(weights, grads)
    torch._foreach_abs_(values)
    torch._foreach_mul_(scores, ALPHA)
    torch._foreach_add_(scores, values)


@torch.compile(dynamic=False)
def _formula(score: Tensor, weight: Tensor, grad: Tensor) -> None:
    score.copy_(ALPHA * score + (weight * grad).abs())


@warmed
def _compiled(data: Data) -> None:
    for score, weight, grad in zip(*data, strict=True):
        _formula(score, weight, grad)


def _magnitude(data: Data) -> None:
    ops.update_scores_(data[0], data[1], None, metric="magnitude")


def _magnitude_eager(data: Data) -> None:
    for i, weight in enumerate(data[1]):
        data[0][i] = weight.abs()


def cases(config: Config) -> Iterator[Case]:
    peers = {"pruneops": _ours, "INC eager": _eager, "_foreach": _foreach}
    compiled = {**peers, "torch.compile": _compiled}
    fp32, bf16 = torch.float32, torch.bfloat16

    def case(name: str, shapes: list[Shape], dtype: torch.dtype, contenders=peers, **more) -> Case:
        def data() -> Data:
            weights, grads = (parts(config.noise(n, dtype=dtype), shapes) for _ in range(2))
            return parts(config.noise(n).abs_(), shapes), weights, grads

        n, size = total(shapes), element_size(dtype)
        floor = element_size(fp32, dtype, dtype, fp32)
        # _foreach makes all values at once, the eager formula three intermediates of one tensor.
        needs = n * element_size(fp32, dtype, dtype) + size * max(n, 3 * largest(shapes))
        return Case("update_scores_", name, n, floor, data, contenders, needs=needs, **more)

    one, many = [square(config.n)], transformer(300, config.n)
    yield case("snip momentum, fp32", one, fp32, compiled, headline=True)
    yield case("snip momentum, bf16 w and g, fp32 score", one, bf16, compiled, headline=True)
    in_many = case("300 tensors, fp32", many, fp32, headline=True)
    yield beside(in_many, "as one tensor", lambda data: tuple(as_one(x, whole(in_many.entries)) for x in data))
    if config.smoke:
        return
    yield Case("update_scores_", "magnitude, fp32, score only written", config.n, 8,
               lambda: ([torch.empty(one[0], device=config.device)], [config.noise(*one[0])]),
               {"pruneops": _magnitude, "INC eager": _magnitude_eager})  # fmt: skip
    fastest = config.peers(peers, "_foreach")
    yield case("BERT-base, fp32", BERT_BASE, fp32, fastest)
    yield case("GPT 125M, fp32", GPT_125M, fp32, fastest)
    if config.gpu:
        yield case("Llama 7B, bf16 w and g, fp32 score", LLAMA_7B, bf16, headline=True)


def test_speed(timed, case, contender):
    timed(case, contender)
