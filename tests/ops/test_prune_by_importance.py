"""prune_by_importance against slicing in NumPy."""

import tracemalloc

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, VALUES, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same, bits, tensor

from pruneops import ops

ORDERS = ("importance", "original")


def check_slabs(device, x, importance, num, stride, *, dtypes=(None, None), layout="contiguous", **how):
    given_x, given_importance = tensor(x, dtypes[0], device, layout), tensor(importance, dtypes[1], device)
    before = bits(given_x)
    kept = ops.prune_by_importance(given_x, given_importance, num, stride, **how)
    assert kept.is_contiguous()
    assert kept.dtype == given_x.dtype
    assert_same(kept, oracle.prune_by_importance(x, importance, num, stride, **how))
    assert bits(given_x) == before


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("stride", [1, 2, 7, 64])
def test_numbers_and_strides(device, order, num, stride):
    check_slabs(device, values("normal", (12 * stride, 9)), values("normal", (12,)), num, stride, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_importances(device, order, name, dtype):
    importance = values(name, (100,), dtype)
    for num in (1, 50, 99):
        check_slabs(device, np.arange(200), importance, num, 2, dtypes=(None, dtype), order=order)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 255, 256, 257, 1024, 1025, 4097, 40_000])
def test_numbers_of_slabs(device, n):
    for name in ("few_distinct", "normal"):
        check_slabs(device, np.arange(n), values(name, (n,)), n // 2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(device, dtype):
    check_slabs(device, values("everything", (12, 9), dtype), values("normal", (6,)), 4, 2, dtypes=(dtype, None))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.complex64, bool])
def test_other_dtypes(device, dtype):
    check_slabs(device, (np.arange(24) % 7).astype(dtype).reshape(12, 2), values("normal", (6,)), 4, 2)


@pytest.mark.parametrize("shape", [(12,), (12, 12), (12, 24, 12), (12, 12, 24, 12)])
def test_dimensions_and_layouts(device, shape):
    importance = values("few_distinct", (6,))
    for dim in range(-len(shape), len(shape)):
        for layout in layouts(len(shape)):
            check_slabs(device, values("normal", shape), importance, 3, shape[dim] // 6, dim=dim, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint16, torch.bits8])
def test_dtypes_that_are_only_moved(device, dtype):
    stored = torch.arange(8, dtype=torch.int16 if dtype.itemsize == 2 else torch.uint8, device=device)
    importance = torch.tensor([0.1, 0.7, 0.2, 0.5], device=device)
    kept = ops.prune_by_importance(stored.view(dtype), importance, 2, 2)
    assert kept.dtype == dtype
    assert kept.view(stored.dtype).tolist() == [2, 3, 6, 7]


def test_importance_may_be_a_view(device):
    x, importance = values("normal", (24, 3)), values("normal", (12,))
    for layout in layouts(1):
        kept = ops.prune_by_importance(tensor(x, device=device), tensor(importance, None, device, layout), 5, 2)
        assert_same(kept, oracle.prune_by_importance(x, importance, 5, 2))


@pytest.mark.parametrize("shape", [(0, 3), (0,)])
def test_no_instances(device, shape):
    check_slabs(device, np.zeros(shape, np.float32), np.zeros(0, np.float32), 0, 2)


def test_other_dimensions_may_be_empty(device):
    check_slabs(device, np.zeros((6, 0), np.float32), values("normal", (3,)), 2, 2)


@pytest.mark.parametrize("order", ORDERS)
def test_numpy_in_numpy_out(order):
    x, importance = np.arange(24, dtype=np.int32).reshape(12, 2), values("few_distinct", (6,))
    kept = ops.prune_by_importance(x, importance, 4, 2, order=order)
    assert isinstance(kept, np.ndarray)
    assert_same(kept, oracle.prune_by_importance(x, importance, 4, 2, order=order))


def test_numpy_views():
    x, importance = np.arange(48.0).reshape(4, 12)[::-1].T, np.arange(12.0)[::-2]
    assert_same(ops.prune_by_importance(x, importance, 4, 2), oracle.prune_by_importance(x, importance, 4, 2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.complex64, bool])
def test_arrays_that_are_only_read_need_not_be_writable(dtype, tmp_path):
    x, importance = (np.arange(24) % 7).astype(dtype).reshape(12, 2), values("normal", (6,))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    importance.flags.writeable = False
    for given_x in (mapped, mapped[::-1]):
        kept = ops.prune_by_importance(given_x, importance, 4, 2)
        assert kept.flags.writeable
        assert_same(kept, oracle.prune_by_importance(np.array(given_x), importance, 4, 2))
    assert not mapped.flags.writeable
    assert not importance.flags.writeable


@pytest.mark.filterwarnings("error")
def test_an_array_that_cannot_be_written_is_not_copied():
    x = np.zeros((4000, 500), np.float32)
    x.flags.writeable = False
    tracemalloc.start()
    try:
        ops.prune_by_importance(x, np.arange(4000.0), 1, 1)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes // 2
    finally:
        tracemalloc.stop()


def test_no_dimensions():
    for array in (np.array, torch.tensor):
        with pytest.raises(ValueError, match="tensor must have at least 1 dimension, got a 0-d tensor"):
            ops.prune_by_importance(array(1.0), array([1.0]), 1, 1)
        with pytest.raises(ValueError, match=r"importance must have 1 dimension, got shape \[\]"):
            ops.prune_by_importance(array([1.0]), array(1.0), 1, 1)


def test_result_is_a_copy():
    x = torch.arange(6)
    kept = ops.prune_by_importance(x, torch.ones(3), 3, 2)
    kept.zero_()
    assert x.tolist() == list(range(6))


POOL = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0])


@given(data=st.data(), importance=st.lists(POOL, max_size=30), stride=st.integers(1, 5), order=st.sampled_from(ORDERS))
def test_any_importance(device, data, importance, stride, order):
    x = values("normal", (len(importance) * stride, 3))
    check_slabs(
        device, x, np.array(importance, np.float32), data.draw(st.integers(0, len(importance))), stride, order=order
    )
