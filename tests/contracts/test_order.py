"""Order of scores: NaN < -inf < ... < -0.0 == +0.0 < ... < +inf, and among equals the earlier entry is kept first."""

from itertools import pairwise

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES
from tensors import array, assert_all_same, tensor

from pruneops import ops

LADDER = [np.nan, -np.inf, -3e4, -1.0, -6e-5, 0.0, 6e-5, 1.0, 3e4, np.inf]

#: Quiet and signalling, positive and negative NaN with several payloads.
NAN_BITS = {
    "float64": [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF],
    "float32": [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF],
    "bfloat16": [0x7FC0, 0xFFC0, 0x7F81, 0xFFFF, 0x7FFF],
    "float16": [0x7E00, 0xFE00, 0x7C01, 0xFFFF, 0x7FFF],
}


def from_bits(patterns, dtype):
    size = getattr(torch, dtype).itemsize
    unsigned = np.array(patterns, {2: np.uint16, 4: np.uint32, 8: np.uint64}[size])
    return torch.from_numpy(unsigned.view({2: np.int16, 4: np.int32, 8: np.int64}[size])).view(getattr(torch, dtype))


def kept_first(scores):
    """Positions in the order in which growing ``keep`` adds them, by each selection over one row."""
    n = scores.numel()
    selections = {
        "topk": lambda k: ops.topk_mask(scores, keep=k),
        "row": lambda k: ops.row_topk_mask(scores, keep=k),
        "nm": lambda k: ops.nm_mask(scores, k, n),
    }
    orders = {}
    for name, select in selections.items():
        masks = [array(select(k)) for k in range(n + 1)]
        added = [np.flatnonzero(after & ~before) for before, after in pairwise(masks)]
        assert all(len(a) == 1 for a in added), name
        orders[name] = np.concatenate(added).tolist()
    slabs = ops.prune_by_importance(torch.arange(n, device=scores.device), scores, n, 1)
    return {**orders, "slabs": array(slabs).tolist()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_ladder(device, dtype):
    shuffle = np.random.default_rng(0).permutation(len(LADDER))
    scores = tensor(oracle.round_to(np.array(LADDER)[shuffle], dtype), dtype, device)
    expected = np.argsort(shuffle)[::-1].tolist()
    assert all(order == expected for order in kept_first(scores).values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_equal(device, dtype):
    scores = tensor(np.array([-0.0, 0.0, -0.0, 0.0, -1.0, 1.0, -0.0], np.float32), dtype, device)
    assert all(order == [5, 0, 1, 2, 3, 6, 4] for order in kept_first(scores).values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_nan_is_equal_and_lowest(device, dtype):
    nans = from_bits(NAN_BITS[dtype], dtype)
    scores = torch.cat([nans, torch.tensor([-torch.inf], dtype=nans.dtype), nans, torch.zeros(1, dtype=nans.dtype)])
    expected = [11, 5, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert all(order == expected for order in kept_first(scores.to(device)).values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -np.inf, np.inf, np.nan])
def test_equal_scores_are_kept_from_the_front(device, dtype, value):
    scores = tensor(np.full(20, value, np.float32), dtype, device)
    assert all(order == list(range(20)) for order in kept_first(scores).values())


def test_earlier_tensor_then_lower_row_major_index(device):
    scores = [np.zeros((2, 3), np.float32), np.zeros(0, np.float32), np.zeros((), np.float32), np.zeros(4, np.float32)]
    tensors = [tensor(a, device=device, layout="transposed" if a.ndim == 2 else "contiguous") for a in scores]
    for keep in range(12):
        masks = [array(mask).ravel() for mask in ops.topk_mask(tensors, keep=keep)]
        assert np.concatenate(masks).tolist() == [True] * keep + [False] * (11 - keep)


@pytest.mark.parametrize("n", [31, 1023, 1024, 1025, 32767, 32769, 100_000])
def test_ties_cut_at_every_place(device, n):
    # All ties, so that the cut falls into the middle of a vector, a chunk, a tile, and on their boundaries.
    scores = torch.zeros(n, device=device)
    for keep in {1, 7, 8, 9, 1023, 1024, 1025, 32767, 32768, 32769, 65536, 65537, n // 2, n - 1} & set(range(n + 1)):
        assert array(ops.topk_mask(scores, keep=keep)).tolist() == [True] * keep + [False] * (n - keep)


def test_lower_bits_of_neighbours_decide(device):
    values = np.nextafter(np.float32(1), np.float32(2)) + np.arange(64, dtype=np.float32) * np.float32(2**-23)
    for scores in (values, -values, values * np.float32(2**-130)):
        for keep in (1, 13, 32, 63):
            assert_all_same([ops.topk_mask(tensor(scores, device=device), keep=keep)], oracle.topk_mask([scores], keep))
