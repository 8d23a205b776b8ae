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
PAST_31, PAST_32 = 2**21 + 8 * 4099, 2**22 + 8 * 4099


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


def assert_repeats_bits(packed, mask):
    assert_repeats(packed, np.packbits(mask.reshape(-1), bitorder="little"))


def scores(shape, name="normal"):
    """Values that bfloat16 represents exactly, and their bits."""
    exact = values(name, shape, "bfloat16")
    return exact, (exact.view(np.uint32) >> 16).astype(np.uint16)


def random_mask(shape):
    return np.random.default_rng(0).random(shape) < 0.5


def test_blocks(device):
    rows, cols = 4 * 29, 30_008
    exact, stored = scores((rows, cols), "few_distinct")
    rows = -(-PAST_32 // (4 * cols)) * 4
    weight = repeated(stored, rows * cols, device).view(rows, cols)
    largest = torch.zeros(rows // 4, cols // 8, device=device)
    ops.update_block_scores_(largest, weight, None, block=(4, 8), metric="magnitude", reduce="max")
    assert_repeats(largest, oracle.reduce_blocks(np.abs(exact), (4, 8), "max")[0].astype(np.float32))
    # The values are -1, 0 and 1, whose sums are exact.
    means = ops.block_reduce(weight, (4, 8))
    assert_repeats(means, oracle.reduce_blocks(exact, (4, 8), "mean")[0].astype(np.float32))


def test_rows(device):
    row = 30_008
    exact, stored = scores((29, row), "few_distinct")
    expected = oracle.row_topk_mask(exact, row // 3)
    score = repeated(stored, -(-PAST_32 // row) * row, device).view(-1, row)
    assert_repeats_bits(ops.row_topk_mask(score, keep=row // 3, packed=True), expected)
    assert_repeats(ops.row_topk_mask(score[: -(-PAST_31 // row)], keep=row // 3), expected)


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


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_groups(device, n, m):
    exact, stored = scores((m * PERIOD // 8 * 8,), "few_distinct")
    expected = oracle.nm_mask(exact, n, m)
    numel = PAST_32 if m == 4 else PAST_31 // m * m
    score = repeated(stored, numel, device)
    if m == 4:
        assert_repeats_bits(ops.nm_mask(score, n, m, packed=True), expected)
        score = score[:PAST_31]
    assert_repeats(ops.nm_mask(score, n, m), expected)


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
    given = np.packbits(mask, bitorder="little") if kind == "packed" else mask
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
    assert_repeats_bits(packed, mask)
    assert_repeats(ops.unpack_mask(packed, (PAST_32,)), mask)
