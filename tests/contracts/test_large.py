"""One tensor past 2^31 and past 2^32 entries, every one of which is checked; and a few entries where it has odd sizes.

Values repeat after a number of entries that is no power of two, so that an index that has lost its upper bits meets
other values; so does what NumPy expects.
"""

import numpy as np
import oracle
import pytest
import torch
from hostile import values
from tensors import array, assert_same, bits

import pruneops
from pruneops import ops

pytestmark = pytest.mark.large

PERIOD = 8 * 100_003
PAST_31, PAST_32 = 2**31 + 8 * 4099, 2**32 + 8 * 4099
ODD = 2**31 + 4097


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
    assert_repeats(mask, oracle.packed(expected) if packed else expected)


def test_a_row(device):
    exact, stored = scores((PERIOD,), "few_distinct")
    score = repeated(stored, PAST_31, device)
    # The values are -1, 0 and 1.
    mask = ops.row_topk_mask(score, keep=ones(exact, PAST_31) + ZEROS)
    for own, expected in zip(parts(mask.cpu().numpy(), PERIOD), ones_and_first_zeros(exact, PAST_31), strict=True):
        assert np.array_equal(own, expected)


#: So many of them are kept, beside all ones.
ZEROS = 2**29 + 5


def parts_of_values(period, numel):
    return (period[: numel - begin] for begin in range(0, numel, period.size))


def ones(period, numel):
    return sum(int((part == 1).sum()) for part in parts_of_values(period, numel))


def ones_and_first_zeros(period, numel):
    """Masks of each period."""
    left = ZEROS
    for part in parts_of_values(period, numel):
        zeros = part == 0
        yield (part == 1) | (zeros & (np.cumsum(zeros) <= left))
        left = max(0, left - int(zeros.sum()))


def test_an_update_that_selects(device):
    exact, stored = scores((PERIOD,), "few_distinct")
    updated = np.abs(exact)
    weight = repeated(stored, PAST_31, device)
    score = torch.empty_like(weight)
    out = ops.empty_masks(score, packed=True)
    keep = ones(updated, PAST_31) + ZEROS
    ops.update_topk_mask_(score, weight, None, metric="magnitude", keep=keep, packed=True, out=out)
    assert_repeats(score.view(torch.int16), (updated.view(np.uint32) >> 16).astype(np.int16))
    masks = ones_and_first_zeros(updated, PAST_31)
    for own, expected in zip(parts(out.cpu().numpy(), PERIOD // 8), masks, strict=True):
        assert np.array_equal(own, oracle.packed(expected))


def test_counts_of_digits(device):
    exact, stored = scores((PERIOD,), "mostly_zero")
    keys, (whole, rest) = oracle.key_bits(exact), divmod(PAST_32, PERIOD)
    expected = whole * oracle.count_digits(keys, 0, 0) + oracle.count_digits(keys[:rest], 0, 0)
    assert expected.max() > 2**31
    prefix = torch.zeros((), dtype=torch.int64, device=device)
    assert_same(ops.count_digits(repeated(stored, PAST_32, device), prefix, 0), expected[None])


@SIZES
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_groups(device, n, m, numel, packed):
    exact, stored = scores((m * PERIOD,), "few_distinct")
    expected = oracle.nm_mask(exact, n, m)
    if packed and m == 5:
        numel = PAST_31  # bytes are written first
    mask = ops.nm_mask(repeated(stored, numel // (8 * m) * (8 * m), device), n, m, packed=packed)
    assert_repeats(mask, oracle.packed(expected) if packed else expected)


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
    given = oracle.packed(mask) if kind == "packed" else mask
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
    assert_repeats(packed, oracle.packed(mask))
    assert_repeats(ops.unpack_mask(packed, (PAST_32,)), mask)


def test_masks_of_a_tensor_past_32_bits(device):
    mask = torch.zeros(ODD, dtype=torch.bool, device=device)
    kept = torch.tensor([0, 5, 2**31 - 1, 2**31, 2**31 + 9, ODD - 1], device=device)
    mask[kept] = True
    packed = ops.pack_mask(mask)
    assert packed.shape == ((ODD + 7) // 8,)
    assert int(packed.count_nonzero()) == 5
    assert bits(ops.unpack_mask(packed, (ODD,))[kept]) == b"\x01" * 6
    x = torch.ones(ODD, dtype=torch.uint8, device=device)
    ops.apply_masks_(x, packed)
    assert int(x.count_nonzero()) == 6
    assert bits(x[kept]) == b"\x01" * 6
    x.fill_(1)
    ops.apply_masks_(x, mask)
    assert int(x.count_nonzero()) == 6
    assert bits(x[kept]) == b"\x01" * 6


def test_selection_in_a_tensor_past_32_bits(device):
    score = torch.zeros(ODD, dtype=torch.bfloat16, device=device)
    high = torch.tensor([7, 2**31 - 1, 2**31, ODD - 1], device=device)
    score[high] = 1.0
    mask = ops.topk_mask(score, keep=4)
    assert int(mask.count_nonzero()) == 4
    assert mask[high].all()
    ops.topk_mask(score, keep=2**31 + 100, out=mask)  # three of the four high ones come before the last zero kept
    assert int(mask.count_nonzero()) == 2**31 + 100
    assert array(mask[[2**31 + 98, 2**31 + 99, -2, -1]]).tolist() == [True, False, False, True]
    assert float(ops.kth_value(score, ODD - 4)) == 0
    assert float(ops.kth_value(score, ODD - 3)) == 1


def test_scores_of_a_tensor_past_32_bits(device):
    score = torch.zeros(ODD, dtype=torch.bfloat16, device=device)
    weight = torch.full((1,), 2.0, dtype=torch.bfloat16, device=device).repeat(ODD)
    weight[2**31 + 5] = -3.0
    ops.update_scores_(score, weight, None, metric="magnitude")
    assert float(score[2**31 + 5]) == 3.0
    assert int((score == 2.0).count_nonzero()) == ODD - 1  # sum() would widen every entry to 64 bits


def test_tensors_past_33_bits_together(device):
    shared = torch.zeros(2**31 + 8, dtype=torch.bfloat16, device=device)
    shared[-1] = 1.0
    out = [torch.empty(shared.shape, dtype=torch.bool, device=device) for _ in range(2)]
    ops.topk_mask([shared, shared], keep=2**32 - 5, out=out)
    assert [int(mask.count_nonzero()) for mask in out] == [2**31 + 8, 2**31 - 13]
    assert bool(out[1][-1])
