"""One tensor past 2^31 and past 2^32 entries, every one of which is checked.

Values repeat after a number of entries that is no power of two, so that an index that has lost its upper bits meets
other values; so does what NumPy expects.
"""

import numpy as np
import oracle
import pytest
import torch
from hostile import values

import pruneops
from pruneops import ops

pytestmark = pytest.mark.large

PERIOD = 8 * 100_003
PAST_31, PAST_32 = 2**31 + 8 * 4099, 2**32 + 8 * 4099


@pytest.fixture(autouse=True)
def _native(device):
    if pruneops.backend_info()[device] != "native":
        pytest.skip("the reference holds temporaries of 8 and more bytes an entry")


def parts(array, size):
    flat = array.reshape(-1)
    return (flat[begin : begin + size] for begin in range(0, len(flat), size))


def repeated(period, numel, device):
    """A tensor of so many entries, bfloat16 where the period is given as 16 bits."""
    everything = np.empty(numel, period.dtype)
    for part in parts(everything, period.size):
        part[:] = period.reshape(-1)[: len(part)]
    if period.dtype == np.uint16:
        return torch.from_numpy(everything.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(everything).to(device)


def assert_repeats(tensor, period):
    for number, part in enumerate(parts(tensor.cpu().numpy(), period.size)):
        assert np.array_equal(part, period.reshape(-1)[: len(part)]), f"in period {number}"


def packed_bits(mask):
    return np.packbits(mask.reshape(-1), bitorder="little")


def scores(shape, name="normal"):
    """Values that bfloat16 represents exactly, and their bits."""
    exact = values(name, shape, "bfloat16")
    return exact, (exact.view(np.uint32) >> 16).astype(np.uint16)


def random_mask(shape):
    return np.random.default_rng(0).random(shape) < 0.5


def test_blocks(device):
    block, rows, cols = (4, 88), 4 * 29, 30_008
    exact, stored = scores((rows, cols), "few_distinct")
    rows = -(-PAST_32 // (4 * cols)) * 4
    weight = repeated(stored, rows * cols, device).view(rows, cols)
    # The values are -1, 0 and 1, whose sums are exact.
    nonzero = torch.zeros(rows // block[0], cols // block[1], device=device)
    ops.update_block_scores_(nonzero, weight, None, block=block, metric="magnitude", reduce="sum")
    assert_repeats(nonzero, oracle.reduce_blocks(np.abs(exact), block, "sum")[0].astype(np.float32))
    sums = ops.block_reduce(weight, block, "sum")
    assert_repeats(sums, oracle.reduce_blocks(exact, block, "sum")[0].astype(np.float32))


# Masks of bytes take half as much memory as their scores, packed ones a sixteenth.
SIZES = pytest.mark.parametrize(("numel", "packed"), [(PAST_31, False), (PAST_32, True)], ids=["bytes", "packed"])


@SIZES
def test_rows(device, numel, packed):
    row = 30_008
    exact, stored = scores((29, row), "few_distinct")
    expected = oracle.row_topk_mask(exact, row // 3)
    score = repeated(stored, -(-numel // row) * row, device).view(-1, row)
    mask = ops.row_topk_mask(score, keep=row // 3, packed=packed)
    assert_repeats(mask, packed_bits(expected) if packed else expected)


def test_a_row(device):
    exact, stored = scores((PERIOD,), "few_distinct")
    score = repeated(stored, PAST_31, device)
    # The values are -1, 0 and 1; all ones are kept, and so many of the zeros.
    ones = sum(int((part == 1).sum()) for part in parts_of_values(exact, PAST_31))
    left = 2**29 + 5
    mask = ops.row_topk_mask(score, keep=ones + left).cpu().numpy()
    for part, own in zip(parts_of_values(exact, PAST_31), parts(mask, PERIOD), strict=True):
        zeros = part == 0
        assert np.array_equal(own, (part == 1) | (zeros & (np.cumsum(zeros) <= left)))
        left = max(0, left - int(zeros.sum()))


def parts_of_values(period, numel):
    return (period[: numel - begin] for begin in range(0, numel, period.size))


@SIZES
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_groups(device, n, m, numel, packed):
    exact, stored = scores((m * PERIOD,), "few_distinct")
    expected = oracle.nm_mask(exact, n, m)
    if packed and m == 5:
        numel = PAST_31  # bytes are written first
    mask = ops.nm_mask(repeated(stored, numel // (8 * m) * (8 * m), device), n, m, packed=packed)
    assert_repeats(mask, packed_bits(expected) if packed else expected)


@pytest.mark.parametrize("order", ["importance", "original"])
def test_slabs(device, order):
    instances, kept, stride, cols = 83, 67, 7, -(-PAST_32 // (83 * 7))
    source = repeated(np.arange(PERIOD).astype(np.uint8), instances * stride * cols, device)
    source = source.view(instances * stride, cols)
    importance = values("few_distinct", (instances,))
    result = ops.prune_by_importance(source, torch.from_numpy(importance).to(device), kept, stride, order=order)
    chosen = oracle.ranking(importance)[:kept]
    for place, instance in enumerate(chosen if order == "importance" else np.sort(chosen)):
        slab, own = (x[i * stride : (i + 1) * stride].cpu().numpy() for x, i in ((source, instance), (result, place)))
        assert np.array_equal(own, slab), f"slab {place}"


@pytest.mark.parametrize("kind", ["bool", "packed"])
def test_masks(device, kind):
    entries, mask = np.arange(PERIOD).astype(np.uint8), random_mask(PERIOD)
    given = packed_bits(mask) if kind == "packed" else mask
    data = repeated(entries, PAST_32, device)
    ops.apply_masks_(data, repeated(given, PAST_32 // (8 if kind == "packed" else 1), device))
    assert_repeats(data, np.where(mask, entries, 0).astype(np.uint8))


def test_block_masks(device):
    cols, period_rows = 30_008, 4 * 29
    rows = -(-PAST_32 // (4 * cols)) * 4
    mask = random_mask((period_rows // 4, cols // 8))
    wide = oracle.expand_blocks(mask, (4, 8), (period_rows, cols))
    blocks = repeated(mask, rows // 4 * (cols // 8), device).view(rows // 4, -1)
    assert_repeats(ops.expand_block_mask(blocks, (4, 8), (rows, cols)), wide)
    entries = np.arange(period_rows * cols).astype(np.uint8).reshape(wide.shape)
    data = repeated(entries, rows * cols, device).view(rows, cols)
    ops.apply_masks_(data, blocks, block=(4, 8))
    assert_repeats(data, np.where(wide, entries, 0).astype(np.uint8))


def test_pack_and_unpack(device):
    mask = random_mask(PERIOD)
    packed = ops.pack_mask(repeated(mask, PAST_32, device))
    assert_repeats(packed, packed_bits(mask))
    assert_repeats(ops.unpack_mask(packed, (PAST_32,)), mask)
