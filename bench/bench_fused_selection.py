"""Selections whose scores no memory holds, ``topk_mask`` by a metric and ``update_topk_mask_``, beside making the
scores first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneops import ops

from .common import OURS, Case, Config, element_size

ALPHA = 0.9


@dataclass(frozen=True)
class Data:
    weight: Tensor
    grad: Tensor
    score: Tensor
    mask: Tensor

    @property
    def keep(self) -> int:
        return self.weight.numel() // 2


def _magnitude(data: Data) -> None:
    ops.topk_mask(data.weight, keep=data.keep, metric="magnitude", out=data.mask)


def _magnitude_first(data: Data) -> None:
    ops.topk_mask(data.weight.abs(), keep=data.keep, out=data.mask)


def _snip(data: Data) -> None:
    ops.topk_mask(data.weight, keep=data.keep, metric="snip", grads=data.grad, out=data.mask)


def _snip_first(data: Data) -> None:
    ops.topk_mask((data.weight * data.grad).abs_(), keep=data.keep, out=data.mask)


def _update(data: Data) -> None:
    ops.update_topk_mask_(data.score, data.weight, data.grad, metric="snip", alpha=ALPHA, keep=data.keep, out=data.mask)


def _update_first(data: Data) -> None:
    ops.update_scores_(data.score, data.weight, data.grad, metric="snip", alpha=ALPHA)
    ops.topk_mask(data.score, keep=data.keep, out=data.mask)


def cases(config: Config) -> Iterator[Case]:
    fp32, bf16 = torch.float32, torch.bfloat16
    n = config.n // 2

    def data(dtype: torch.dtype) -> Data:
        mask = torch.empty(n, dtype=torch.bool, device=config.device)
        return Data(config.randn(n, dtype=dtype), config.randn(n, dtype=dtype), config.randn(n).abs_(), mask)

    def case(op: str, name: str, dtype: torch.dtype, floor: int, ours: Callable, first: Callable, **more) -> Case:
        return Case(op, name, n, floor, lambda: data(dtype), {OURS: ours, "score, then topk_mask": first}, **more)

    for dtype, of in ((fp32, "fp32"), (bf16, "bf16")):
        size = element_size(dtype)
        yield case("topk_mask", f"magnitude, keep 50 %, {of}", dtype, size + 1, _magnitude, _magnitude_first)
        yield case("topk_mask", f"snip, keep 50 %, {of}", dtype, 2 * size + 1, _snip, _snip_first)
        name = f"snip momentum, keep 50 %, {'fp32' if dtype == fp32 else 'bf16 w and g, fp32 score'}"
        yield case("update_topk_mask_", name, dtype, 2 * size + 9, _update, _update_first, headline=True)


def test_speed(timed, case, contender):
    timed(case, contender)
