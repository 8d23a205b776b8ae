"""``block_reduce`` beside reshape and mean."""

from __future__ import annotations

from collections.abc import Iterator

from pruneops import ops

from .blocks import BLOCKS, as_blocks, grid, inc_mean
from .common import Case, Config
from .shapes import square


def cases(config: Config) -> Iterator[Case]:
    shape = square(config.n)
    contenders = {
        "pruneops": lambda data: ops.block_reduce(*data),
        "INC eager": lambda data: inc_mean(*data),
        "reshape + mean": lambda data: as_blocks(*data).mean((1, 3)),
    }
    for name, block, main in BLOCKS:
        rows, columns = grid(shape, block)
        floor = 4 + 4 * rows * columns / config.n
        yield Case("block_reduce", f"{name}, mean, fp32", config.n, floor,
                   lambda block=block: (config.noise(*shape), block),
                   contenders if main else config.peers(contenders, "reshape + mean"), headline=main)  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
