"""Values, sizes and memory layouts that break careless kernels."""

import numpy as np
import torch
from oracle import round_to

DTYPES = ("float32", "bfloat16", "float16", "float64")

#: Around the widths of vectors, warps, thread blocks, tiles and chunks.
SIZES = (0, *(2**power + step for power in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16) for step in (-1, 0, 1)))


def keeps(n):
    """How many of ``n`` entries are kept: none, all, and some."""
    return sorted({0, 1, n // 10, n // 2, n - n // 10, max(n - 1, 0), n} & set(range(n + 1)))


def _with_some(rng, n, specials):
    """Normal values with each special value in about 5 % of the places."""
    values = rng.standard_normal(n)
    for special in specials:
        values[rng.random(n) < 0.05] = special
    return values


VALUES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "all_equal": lambda rng, n: np.full(n, 0.5),
    "all_zero": lambda rng, n: np.zeros(n),
    "all_nan": lambda rng, n: np.full(n, np.nan),
    "mostly_zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.1),
    "signed_zeros": lambda rng, n: rng.choice([0.0, -0.0, 1.0, -1.0], n, p=[0.4, 0.4, 0.1, 0.1]),
    "infinities": lambda rng, n: _with_some(rng, n, [np.inf, -np.inf]),
    "nans": lambda rng, n: _with_some(rng, n, [np.nan, -np.nan]),
    "everything": lambda rng, n: rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3e38], n),
    "denormals": lambda rng, n: rng.integers(-50, 50, n) * 2.0**-149,
    "half_denormals": lambda rng, n: rng.integers(-50, 50, n) * 2.0**-24,
    "ascending": lambda rng, n: np.arange(n) / 64,
    "descending": lambda rng, n: -np.arange(n) / 64,
    "few_distinct": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n),
    "one_outlier": lambda rng, n: np.where(np.arange(n) == n // 2, 1e30, 1e-3 * rng.standard_normal(n)),
    "wide_range": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n),
}

#: Values without NaN, Inf or overflow in sums and products.
TAME = ("normal", "all_equal", "all_zero", "mostly_zero", "signed_zeros", "ascending", "few_distinct", "denormals")


def values(name, shape, dtype="float32", seed=0):
    """An array of hostile values that ``dtype`` represents exactly."""
    rng = np.random.default_rng([seed, *map(ord, name)])
    with np.errstate(all="ignore"):
        return round_to(VALUES[name](rng, int(np.prod(shape))), dtype).reshape(shape)


def _in_larger(x, pad):
    """A view with the shape of ``x`` into ones that reach ``pad`` entries further on every side."""
    buffer = x.new_ones([size + 2 * pad for size in x.shape])
    return buffer[tuple(slice(pad, pad + size) for size in x.shape)]


def _strided(x):
    return x.new_ones([*x.shape[:-1], 2 * x.shape[-1]])[..., ::2]


LAYOUTS = {
    "contiguous": lambda x: x.new_ones(x.shape),
    "transposed": lambda x: x.new_ones(x.shape[::-1]).permute(*reversed(range(x.dim()))),
    "sliced": lambda x: _in_larger(x, 2),
    "strided": _strided,
    "misaligned": lambda x: x.new_ones(x.numel() + 2)[1:-1].view(x.shape),
    "channels_last": lambda x: x.new_ones(x.shape).to(memory_format=torch.channels_last),
}


def layouts(dims):
    """The layouts that a tensor of so many dimensions can have."""
    least = {"transposed": 1, "strided": 1, "channels_last": 4}
    return [name for name in LAYOUTS if least.get(name, 0) <= dims <= (4 if name == "channels_last" else dims)]


def laid_out(x, layout):
    """``x`` in another memory layout; where it is a view, the buffer around it holds ones."""
    return LAYOUTS[layout](x).copy_(x)
