"""Blocks of a matrix in plain PyTorch, as the peers write them."""

from __future__ import annotations

from torch import Tensor

from .shapes import Shape

#: Pattern, (N, M) with -1 for the whole extent, whether it is one of the main cases.
BLOCKS: list[tuple[str, Shape, bool]] = [
    ("4x1", (4, 1), True),
    ("1x4", (1, 4), True),
    ("16x16", (16, 16), True),
    ("channelx1", (-1, 1), True),
    ("1xchannel", (1, -1), False),
    ("1x8", (1, 8), False),
    ("32x32", (32, 32), False),
]


def _resolve(shape: Shape, block: Shape) -> Shape:
    return tuple(extent if size == -1 else size for extent, size in zip(shape, block, strict=True))


def grid(shape: Shape, block: Shape) -> Shape:
    """Number of blocks along rows and columns."""
    n, m = _resolve(shape, block)
    return (shape[0] // n, shape[1] // m)


def as_blocks(x: Tensor, block: Shape) -> Tensor:
    n, m = _resolve(tuple(x.shape), block)
    return x.reshape(x.shape[0] // n, n, x.shape[1] // m, m)


def inc_mean(x: Tensor, block: Shape) -> Tensor:
    """Neural Compressor's order: the mean along the rows of a block, then down its columns."""
    return as_blocks(x, block).mean(-1).mean(1)


def inc_expand(mask: Tensor, block: Shape) -> Tensor:
    """A block mask at the size of the weight, as Neural Compressor keeps it."""
    return mask.repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=-1)
