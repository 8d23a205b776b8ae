"""Pruned models for deployment: dense files with zeros, and sparse tensor cores."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn
from torch.sparse import to_sparse_semi_structured

from .layers import Patterns, find_layers, unwrapped
from .staging import staged

#: What the kernels of torch take, and what both sides of a weight must be multiples of.
_TILES = {torch.float16: (32, 64), torch.bfloat16: (32, 64)}


def save_dense(model: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """Save a model's parameters and buffers as dense safetensors: pruned weights are zeros.

    Any program that loads the model without pruning loads this file. Shared parameters are stored once.

    Args:
        model: any module; what ``torch.compile`` or data-parallel wrappers made is unwrapped.
        path: the file to make, whole or not at all.
        overwrite: replace what is there.

    Raises:
        OSError: the file exists, or cannot be written.

    Example:
        >>> save_dense(model, "sparse.safetensors")  # doctest: +SKIP
    """
    with staged(path, overwrite=overwrite) as file:
        save_model(unwrapped(model), str(file), metadata={"format": "pt"})


def to_semi_structured(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> list[str]:
    """Convert the weights of linear layers that hold 2:4 to the form that sparse tensor cores run, in place.

    The model is then for inference: converted weights require no gradient.

    Args:
        model: on a CUDA device of compute capability 8.0 or higher, in float16 or bfloat16.
        include, exclude: which layers, see :func:`pruneops.layers.find_layers`. Of them, those stay dense whose
            weights do not hold 2:4 or have a shape that the kernels do not take.

    Returns:
        The names of the converted layers.

    Raises:
        RuntimeError: the device does not run them.
        ValueError: no layer could be converted.

    Example:
        >>> to_semi_structured(model.half().cuda())  # doctest: +SKIP
        ['fc']
    """
    model = unwrapped(model)
    layers = [layer for layer in find_layers(model, include, exclude) if not layer.transposed]
    devices = {layer.parameter.device for layer in layers}
    for device in devices:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            raise RuntimeError(f"to_semi_structured: needs a CUDA device of compute capability 8.0, got {device}")
    converted = []
    for layer in layers:
        module = model.get_submodule(layer.name)
        if isinstance(module, nn.Linear) and _convertible(layer.parameter.detach()):
            module.weight = nn.Parameter(to_sparse_semi_structured(layer.parameter.detach()), requires_grad=False)
            converted.append(layer.name)
    if not converted:
        raise ValueError("to_semi_structured: no linear layer holds 2:4 in a dtype and shape that the kernels take")
    return converted


def _convertible(weight: torch.Tensor) -> bool:
    if weight.dtype not in _TILES:
        return False
    rows, columns = _TILES[weight.dtype]
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return False
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all())
