"""``block_reduce`` beside reshape and mean, into block scores that are there, as a pruner calls it every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneops import ops

from .blocks import BLOCKS, as_blocks, grid, inc_mean
from .common import Case, Config
from .shapes import Shape, square


@dataclass(frozen=True)
class Data:
    score: Tensor
    block: Shape
    out: Tensor


def cases(config: Config) -> Iterator[Case]:
    shape = square(config.n)
    contenders = {
        "pruneops": lambda data: ops.block_reduce(data.score, data.block, out=data.out),
        "INC eager": lambda data: inc_mean(data.score, data.block),
        "reshape + mean": lambda data: torch.mean(as_blocks(data.score, data.block), (1, 3), out=data.out),
    }

    def data(block: Shape) -> Data:
        return Data(config.noise(*shape), block, torch.zeros(grid(shape, block), device=config.device))

    for name, block, is_main in BLOCKS:
        rows, columns = grid(shape, block)
        floor = 4 + 4 * rows * columns / config.n
        yield Case("block_reduce", f"{name}, mean, fp32", config.n, floor, lambda block=block: data(block),
                   contenders if is_main else config.peers(contenders, "reshape + mean"), headline=is_main)  # fmt: skip
    new = {
        "pruneops": lambda data: ops.block_reduce(data.score, data.block),
        "reshape + mean": lambda data: as_blocks(data.score, data.block).mean((1, 3)),
    }
    yield Case("block_reduce", "4x1, mean, fp32, new scores", config.n, 5, lambda: data((4, 1)), new)


def test_speed(timed, case, contender):
    timed(case, contender)
