"""Masks on disk: one bit per entry, in a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import ops
from ._library import packed_size
from .staging import staged

_KIND = "pruneops-masks"


def save_masks(masks: Mapping[str, Tensor], path: str | Path, *, overwrite: bool = False) -> None:
    """Save named masks, packed to one bit per entry.

    Args:
        masks: name -> bool mask of any shape, such as ``report.masks`` of :func:`pruneops.prune` or ``masks`` of
            :class:`pruneops.Pruner`.
        path: the safetensors file to make, whole or not at all; missing parents are made.
        overwrite: replace what is there.

    Raises:
        TypeError: a mask is not a bool tensor; nothing is written.
        OSError: the file exists, or cannot be written.

    Example:
        >>> save_masks({"fc": torch.tensor([[True, False]])}, "masks.safetensors")  # doctest: +SKIP
    """
    packed: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"save_masks: masks[{name!r}] must be a bool tensor, got {kind}")
        shapes[name] = list(mask.shape)
        packed[name] = ops.pack_mask(mask)
    with staged(path, overwrite=overwrite) as file:
        save_file(packed, file, {"format": _KIND, "shapes": json.dumps(shapes)})


def load_masks(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Load masks that :func:`save_masks` has written.

    Args:
        path: the file.
        device: where to put the masks.

    Returns:
        name -> bool mask of the saved shape, True = keep.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no masks of this form.

    Example:
        >>> load_masks("masks.safetensors")["fc"]  # doctest: +SKIP
        tensor([[ True, False]])
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file: {error}") from error
    if metadata.get("format") != _KIND:
        raise ValueError(f"{path}: holds no masks (its format is {metadata.get('format')!r}, expected {_KIND!r})")
    shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
    for name, mask in packed.items():
        size = packed_size(torch.Size(shapes.get(name, [])).numel())
        if name not in shapes or mask.dtype != torch.uint8 or mask.shape != (size,):
            raise ValueError(f"{path}: mask {name!r} does not fit its shape {shapes.get(name)}")
    return {name: ops.unpack_mask(mask, shapes[name]) for name, mask in packed.items()}
