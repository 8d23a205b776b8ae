"""Index arithmetic past 2^31 and 2^32 entries: sparse ranges of memory, of which only the last blocks run."""

import numpy as np
import oracle
import pytest
from driver import Backend
from hostile import values
from tensors import assert_same

PAST_32 = 2**32 + 5 * 8192 + 37
TAIL = 3000  # entries at the end that hold values


@pytest.fixture
def last_blocks(emulation):
    """Sets how many blocks of every grid run: the last ones."""
    return emulation.set_last_blocks


class Sparse:
    """An array of which only the tail is there to read; all else is 0 and takes no memory."""

    def __init__(self, emulation, numel, itemsize):
        self.numel, self.itemsize = numel, itemsize
        self.memory = emulation.Memory(numel * itemsize, emulation.Kind.sparse)
        self.address = self.memory.address

    def write(self, tail):
        self.memory.write(np.ascontiguousarray(tail).view(np.uint8), (self.numel - len(tail)) * self.itemsize)
        return self

    def read(self, dtype, count=TAIL):
        return self.memory.read(count * self.itemsize, (self.numel - count) * self.itemsize).view(dtype)


def select_tensor(emulation, score, mask, cols):
    return emulation.SelectTensor(
        score.address, 0, 0, mask.address, score.numel, cols, *[emulation.Dtype.float32] * 2, False
    )


