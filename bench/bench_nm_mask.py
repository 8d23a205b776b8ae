"""``nm_mask`` beside ``topk`` in each group, Wanda's loop over the groups of a row, and apex's pattern product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from pruneops import ops

from .common import Case, Config, element_size
from .shapes import square


@dataclass(frozen=True)
class Data:
    scores: Tensor
    n: int
    m: int
    mask: Tensor
    patterns: Tensor


def _ours(data: Data) -> None:
    ops.nm_mask(data.scores, data.n, data.m, out=data.mask)


def _topk(data: Data) -> Tensor:
    groups = data.scores.reshape(-1, data.m)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(data.n).indices, True)


def _columns(data: Data) -> Tensor:
    """Wanda: for each group of columns, the lowest of each row by topk."""
    pruned = torch.zeros_like(data.scores, dtype=torch.bool)
    for first in range(0, data.scores.shape[1], data.m):
        group = data.scores[:, first : first + data.m]
        lowest = torch.topk(group, data.m - data.n, dim=1, largest=False).indices
        pruned.scatter_(1, first + lowest, True)
    return pruned


def _patterns(data: Data) -> Tensor:
    """apex: of all patterns with n of m ones, the one that keeps the largest sum."""
    best = (data.scores.reshape(-1, data.m) @ data.patterns.T).argmax(1)
    return data.patterns[best]


def _pattern_table(n: int, m: int, config: Config, dtype: torch.dtype) -> Tensor:
    table = torch.zeros(0 if m > 8 else len(list(combinations(range(m), n))), m)
    for row, ones in zip(table, combinations(range(m), n), strict=False):
        row[list(ones)] = 1
    return table.to(config.device, dtype)


def cases(config: Config) -> Iterator[Case]:
    shape = square(config.n)
    all_peers: dict[str, Callable[[Data], object]] = {
        "pruneops": _ours,
        "topk per group": _topk,
        "topk per column group (Wanda)": _columns,
        "pattern matmul (apex)": _patterns,
    }
    three = {name: peer for name, peer in all_peers.items() if "column" not in name}
    two = {name: all_peers[name] for name in ("pruneops", "topk per group")}
    fp32, bf16 = torch.float32, torch.bfloat16
    for n, m, dtype, contenders in ((2, 4, fp32, all_peers), (2, 4, bf16, three),
                                    (4, 8, fp32, config.peers(three, "topk per group")),
                                    (1, 4, fp32, two), (16, 32, fp32, two)):  # fmt: skip

        def data(n=n, m=m, dtype=dtype) -> Data:
            scores = config.randn(*shape).abs_().to(dtype)
            mask = torch.empty(shape, dtype=torch.bool, device=config.device)
            return Data(scores, n, m, mask, _pattern_table(n, m, config, dtype))

        size = element_size(dtype)
        # The patterns of 4:8 take 70 products of 8 entries.
        needs = config.n * (size + 2 + (70 // 8 * size + 8 if m == 8 else 6 * size))
        yield Case("nm_mask", f"{n}:{m}, {'bf16' if dtype == bf16 else 'fp32'}", config.n, size + 1, data, contenders,
                   headline=(n, m) == (2, 4), needs=needs)  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
