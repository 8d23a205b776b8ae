"""``row_topk_mask`` beside the stable sort of Wanda and ``torch.topk`` per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneops import ops

from .common import Case, Config, element_size


@dataclass(frozen=True)
class Data:
    scores: Tensor
    input_norm: Tensor
    mask: Tensor

    @property
    def keep(self) -> int:
        return self.scores.shape[-1] // 2


def _ours(data: Data) -> None:
    ops.row_topk_mask(data.scores, keep=data.keep, out=data.mask)


def _ours_wanda(data: Data) -> None:
    ops.row_topk_mask(data.scores, keep=data.keep, metric="wanda", input_norm=data.input_norm, out=data.mask)


def _sorted(scores: Tensor, keep: int) -> Tensor:
    """Wanda: a stable sort of each row; the first indices are pruned."""
    indices = torch.sort(scores, dim=-1, stable=True).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, indices[:, : scores.shape[1] - keep], False)


def _topk(scores: Tensor, keep: int) -> Tensor:
    """A topk in each row, sorted as it is by default, into a mask."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, torch.topk(scores, keep, dim=-1).indices, True)


def cases(config: Config) -> Iterator[Case]:
    def data(rows: int, columns: int, dtype: torch.dtype) -> Data:
        scores = config.randn(rows, columns).abs_().to(dtype)
        norm = torch.rand(columns, device=config.device)
        return Data(scores, norm, torch.empty(rows, columns, dtype=torch.bool, device=config.device))

    peers = {
        "pruneops": _ours,
        "torch.topk": lambda data: _topk(data.scores, data.keep),
        "sort (Wanda)": lambda data: _sorted(data.scores, data.keep),
    }
    wanda = {
        "pruneops": _ours_wanda,
        "torch.topk": lambda data: _topk(data.scores.abs() * data.input_norm, data.keep),
        "sort (Wanda)": lambda data: _sorted(data.scores.abs() * data.input_norm, data.keep),
    }
    fp32, bf16 = torch.float32, torch.bfloat16
    rows = 16 if config.smoke else 4096
    for columns, dtype, contenders in (
        (4096, fp32, peers),
        (11008, fp32, peers),
        (4096, bf16, config.peers(peers, "torch.topk")),
        (4096, fp32, config.peers(wanda, "torch.topk")),
    ):
        score = "score" if contenders["pruneops"] is _ours else "wanda"
        name = f"{score} {rows} x {columns}, keep 50 %, {'bf16' if dtype == bf16 else 'fp32'}"
        yield Case("row_topk_mask", name, rows * columns, element_size(dtype) + 1,
                   lambda columns=columns, dtype=dtype: data(rows, columns, dtype), contenders,
                   headline=score == "score")  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
