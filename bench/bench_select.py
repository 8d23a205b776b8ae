"""``topk_mask`` and ``kth_value`` beside ``kthvalue``, ``topk``, ``sort`` and ``numpy.partition``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pruneops import ops

from .common import OURS, Case, Config, as_one, beside, element_size, parts
from .distributions import HOSTILE, Scores, random
from .shapes import Shape, total, transformer


@dataclass(frozen=True)
class Data:
    scores: list[Tensor]
    masks: list[Tensor]
    keep: int

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


def _as_one(data: Data) -> Data:
    shape = (sum(score.numel() for score in data.scores),)
    return replace(data, scores=as_one(data.scores, shape), masks=as_one(data.masks, shape))


OURS_ALONE: dict[str, Callable[[Data], object]] = {OURS: _ours}
KTHVALUE: dict[str, Callable[[Data], object]] = {**OURS_ALONE, "kthvalue + compare": _kthvalue}
PEERS = {**KTHVALUE, "topk": _topk, "sort": _sort, "numpy.partition": _partition}
ON_GPU = {**KTHVALUE, "topk": _topk, "sort": _sort}


def cases(config: Config) -> Iterator[Case]:
    peers = ON_GPU if config.device == "cuda" else PEERS
    fp32, bf16 = torch.float32, torch.bfloat16
    n = config.n

    def case(
        name: str, shapes: list[Shape], contenders=peers, dtype=fp32, keep=0.5, scores: Scores = random, **more
    ) -> Case:
        def data() -> Data:
            masks = torch.empty(count, dtype=torch.bool, device=config.device)
            return Data(parts(scores(config, count).to(dtype), shapes), parts(masks, shapes), round(keep * count))

        count, size = total(shapes), element_size(dtype)
        # The peers' copy, the indices of a sort or topk, and their working space.
        needs = count * (2 * size + 2 + (0 if len(contenders) == 1 else 2 * size + 24))
        return Case("topk_mask", name, count, size + 1, data, contenders, needs=needs, **more)

    one, many = [(n,)], transformer(300, n)
    chosen = config.peers(peers, "kthvalue + compare", "topk", "numpy.partition")
    yield case("random, keep 50 %, fp32", one, chosen, headline=True)
    fastest = config.peers(KTHVALUE if config.device == "cuda" else {**KTHVALUE, "numpy.partition": _partition},
                           "numpy.partition")  # fmt: skip
    yield case("random, keep 10 %, fp32", one, fastest, keep=0.1)
    yield case("random, keep 90 %, fp32", one, fastest, keep=0.9)
    yield case("random, keep 50 %, bf16", one, KTHVALUE, dtype=bf16, headline=True)
    yield beside(case("300 tensors, keep 50 %, fp32", many, config.peers(KTHVALUE)), "as one tensor", _as_one)
    at_random = case("random, keep 50 %, fp32", one, OURS_ALONE)
    for name, scores in HOSTILE.items():
        shapes = many if "300" in name else one
        misleading = case(f"{name}, keep 50 %, fp32", shapes, OURS_ALONE, scores=scores)
        yield beside(misleading, "random scores", lambda _: at_random.data(), needs=at_random.needs)
    yield from _kth_value(config)
    if config.smoke:
        return
    for exponent in range(3, 8):
        yield case(f"n = 10^{exponent}, keep 50 %, fp32", [(10**exponent,)])
    if config.gpu:
        yield case("n = 10^9, keep 50 %, fp32", [(10**9,)], headline=True)
        yield case("n = 10^9, keep 50 %, bf16", [(10**9,)], dtype=bf16)
        shapes = transformer(300, 7 * 10**9)
        yield case("7*10^9 in 300 tensors, keep 50 %, bf16", shapes, OURS_ALONE, dtype=bf16)


def _kth_value(config: Config) -> Iterator[Case]:
    n, k = config.n, config.n // 2
    yield Case("kth_value", "random, median, fp32", n, 4, lambda: config.randn(n), {
        "pruneops": lambda scores: ops.kth_value(scores, k),
        "torch.kthvalue": lambda scores: torch.kthvalue(scores, k).values,
    }, needs=20 * n)  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
