"""``pack_mask``, ``unpack_mask`` and ``expand_block_mask`` beside NumPy and ``repeat_interleave``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from pruneops import ops

from .blocks import grid, inc_expand
from .common import Case, Config
from .shapes import square

Contender = Callable[[Any], object]


def cases(config: Config) -> Iterator[Case]:
    n, shape = config.n, square(config.n)

    def mask() -> Tensor:
        return config.noise(*shape) > 0

    def beside_numpy(ours: Contender, name: str, peer: Contender) -> dict[str, Contender]:
        """NumPy is a peer on the CPU only."""
        return {"pruneops": ours} | ({name: peer} if config.device == "cpu" else {})

    pack = beside_numpy(ops.pack_mask, "numpy.packbits", lambda x: np.packbits(x.numpy(), bitorder="little"))
    yield Case("pack_mask", "bool to bits", n, 1 + 1 / 8, mask, pack)
    unpack = beside_numpy(lambda x: ops.unpack_mask(x, shape),
                          "numpy.unpackbits", lambda x: np.unpackbits(x.numpy(), bitorder="little"))  # fmt: skip
    yield Case("unpack_mask", "bits to bool", n, 1 + 1 / 8, lambda: ops.pack_mask(mask()), unpack)
    for name, block in (("4x1", (4, 1)), ("16x16", (16, 16))):
        floor = 1 + 1 / (block[0] * block[1])
        yield Case("expand_block_mask", name, n, floor,
                   lambda block=block: (config.noise(*grid(shape, block)) > 0, block), {
            "pruneops": lambda data: ops.expand_block_mask(*data, shape),
            "repeat_interleave": lambda data: inc_expand(*data),
        })  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
