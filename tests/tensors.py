"""From NumPy arrays to tensors and back, and comparison bit for bit."""

import numpy as np
import torch
from hostile import laid_out


def tensor(array, dtype=None, device="cpu", layout="contiguous"):
    """A tensor of an array whose values ``dtype`` represents exactly; by default the array's own dtype."""
    array = np.array(array)
    exact = torch.from_numpy(array).to(getattr(torch, dtype) if dtype else None)
    return laid_out(exact.to(device), layout)


def array(x):
    """The values of a tensor, exactly: half precision as float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()


def bits(x):
    """The bytes of the values in row-major order."""
    flat = x.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def storage_bits(x):
    """Every byte of the storage, also around the view ``x``."""
    return bytes(x.untyped_storage().cpu().tolist())


def assert_same(actual, expected):
    """Same shape and same bits; one NaN is as good as another."""
    actual = array(actual) if isinstance(actual, torch.Tensor) else actual
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if actual.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        actual, expected = (np.where(np.isnan(x), 0, x) for x in (actual, expected))
        np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))
    np.testing.assert_array_equal(actual, expected)


def assert_all_same(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        assert_same(x, y)


def assert_only_view_written(view, untouched=1):
    """The storage around ``view`` still holds the ones that ``laid_out`` put there."""
    everything = torch.as_strided(view, (view.untyped_storage().nbytes() // view.element_size(),), (1,), 0).clone()
    torch.as_strided(everything, view.shape, view.stride(), view.storage_offset()).fill_(untouched)
    assert (everything == untouched).all()
