"""The scratch memory that CUDA operators ask for, against what is promised."""

import pytest

MIB = 2**20
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SIZES = (1, 1000, 2**22 - 1, 2**22, 2**22 + 1, 10_000_019, 2**26, 2**28 + 3, 10**9, 2**31 + 5, 2**33)

#: 7 * 10^9 entries: layers of transformer shapes, with biases between them.
LAYERS = [*[4096 * 4096, 4096 * 11_008, 4096, 1] * 74, 7 * 10**9 - 74 * (4096 * 15_104 + 4097), 0, 0, 0]
LISTS = [*([n] for n in SIZES), LAYERS, [50] * 100_000, [8193] * 5000, [0, 2**22, 0]]


def tensors(emulation, sizes, dtypes):
    kinds = [getattr(emulation.Dtype, dtypes[i % len(dtypes)]) for i in range(len(sizes))]
    return [emulation.SelectTensor(0, 0, 0, 0, n, n, kind, kind, False) for n, kind in zip(sizes, kinds, strict=True)]


def total_bytes(sizes, dtypes):
    return sum(n * BYTES[dtypes[i % len(dtypes)]] for i, n in enumerate(sizes))


def test_the_layers_are_300_and_hold_7_billion_entries():
    assert len(LAYERS) == 300
    assert sum(LAYERS) == 7 * 10**9


@pytest.mark.parametrize("dtypes", [("float32",), ("bfloat16",), ("float16",), ("float64",), ("bfloat16", "float32")])
@pytest.mark.parametrize("sizes", LISTS, ids=lambda sizes: f"{len(sizes)} of {sum(sizes)}")
def test_selection_takes_less_than_3_percent_and_4_mib(emulation, sizes, dtypes):
    given = emulation.select_scratch_bytes(tensors(emulation, sizes, dtypes), False)
    assert 0 < given < 0.03 * total_bytes(sizes, dtypes) + 4 * MIB


@pytest.mark.parametrize("sizes", LISTS, ids=lambda sizes: f"{len(sizes)} of {sum(sizes)}")
def test_half_types_among_doubles_take_less_than_5_percent_and_4_mib(emulation, sizes):
    # All keys are those of doubles then.
    dtypes = ("bfloat16",) * 100 + ("float64",)
    given = emulation.select_scratch_bytes(tensors(emulation, [*sizes, *[1] * 101], dtypes), False)
    assert given < 0.05 * total_bytes(sizes, dtypes) + 4 * MIB


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("sizes", LISTS, ids=lambda sizes: f"{len(sizes)} of {sum(sizes)}")
def test_strict_selection_takes_less_than_4_mib(emulation, sizes, dtype):
    assert 0 < emulation.select_scratch_bytes(tensors(emulation, sizes, (dtype,)), True) < 4 * MIB


def test_nothing_takes_nothing(emulation):
    assert emulation.select_scratch_bytes([], False) == 0
    assert emulation.select_scratch_bytes(tensors(emulation, [0, 0], ("float32",)), False) == 0


def block_bytes(emulation, shape, block, dtype="float32"):
    matrix, strides = emulation.Matrix(*shape, shape[1]), emulation.Strides(shape[1], 1, 0)
    kinds = [getattr(emulation.Dtype, dtype)] * 3
    return emulation.block_scratch_bytes(
        emulation.BlockTensor(0, 0, 0, matrix, strides, strides, emulation.Block(*block), *kinds)
    )


@pytest.mark.parametrize("block", [(4, 1), (1, 4), (16, 16), (32, 32), (64, 256), (64, 1), (1, 4096), (8, 4096)])
def test_blocks_of_one_part_take_nothing(emulation, block):
    assert block_bytes(emulation, (4096, 4096), block) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("block", [(4096, 1), (256, 1), (65, 1), (1, 2**20), (4096, 2**20), (64, 2**20), (512, 512)])
def test_parts_take_a_value_for_32_entries_at_most(emulation, block, dtype):
    shape = (4096, 2**20) if block[0] != 65 else (65 * 8, 1000)
    size = 8 if dtype == "float64" else 4
    given = block_bytes(emulation, shape, block, dtype)
    assert 0 < given <= shape[0] * shape[1] * size // 32 + 16


def test_only_long_rows_take_scratch_memory(emulation):
    kinds = [emulation.Dtype.float32] * 2
    for row, rows, takes in ((15_000, 1, True), (14_999, 1, False), (29_999, 2, False), (30_000, 2, True)):
        tensor = emulation.SelectTensor(0, 0, 0, 0, row * rows, row, *kinds, False)
        assert (emulation.row_scratch_bytes(tensor, row) > 0) == takes