def half(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def test_update_scores(emulation, last_blocks):
    weight, grad = (values("normal", (TAIL,), "bfloat16", seed) for seed in range(2))
    score, w, g = (Sparse(emulation, PAST_32, 2) for _ in range(3))
    w.write(half(weight))
    g.write(half(grad))
    kinds = emulation.Dtype, emulation.Metric
    rule = emulation.UpdateRule(kinds[1].snip, emulation.Reduce.sum, 0.0, 1.0, 0, 0, False)
    tensor = emulation.UpdateTensor(score.address, w.address, g.address, PAST_32, *[kinds[0].bfloat16] * 3)
    last_blocks(2)
    emulation.cuda.update_scores([tensor], rule)
    expected = oracle.update_scores(None, weight, grad, metric="snip", dtype="bfloat16")
    assert_same(score.read(np.uint16), half(expected))


def test_update_block_scores(emulation, last_blocks):
    rows, cols = 2**17 + 4, 2**15  # past 2^32 entries
    tail = values("normal", (4, cols), "bfloat16")
    weight = Sparse(emulation, rows * cols, 2).write(half(tail).ravel())
    score = Sparse(emulation, rows // 4 * cols, 4)
    rule = emulation.UpdateRule(emulation.Metric.magnitude, emulation.Reduce.max, 0.0, 1.0, 0, 0, False)
    strides = emulation.Strides(cols, 1, 0)
    dtypes = emulation.Dtype.float32, emulation.Dtype.bfloat16, emulation.Dtype.float32
    tensor = emulation.BlockTensor(
        score.address, weight.address, 0, emulation.Matrix(rows, cols, cols), strides, strides,
        emulation.Block(4, 1), *dtypes,
    )  # fmt: skip
    # 8 warps, of which 4 share a row of blocks: two rows of blocks and 256 columns a tile.
    last_blocks(cols // 256)
    emulation.cuda.update_block_scores([tensor], rule)
    assert_same(score.read(np.float32, cols), np.abs(tail).max(0))


def test_update_block_scores_of_parts(emulation, last_blocks):
    rows, cols = 130, 2**25 + 8  # past 2^32 entries: a part of 128 rows and one of 2
    tail = values("normal", (8,), "bfloat16")
    weight = Sparse(emulation, rows * cols, 2).write(half(tail))
    score = Sparse(emulation, cols, 4)
    rule = emulation.UpdateRule(emulation.Metric.magnitude, emulation.Reduce.max, 0.0, 1.0, 0, 0, False)
    strides = emulation.Strides(cols, 1, 0)
    dtypes = emulation.Dtype.float32, emulation.Dtype.bfloat16, emulation.Dtype.float32
    tensor = emulation.BlockTensor(
        score.address, weight.address, 0, emulation.Matrix(rows, cols, cols), strides, strides,
        emulation.Block(rows, 1), *dtypes,
    )  # fmt: skip
    last_blocks(1)
    emulation.cuda.update_block_scores([tensor], rule)
    assert_same(score.read(np.float32, 8), np.abs(tail))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_topk_mask(emulation, last_blocks, packed, strict):
    numel = PAST_32 // 8 * 8
    in_tile = numel % 8192
    tail = np.random.default_rng(0).permutation(in_tile).astype(np.float32) - in_tile
    score, mask = Sparse(emulation, numel, 4).write(tail), Sparse(emulation, numel // 8 if packed else numel, 1)
    dtypes = [emulation.Dtype.float32] * 2
    tensor = emulation.SelectTensor(score.address, 0, 0, mask.address, numel, numel, *dtypes, packed)
    # All is 0 but for the tail, which lies below: the k lowest are in it, whatever the blocks that do not run would
    # count. The grid gives a tile to every warp or eight to every block, and the last tile to one of the last blocks.
    emulation.set_grid(-(-numel // (8 * 8192)))
    emulation.set_small_grid(2)  # the samples are all taken
    last_blocks(3)
    k = in_tile // 2
    emulation.cuda.topk_mask([tensor], emulation.SelectRule(emulation.Metric.stored, k, False, strict))
    expected = oracle.keep_highest(tail, in_tile - k)
    if packed:
        assert_same(mask.read(np.uint8, in_tile // 8), np.packbits(expected, bitorder="little"))
    else:
        assert_same(mask.read(bool, in_tile), expected)


def test_update_and_topk_mask(emulation, last_blocks):
    """The pass that updates scores as it ranks them: the k lowest are in the tail, as above."""
    numel = PAST_32 // 8 * 8
    in_tile = numel % 8192
    tail = np.random.default_rng(0).permutation(in_tile).astype(np.float32) + 1
    score, mask = Sparse(emulation, numel, 4), Sparse(emulation, numel, 1)
    weight = Sparse(emulation, numel, 4).write(tail)
    float32, metric = emulation.Dtype.float32, emulation.Metric
    update = emulation.UpdateTensor(score.address, weight.address, 0, numel, *[float32] * 3)
    rule = emulation.UpdateRule(metric.magnitude, emulation.Reduce.sum, 0.0, -1.0, 0, 0, False)
    emulation.set_grid(-(-numel // (8 * 8192)))
    emulation.set_small_grid(2)
    last_blocks(3)
    k = in_tile // 2
    emulation.cuda.update_topk_mask(
        [update], [select_tensor(emulation, score, mask, numel)], rule,
        emulation.SelectRule(metric.stored, k, False, False),
    )  # fmt: skip
    assert_same(score.read(np.float32, in_tile), -tail)
    assert_same(mask.read(bool, in_tile), oracle.keep_highest(-tail, in_tile - k))


@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_one_value(emulation, last_blocks, packed):
    numel = PAST_32 // 8 * 8
    mask = Sparse(emulation, numel // 8 if packed else numel, 1)
    dtypes = [emulation.Dtype.float32] * 2
    tensor = emulation.SelectTensor(0, 0, 0, mask.address, numel, numel, *dtypes, packed)
    last_blocks(4)
    emulation.cuda.topk_mask([tensor], emulation.SelectRule(emulation.Metric.stored, 0, False, False))
    assert_same(mask.read(np.uint8, TAIL), np.full(TAIL, 255 if packed else 1, np.uint8))


def test_count_digits(emulation, last_blocks):
    tail = values("normal", (TAIL,))
    score = Sparse(emulation, PAST_32, 4).write(tail)
    backend = Backend(emulation, "cuda")
    prefix, counts = backend.array(np.int64([0]), "int64"), backend.undefined(2048, "int64")
    tensor = emulation.SelectTensor(score.address, 0, 0, 0, PAST_32, PAST_32, *[emulation.Dtype.float32] * 2, False)
    emulation.set_grid(-(-PAST_32 // 8192))
    last_blocks(2)
    emulation.cuda.count_digits([tensor], emulation.Metric.stored, prefix.address, 0, False, counts.address)
    expected, zeros = (oracle.count_digits(oracle.key_bits(x), 0, 0) for x in (tail, np.zeros(1, np.float32)))
    assert_same(counts.read()[zeros == 0], expected[zeros == 0])


@pytest.mark.parametrize("packed", [False, True])
def test_apply_masks(emulation, last_blocks, packed):
    numel = PAST_32 // 8 * 8
    keep = np.random.default_rng(0).random(TAIL) < 0.5
    data = Sparse(emulation, numel, 2).write(np.full(TAIL, 7, np.uint16))
    bits = np.packbits(keep, bitorder="little") if packed else keep
    mask = Sparse(emulation, numel // 8 if packed else numel, 1).write(bits)
    last_blocks(2)
    emulation.cuda.apply_masks([emulation.MaskTensor(data.address, mask.address, numel, 2, packed)])
    assert_same(data.read(np.uint16), np.where(keep, np.uint16(7), np.uint16(0)))


def test_pack_and_unpack(emulation, last_blocks):
    numel = PAST_32 // 8 * 8
    keep = np.random.default_rng(0).random(TAIL) < 0.5
    mask, bits = Sparse(emulation, numel, 1).write(keep), Sparse(emulation, numel // 8, 1)
    last_blocks(3)
    emulation.cuda.pack_mask(mask.address, bits.address, numel)
    assert_same(bits.read(np.uint8, TAIL // 8), np.packbits(keep, bitorder="little"))
    back = Sparse(emulation, numel, 1)
    emulation.cuda.unpack_mask(bits.address, back.address, numel)
    assert_same(back.read(bool), keep)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_nm_mask(emulation, last_blocks, n, m):
    numel = PAST_32 // 40 * 40
    tail = values("few_distinct", (TAIL,))
    score, mask = Sparse(emulation, numel, 4).write(tail), Sparse(emulation, numel, 1)
    tensor = select_tensor(emulation, score, mask, numel)
    # A block takes 8,192 entries, or 6 groups of 5 for each of its 8 warps.
    last_blocks(20)
    emulation.cuda.nm_mask(tensor, emulation.Metric.stored, n, m)
    assert_same(mask.read(bool), oracle.nm_mask(tail, n, m))


@pytest.mark.parametrize("row", [1000, TAIL, 13_000, 30_000])  # of a warp, of a block of two or seven, in memory
def test_row_topk_mask(emulation, last_blocks, row):
    rows = PAST_32 // row
    tail = values("few_distinct", (row,))
    score, mask = Sparse(emulation, rows * row, 4).write(tail), Sparse(emulation, rows * row, 1)
    tensor = select_tensor(emulation, score, mask, row)
    last_blocks(1)
    emulation.cuda.row_topk_mask(tensor, emulation.Metric.stored, row, row // 2)
    assert_same(mask.read(bool, row), oracle.row_topk_mask(tail, row - row // 2))


@pytest.mark.parametrize("what", ["apply", "expand"])
def test_block_masks(emulation, last_blocks, what):
    rows, cols = 2**17 + 4, 2**15
    kept = np.random.default_rng(0).random(cols // 8) < 0.5
    data = Sparse(emulation, rows * cols, 1).write(np.full(4 * cols, 7, np.uint8))
    mask = Sparse(emulation, rows // 4 * (cols // 8), 1).write(kept)
    tensor = emulation.BlockMaskTensor(
        data.address, mask.address, emulation.Matrix(rows, cols, cols), emulation.Strides(cols, 1, 0),
        emulation.Block(4, 8), 1,
    )  # fmt: skip
    last_blocks(4 * cols // 8 // 256)
    emulation.cuda.apply_block_masks([tensor]) if what == "apply" else emulation.cuda.expand_block_mask(tensor)
    wide = np.tile(np.repeat(kept, 8), 4)
    assert_same(data.read(np.uint8, 4 * cols), np.where(wide, 7 if what == "apply" else 1, 0).astype(np.uint8))


def test_gather(emulation, last_blocks):
    instances, slab = 3, 2**32 // 3 + 64
    slab -= slab % 16
    source, out = Sparse(emulation, instances * slab, 1), Sparse(emulation, instances * slab, 1)
    source.write(np.arange(TAIL).astype(np.uint8))
    importance = Backend(emulation, "cuda").array(np.float32([3, 2, 1]))
    slabs = emulation.SlabTensor(source.address, out.address, 1, slab, instances, instances)
    last_blocks(instances)
    emulation.cuda.gather_slabs(slabs, importance.address, emulation.Dtype.float32, False)
    assert_same(out.read(np.uint8), np.arange(TAIL).astype(np.uint8))
