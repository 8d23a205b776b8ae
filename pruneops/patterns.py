"""Sparsity patterns: which entries of a weight are kept or pruned together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ._library import block_grid, matrix_and_block

_FORMS = "'1x1', 'NxM' such as '4x1', 'channelx1', '1xchannel', or 'N:M' such as '2:4' (N kept of M)"
_WHOLE = {"channelx1": (-1, 1), "1xchannel": (1, -1)}


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern; make one with :func:`parse_pattern`.

    Weights are out x in. Conv weights (O, I, k...) are seen as the matrix (O, k... * I) with the input channels
    innermost, so that N:M groups lie along the input channels.

    Attributes:
        spec: the text it was parsed from.
        block: (N, M), rows and columns that share one decision; -1 is the whole extent; None without blocks.
        nm: (n, m), n entries kept of each m consecutive ones of a row; None for the other patterns.

    Example:
        >>> parse_pattern("4x1").block, parse_pattern("2:4").nm
        ((4, 1), (2, 4))
    """

    spec: str
    block: tuple[int, int] | None = None
    nm: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.spec

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern itself fixes: 1 - n/m for N:M, else None."""
        return 1 - self.nm[0] / self.nm[1] if self.nm else None

    def divides(self, shape: Sequence[int]) -> bool:
        """Whether a weight of ``shape`` splits into whole blocks or groups.

        Example:
            >>> parse_pattern("4x1").divides((6, 8)), parse_pattern("2:4").divides((6, 8))
            (False, True)
        """
        if self.nm:
            return len(shape) >= 2 and shape[1] % self.nm[1] == 0
        if self.block is None:
            return True
        if len(shape) < 2:
            return False
        rows, cols, n, m = matrix_and_block(shape, self.block)
        return rows % n == 0 and cols % m == 0

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the mask of a weight of ``shape``: one entry per block, else the weight's own shape."""
        return block_grid(self.block, shape) if self.block else tuple(shape)


def parse_pattern(spec: str | Pattern) -> Pattern:
    """Parse a sparsity pattern.

    ``1x1`` prunes single entries; ``NxM`` blocks of N output by M input channels; ``channelx1`` whole input
    channels (columns), ``1xchannel`` whole output channels (rows); ``N:M`` keeps N of each M consecutive entries
    of a row (Zhou et al., 2021; 2:4 is the form that sparse tensor cores run).

    Args:
        spec: one of these forms, or an already parsed pattern, which is returned as it is.

    Returns:
        The pattern.

    Raises:
        ValueError: ``spec`` has none of these forms.
        TypeError: ``spec`` is not a string.

    Example:
        >>> parse_pattern("4x1").block
        (4, 1)
    """
    if isinstance(spec, Pattern):
        return spec
    if not isinstance(spec, str):
        raise TypeError(f"pattern must be a string, got {type(spec).__name__}")
    if spec in _WHOLE:
        return Pattern(spec, block=_WHOLE[spec])
    found = re.fullmatch(r"([1-9][0-9]*)([x:])([1-9][0-9]*)", spec, re.ASCII)
    if found is None:
        raise ValueError(f"pattern must be {_FORMS}; got {spec!r}")
    first, second = int(found[1]), int(found[3])
    if found[2] == "x":
        return Pattern(spec, block=None if first == second == 1 else (first, second))
    if first > second:
        raise ValueError(f"pattern {spec!r} keeps {first} of {second} entries; N must be at most M in 'N:M'")
    return Pattern(spec, nm=(first, second))
