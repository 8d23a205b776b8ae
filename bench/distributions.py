"""Scores that are easy or hard to select from: what a selection must not slow down on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .common import Config, parts
from .shapes import transformer

#: Scores of a run, so many in one buffer.
Scores = Callable[[Config, int], Tensor]


def random(config: Config, n: int) -> Tensor:
    return config.randn(n).abs_()


def _mostly_zero(config: Config, n: int) -> Tensor:
    scores = random(config, n)
    scores[torch.rand(n, device=config.device) < 0.9] = 0
    return scores


def _few_values(config: Config, n: int) -> Tensor:
    return torch.randint(0, 8, (n,), device=config.device).float()


def _nan(config: Config, n: int) -> Tensor:
    scores = config.randn(n)
    scores[torch.rand(n, device=config.device) < 0.6] = torch.nan
    return scores


def _outlier(config: Config, n: int) -> Tensor:
    scores = random(config, n)
    parts(scores, transformer(300, n))[7].mul_(1e4)
    return scores


def _ascending(config: Config, n: int) -> Tensor:
    return torch.linspace(0, 1, n, device=config.device)


#: Scores already pruned to zero, quantised, ordered by position, overflowed, or of layers on different scales.
HOSTILE: dict[str, Scores] = {
    "all equal": lambda config, n: torch.ones(n, device=config.device),
    "90 % zeros": _mostly_zero,
    "8 distinct values": _few_values,
    "sorted": _ascending,
    "reversed": lambda config, n: 1 - _ascending(config, n),
    "60 % NaN": _nan,
    "one outlier tensor of 300": _outlier,
}
