"""``topk_mask`` and ``kth_value`` beside ``kthvalue``, ``topk``, ``sort`` and ``numpy.partition``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pruneops import ops

from .common import Case, Config, beside, element_size
from .distributions import HOSTILE
from .shapes import transformer


@dataclass(frozen=True)
class Data:
    scores: list[Tensor]
    keep: int
    masks: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        masks = [torch.empty(score.shape, dtype=torch.bool, device=score.device) for score in self.scores]
        object.__setattr__(self, "masks", masks)

    @property
    def pruned(self) -> int:
        return sum(score.numel() for score in self.scores) - self.keep

    def flat(self) -> Tensor:
        return torch.cat([score.flatten() for score in self.scores])


def _ours(data: Data) -> None:
    ops.topk_mask(data.scores, keep=data.keep, out=data.masks)


def _compare(scores: list[Tensor], threshold: Tensor) -> list[Tensor]:
    zero, one = (torch.tensor([value], device=threshold.device) for value in (False, True))
    return [torch.where(score <= threshold, zero, one) for score in scores]


def _kthvalue(data: Data) -> list[Tensor]:
    """Neural Compressor: one threshold over the concatenation, then a comparison in each layer."""
    return _compare(data.scores, torch.kthvalue(data.flat(), data.pruned).values)


def _sort(data: Data) -> list[Tensor]:
    return _compare(data.scores, data.flat().sort().values[data.pruned - 1])


def _topk(data: Data) -> tuple[Tensor, ...]:
    """As torch.nn.utils.prune: indices of the highest into a mask over the concatenation."""
    flat = data.flat()
    kept = torch.topk(flat, data.keep, sorted=False).indices
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(0, kept, True)
    return mask.split([score.numel() for score in data.scores])


def _partition(data: Data) -> list[np.ndarray]:
    scores = [score.float().cpu().numpy() for score in data.scores]
    rank = data.pruned - 1
    threshold = np.partition(np.concatenate([score.ravel() for score in scores]), rank)[rank]
    return [score > threshold for score in scores]


KTHVALUE: dict[str, Callable[[Data], object]] = {"pruneops": _ours, "kthvalue + compare": _kthvalue}
PEERS = {**KTHVALUE, "topk": _topk, "sort": _sort, "numpy.partition": _partition}
ON_GPU = {**KTHVALUE, "topk": _topk, "sort": _sort}


def cases(config: Config) -> Iterator[Case]:
    peers = ON_GPU if config.device == "cuda" else PEERS
    fp32, bf16 = torch.float32, torch.bfloat16
    n = config.n

    def case(
        name: str, scores: Callable[[], list[Tensor]], count: int, contenders=peers, dtype=fp32, keep=0.5, **more
    ) -> Case:
        size = element_size(dtype)
        # The peers' copy, the indices of a sort or topk, and their working space.
        needs = count * (2 * size + 2 + (0 if len(contenders) == 1 else 2 * size + 24))
        return Case("topk_mask", name, count, size + 1, lambda: Data(scores(), round(keep * count)), contenders,
                    needs=needs, **more)  # fmt: skip

    def random(count: int, dtype: torch.dtype = fp32) -> Callable[[], list[Tensor]]:
        return lambda: [config.randn(count).abs_().to(dtype)]

    chosen = config.peers(peers, "kthvalue + compare", "topk", "numpy.partition")
    yield case("random, keep 50 %, fp32", random(n), n, chosen, headline=True)
    fastest = config.peers(KTHVALUE if config.device == "cuda" else {**KTHVALUE, "numpy.partition": _partition},
                           "numpy.partition")  # fmt: skip
    yield case("random, keep 10 %, fp32", random(n), n, fastest, keep=0.1)
    yield case("random, keep 90 %, fp32", random(n), n, fastest, keep=0.9)
    yield case("random, keep 50 %, bf16", random(n, bf16), n, KTHVALUE, dtype=bf16, headline=True)
    at_random = case("random, keep 50 %, fp32", random(n), n, {"pruneops": _ours})
    yield from _many_tensors(config, case, at_random)
    for name, scores in HOSTILE.items():
        count = sum(map(torch.Size.numel, map(torch.Size, transformer(300, n)))) if "300" in name else n
        hostile = case(f"{name}, keep 50 %, fp32", lambda scores=scores: scores(config, n), count, {"pruneops": _ours})
        yield beside(hostile, at_random, "random scores")
    yield from _kth_value(config)
    if config.smoke:
        return
    for exponent in range(3, 8):
        yield case(f"n = 10^{exponent}, keep 50 %, fp32", random(10**exponent), 10**exponent)
    if config.gpu:
        yield case("n = 10^9, keep 50 %, fp32", random(10**9), 10**9, headline=True)
        yield case("n = 10^9, keep 50 %, bf16", random(10**9, bf16), 10**9, dtype=bf16)


def _many_tensors(config: Config, case: Callable[..., Case], in_one: Case) -> Iterator[Case]:
    def of(count: int, dtype: torch.dtype) -> tuple[int, Callable[[], list[Tensor]]]:
        shapes = transformer(300, count)
        total = sum(rows * columns for rows, columns in shapes)
        return total, lambda: [config.randn(*shape).abs_().to(dtype) for shape in shapes]

    total, scores = of(config.n, torch.float32)
    in_many = case("300 tensors, keep 50 %, fp32", scores, total, config.peers(KTHVALUE))
    yield beside(in_many, in_one, "one tensor")
    if config.gpu:
        total, scores = of(7 * 10**9, torch.bfloat16)
        yield case("7*10^9 in 300 tensors, keep 50 %, bf16", scores, total, {"pruneops": _ours}, dtype=torch.bfloat16)


def _kth_value(config: Config) -> Iterator[Case]:
    n, k = config.n, config.n // 2
    yield Case("kth_value", "random, median, fp32", n, 4, lambda: config.randn(n), {
        "pruneops": lambda scores: ops.kth_value(scores, k),
        "torch.kthvalue": lambda scores: torch.kthvalue(scores, k).values,
    }, needs=20 * n)  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
