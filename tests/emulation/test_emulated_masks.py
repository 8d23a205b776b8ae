"""Masks and gathered slabs by the device code on the emulated grid, and by the CPU kernels, against NumPy."""

import numpy as np
import oracle
import pytest
from driver import LAYOUTS, Laid, as_matrix
from hostile import DTYPES, VALUES, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same

SIZES = (0, 1, 7, 8, 9, 63, 65, 255, 257, 2047, 2049, 8191, 8192, 8193, 16_400)


def random_mask(shape, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


def packed(mask):
    return np.packbits(mask.ravel(), bitorder="little")


def check_apply(backend, arrays, dtype="float32", offset=0, pack=False):
    masks = [random_mask(a.shape, i) for i, a in enumerate(arrays)]
    device = [backend.array(a, dtype, offset) for a in arrays]
    given_masks = [backend.array(packed(m), "uint8") if pack else backend.array(m, "bool", offset) for m in masks]
    backend.apply_masks(device, given_masks)
    for x, array, mask in zip(device, arrays, masks, strict=True):
        assert_same(x.read(), np.where(mask, array, array.dtype.type(0)))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_apply_sizes(backend, n, pack):
    check_apply(backend, [values("normal", (n,))], pack=pack)
    check_apply(backend, [values("normal", (n,), "bfloat16")], "bfloat16", offset=2, pack=pack)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, "uint8", "complex128"])
def test_apply_values(backend, dtype, pack):
    if dtype in DTYPES:
        check_apply(backend, [values(name, (300,), dtype) for name in VALUES], dtype, pack=pack)
    else:
        check_apply(backend, [np.arange(1, 301).astype(dtype)], dtype, pack=pack)


def test_apply_to_more_tensors_than_a_table_holds(backend):
    check_apply(backend, [values("normal", (i % 30,), seed=i) for i in range(1500)])


GEOMETRIES = [((8, 12), (4, 1)), ((24, 64), (1, 8)), ((64, 96), (32, 32)), ((9, 35), (3, 7)), ((5, 300), (5, 300)),
              ((17, 1), (1, 1)), ((8, 16, 3, 3), (4, 8)), ((6, 10, 2, 3), (3, 4)), ((0, 8), (4, 4))]  # fmt: skip


