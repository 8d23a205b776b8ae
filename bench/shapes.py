"""Shapes of the prunable matrices of transformers: what a pruning step gets in one call."""

from __future__ import annotations

from math import isqrt, prod, sqrt

Shape = tuple[int, ...]

BERT_BASE: list[Shape] = 12 * [*4 * [(768, 768)], (3072, 768), (768, 3072)]
GPT_125M: list[Shape] = 12 * [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
LLAMA_7B: list[Shape] = 32 * [*4 * [(4096, 4096)], *2 * [(11008, 4096)], (4096, 11008)]


def square(n: int) -> Shape:
    """The largest matrix of at most ``n`` entries whose sides are powers of two, taller than wide if not square."""
    bits = n.bit_length() - 1
    return (2 ** (bits - bits // 2), 2 ** (bits // 2))


def transformer(tensors: int, n: int) -> list[Shape]:
    """About ``n`` entries in that many matrices: layers of four square ones and the two of an MLP."""
    layers = tensors // 6
    width = max(16, 16 * round(sqrt(n / (12 * layers)) / 16))
    return layers * [*4 * [(width, width)], (4 * width, width), (width, 4 * width)]


def whole(n: int) -> Shape:
    """The matrix of all ``n`` entries, a multiple of 4, that is closest to a square and has whole blocks of 4x1."""
    return next((n // columns, columns) for columns in range(isqrt(n), 0, -1) if n % (4 * columns) == 0)


def total(shapes: list[Shape]) -> int:
    return sum(map(prod, shapes))


def largest(shapes: list[Shape]) -> int:
    return max(rows * columns for rows, columns in shapes)
