"""What structure the zeros of a weight have, and how its magnitudes are distributed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_GROUP_SIZES = (2, 4, 8, 16)
_CHUNK = 1 << 24

#: Histograms of magnitude have equal bins of log10 over these decades; what lies outside counts at the ends.
DECADES = (-8, 2)
BINS_PER_DECADE = 10


@dataclass(frozen=True)
class Structure:
    """The zeros of one weight.

    Attributes:
        zeros: entries that are 0.
        numel: all entries.
        nm: the N:M patterns that hold, such as ``["2:4"]``; those that follow from another are left out,
            and so are those with N > M/2 that scattered zeros meet by chance.
        block: the largest block, such as ``"4x1"``, of which every zero fills a whole one; None where there is none.
    """

    zeros: int
    numel: int
    nm: list[str]
    block: str | None

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 for an empty weight."""
        return self.zeros / self.numel if self.numel else 0.0


def count_zeros(weight: Tensor) -> Structure:
    """The zeros alone, of a weight whose dimensions are not known, such as a stack of experts.

    Args:
        weight: any shape.

    Returns:
        The :class:`Structure`, without patterns.

    Example:
        >>> count_zeros(torch.zeros(2, 4, 4))
        Structure(zeros=32, numel=32, nm=[], block=None)
    """
    return Structure(weight.numel() - int(weight.count_nonzero()), weight.numel(), [], None)


def find_structure(weight: Tensor) -> Structure:
    """Find which patterns the zeros of a weight hold.

    Args:
        weight: out x in, or conv (O, I, k...), seen as the matrix (O, k... * I) with N:M groups along I. Of a
            stack of matrices this is false; see :func:`count_zeros`.

    Returns:
        The :class:`Structure`.

    Raises:
        ValueError: the weight has fewer than 2 dimensions.

    Example:
        >>> find_structure(torch.tensor([[1.0, 0.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]]))
        Structure(zeros=4, numel=8, nm=['1:2'], block='channelx1')
    """
    if weight.dim() < 2:
        raise ValueError(f"weight must have at least 2 dimensions, got shape {list(weight.shape)}")
    kept = weight != 0
    zeros = kept.numel() - int(kept.sum())
    if not zeros:
        return Structure(0, kept.numel(), [], None)
    channels_last = kept.movedim(1, -1) if kept.dim() > 2 else kept
    return Structure(zeros, kept.numel(), _nm_patterns(channels_last), _block(channels_last.flatten(1)))


def _nm_patterns(kept: Tensor) -> list[str]:
    """The N:M that hold along the last dimension: each group of M has at most N entries that are not 0."""
    sparsity = 1 - float(kept.sum()) / kept.numel()
    counts = kept.view(torch.uint8)
    found: list[tuple[int, int]] = []
    for m in _GROUP_SIZES:
        if counts.shape[-1] % 2:
            break
        counts = counts[..., ::2] + counts[..., 1::2]
        n = int(counts.max())
        # Scattered zeros meet some wide N:M by chance, but then it accounts for few of them.
        by_chance = 2 * n > m and 1 - n / m < 0.9 * sparsity
        if n < m and not by_chance:
            found.append((n, m))
    return [f"{n}:{m}" for n, m in found if not any(_implies(other, (n, m)) for other in found)]


def _implies(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the first N:M says all that the second says, and more: 1:2 implies 2:4, and so does 2:8."""
    (n, m), (other_n, other_m) = first, second
    return (m < other_m and n * other_m <= other_n * m) or (m > other_m and n <= other_n)


def _block(kept: Tensor) -> str | None:
    """The largest NxM such that the zeros of the matrix are a union of aligned N x M blocks.

    If N x 1 and 1 x M hold, so does N x M; and if N and N' hold, so does their least common multiple. So the
    largest block is found by dividing the two extents by one prime factor at a time.
    """
    rows, columns = kept.shape
    n, m = _run(kept.t()), _run(kept)
    if n == m == 1:
        return None
    whole = {(rows, 1): "channelx1", (1, columns): "1xchannel"}
    return whole.get((n, m), f"{n}x{m}")


def _run(kept: Tensor) -> int:
    """The largest divisor M of the last extent such that zeros come in whole aligned runs of M."""
    size = 1
    for prime in _prime_factors(kept.shape[-1]):
        members = kept.unflatten(-1, (-1, prime)).unbind(-1)
        if all(torch.equal(member, members[0]) for member in members[1:]):
            kept, size = members[0], size * prime
    return size


def _prime_factors(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        if number % factor == 0:
            number //= factor
            yield factor
        else:
            factor += 1


def magnitude_histogram(weight: Tensor) -> Tensor:
    """Counts of log10(abs(w)) over the entries that are finite and not 0.

    Args:
        weight: floating, any shape.

    Returns:
        int64, one count for each of ``BINS_PER_DECADE`` equal bins in each decade of ``DECADES``.

    Example:
        >>> magnitude_histogram(torch.tensor([0.0, 0.15, 0.15])).nonzero().flatten()
        tensor([71])
    """
    low, high = DECADES
    bins = (high - low) * BINS_PER_DECADE
    counts = torch.zeros(bins, dtype=torch.int64)
    for part in weight.reshape(-1).split(_CHUNK):
        magnitude = part.float().abs()
        exponents = magnitude[(magnitude > 0) & magnitude.isfinite()].log10()
        places = ((exponents - low) * BINS_PER_DECADE).long().clamp_(0, bins - 1)
        counts += torch.bincount(places, minlength=bins)
    return counts