@pytest.mark.parametrize(("shape", "block"), GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_apply_blocks(backend, shape, block, layout, dtype):
    mask = random_mask(oracle.block_ids(shape, block)[1])
    array = values("everything", shape, dtype)
    laid = Laid(backend, array, dtype, layout)
    backend.apply_block_masks([laid], [backend.array(mask, "bool")], block)
    wide = as_matrix(oracle.expand_blocks(mask, block, shape)) if array.size else np.zeros(shape, bool)
    assert_same(laid.read(), np.where(wide, as_matrix(array), array.dtype.type(0)))


@pytest.mark.parametrize(("shape", "block"), GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_expand(backend, shape, block, layout):
    mask = random_mask(oracle.block_ids(shape, block)[1])
    out = Laid(backend, np.zeros(shape), "bool", layout, is_output=True)
    backend.expand_block_mask(out, backend.array(mask, "bool"), block)
    if out.rows:
        assert_same(out.read(), as_matrix(oracle.expand_blocks(mask, block, shape)))


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("n", SIZES)
def test_pack_and_unpack(backend, n, offset):
    mask = random_mask(n)
    bits, back = backend.undefined((n + 7) // 8, "uint8", offset), backend.undefined(n, "bool", offset)
    backend.pack_mask(backend.array(mask, "bool", offset), bits)
    assert_same(bits.read(), packed(mask))
    backend.unpack_mask(bits, back)
    assert_same(back.read(), mask)


def test_any_byte_but_0_keeps(backend):
    # A bool of PyTorch can hold other bytes than 0 and 1.
    given = np.arange(600).astype(np.uint8)
    mask, kept = backend.undefined((20, 30), "bool"), given != 0
    mask.memory.write(given)
    data, bits = backend.array(np.ones((20, 30), np.float32)), backend.undefined(75, "uint8")
    blocks, out = (Laid(backend, np.ones((40, 30)), dtype) for dtype in ("float32", "uint8"))
    backend.apply_masks([data], [mask])
    assert_same(data.read(), kept.reshape(20, 30).astype(np.float32))
    backend.pack_mask(mask, bits)
    assert_same(bits.read(), packed(kept))
    backend.apply_block_masks([blocks], [mask], (2, 1))
    backend.expand_block_mask(out, mask, (2, 1))
    expected = kept.reshape(20, 30).repeat(2, 0)
    assert_same(blocks.read(), expected.astype(np.float32))
    assert_same(out.read(), expected.astype(np.uint8))


def check_gather(backend, array, importance, kept, stride, dim, order, dtype="float32", importance_dtype="float32"):
    expected = oracle.prune_by_importance(array, importance, kept, stride, dim, order)
    out = backend.undefined(expected.shape, dtype)
    source = backend.array(array, dtype)
    backend.gather_slabs(source, out, backend.array(importance, importance_dtype), kept, stride, dim, order)
    assert_same(out.read(), expected)


@pytest.mark.parametrize("order", ["importance", "original"])
@pytest.mark.parametrize("name", ["normal", "few_distinct"])
@pytest.mark.parametrize(
    ("shape", "dim", "stride"), [((12, 7), 0, 1), ((5, 24, 3), 1, 2), ((3, 64), 1, 4), ((530, 2), 0, 2)]
)
def test_gather(backend, order, name, shape, dim, stride):
    instances = shape[dim] // stride
    for kept in {0, instances // 2, instances}:
        check_gather(backend, values("normal", shape), values(name, (instances,)), kept, stride, dim, order)


@pytest.mark.parametrize("order", ["importance", "original"])
def test_gather_values(backend, order):
    for name in VALUES:
        check_gather(backend, values("normal", (5, 24)), values(name, (12,)), 7, 2, 1, order)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_dtypes(backend, dtype):
    array, importance = values("everything", (40, 3), dtype), values("everything", (40,), dtype)
    check_gather(backend, array, importance, 20, 1, 0, "importance", dtype, dtype)


@given(data=st.data(), rows=st.integers(1, 9), cols=st.integers(1, 40), n=st.integers(1, 4), m=st.integers(1, 9))
def test_any_blocks(any_backend, data, rows, cols, n, m):
    any_backend.vary(data)
    shape, layout = (n * rows, m * cols), data.draw(st.sampled_from(sorted(LAYOUTS)))
    test_apply_blocks(any_backend, shape, (n, m), layout, data.draw(st.sampled_from(DTYPES)))
    test_expand(any_backend, shape, (n, m), layout)


@given(data=st.data(), sizes=st.lists(st.integers(0, 3000), max_size=5), pack=st.booleans())
def test_any_masks(any_backend, data, sizes, pack):
    any_backend.vary(data)
    dtype, name = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(sorted(VALUES)))
    arrays = [values(name, (n,), dtype, i) for i, n in enumerate(sizes)]
    check_apply(any_backend, arrays, dtype, data.draw(st.sampled_from([0, 8])), pack)
    for n in sizes[:1]:
        test_pack_and_unpack(any_backend, n, data.draw(st.integers(0, 7)))


@given(data=st.data(), outer=st.integers(1, 3), instances=st.integers(1, 40), stride=st.integers(1, 3))
def test_any_slabs(any_backend, data, outer, instances, stride):
    any_backend.vary(data)
    array = values("normal", (outer, instances * stride, data.draw(st.integers(1, 9))))
    importance = values(data.draw(st.sampled_from(sorted(VALUES))), (instances,), seed=data.draw(st.integers(0, 9)))
    order = data.draw(st.sampled_from(["importance", "original"]))
    check_gather(any_backend, array, importance, data.draw(st.integers(0, instances)), stride, 1, order)


def test_both_backends_have_every_kernel(emulation):
    both = [{name for name in dir(module) if name[0] != "_"} for module in (emulation.cuda, emulation.cpu)]
    assert both[0] == both[1] - {"set_threads", "first_pass"}
    assert len(both[0]) == 14
