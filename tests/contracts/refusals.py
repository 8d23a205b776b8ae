"""Arguments of calls that are refused, and what a refusal is: an error in these words, and nothing written."""

import re

import pytest
import torch
from tensors import storage_bits

from pruneops import ops

SNIP, MAGNITUDE = {"metric": "snip"}, {"metric": "magnitude"}
FLOATS = "must be float32, bfloat16, float16 or float64, got"


def f(*shape, dtype=torch.float32, device="cpu"):
    """A tensor of halves."""
    return torch.full(shape, 0.5, dtype=dtype, device=device)


def b(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.bool, device=device)


def on_meta(*shape):
    return torch.empty(shape, device="meta")


def sparse(*shape):
    return torch.eye(*shape).to_sparse()


def moved(value, device):
    """Arguments with their tensors on a device, each laid out as it was; what is on meta stays there."""
    if isinstance(value, dict):
        return {name: moved(x, device) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(x, device) for x in value)
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return value
    if value.layout != torch.strided:
        return value.to(device)
    storage = value.as_strided((value.untyped_storage().nbytes() // value.itemsize,), (1,), 0).to(device)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset()).as_subclass(type(value))


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.layout == torch.strided and value.device.type != "meta" else []
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in tensors_in(item)] if isinstance(value, (list, tuple)) else []


def refuse(op, args, how, error, message):
    given = tensors_in([args, how])
    before = [storage_bits(x) for x in given]
    versions = [x._version for x in given]
    with pytest.raises(error, match="^" + re.escape(f"{op}: {message}") + "$"):
        getattr(ops, op)(*args, **how)
    assert [storage_bits(x) for x in given] == before
    assert [x._version for x in given] == versions


def refuse_on(device, op, args, how, error, message):
    """What is said of a call on the CPU is said of the same call on the device."""
    name = str(torch.empty(0, device=device).device)
    refuse(op, *moved((args, how), device), error, message.replace("is on cpu", f"is on {name}"))
