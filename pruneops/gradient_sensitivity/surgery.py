"""Cutting heads and neurons out of a model, and loading a model that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from .. import ops
from ..checkpoint import Shard
from ..layers import stores_in_by_out
from .structure import Group, Slice, check_unshared, find_groups, uncovered, update_counts


def check_cut(group: Group, name: str, importance: Tensor, target: int) -> None:
    """Whether ``target`` heads or neurons of a group can be kept.

    Raises:
        ValueError: the importance has another length, ``target`` is too large or splits a group of query heads, or
            the attention holds a parameter that would no longer fit, or shares its keys and values with other layers.
    """
    if importance.shape != (group.instances,):
        raise ValueError(
            f"{name!r}: importance has shape {list(importance.shape)}, "
            f"expected [{group.instances}]: {group.instances} {group.kind} of stride {group.stride}"
        )
    check_target(group, name, target)


def check_target(group: Group, name: str, target: int) -> None:
    """The part of :func:`check_cut` that needs no importance."""
    if target > group.instances:
        raise ValueError(f"{name!r}: target {target} is beyond its {group.instances} {group.kind}")
    if target % group.per_unit:
        raise ValueError(
            f"{name!r}: target {target} splits grouped-query attention; "
            f"{group.per_unit} query heads share one key and value, so it must be a multiple of {group.per_unit}"
        )
    if extra := uncovered(group):
        raise ValueError(f"{name!r}: its heads cannot be cut, because parameter {extra!r} beside it depends on them")
    if group.holder is not None:
        check_unshared(group.holder, group.name, name)


@torch.no_grad()
def cut(group: Group, importance: Tensor, target: int, order: str = "importance") -> None:
    """Keep the ``target`` most important heads or neurons of a group, in all of its parameters.

    The parameters stay the same objects, so that an optimizer still holds them; its state (momentum) has the old
    sizes and must be made anew. Their gradients are dropped.

    Args:
        group: what to cut.
        importance: shape (instances,); with grouped-query attention a group counts with the sum of its heads.
        target: heads or neurons to keep, a multiple of ``group.per_unit``.
        order: ``importance`` or ``original``.

    Raises:
        ValueError: sizes that do not fit, or heads that cannot be cut alone; nothing is written.

    Example:
        >>> heads = find_groups(model)[0]  # doctest: +SKIP
        >>> cut(heads, importance=torch.rand(heads.instances), target=8)  # doctest: +SKIP
    """
    check_cut(group, group.name, importance, target)
    ranks = importance.view(group.units, group.per_unit).sum(1) if group.per_unit > 1 else importance
    keep = target // group.per_unit
    for x in group.slices:
        replace(x.module, x.key, _kept(x, ranks, keep, order))
    update_counts(group, keep)


def _kept(x: Slice, ranks: Tensor, keep: int, order: str) -> Tensor:
    stacked = x.parameter.detach().unflatten(x.dim, (x.parts, -1))
    stride = stacked.shape[x.dim + 1] // len(ranks)
    kept = ops.prune_by_importance(stacked, ranks.to(stacked.device), keep, stride, dim=x.dim + 1, order=order)
    return cast(Tensor, kept).flatten(x.dim, x.dim + 1)


@torch.no_grad()
def replace(module: nn.Module, key: str, value: Tensor) -> None:
    """Give a parameter a value of another shape, and its module the sizes that go with it."""
    parameter = getattr(module, key)
    parameter.grad = None
    value = value.to(parameter.device, parameter.dtype)
    # Autograd keeps the old shape while any graph of an earlier step is alive, unless the dtype changes in between.
    parameter.data = value.new_empty(0, dtype=torch.float64 if value.dtype == torch.float32 else torch.float32)
    parameter.data = value.contiguous()
    if key == "weight":
        _update_sizes(module, value.shape)


def _update_sizes(module: nn.Module, shape: torch.Size) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif stores_in_by_out(module):
        vars(module).update(nx=shape[0], nf=shape[1])
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


def load_pruned(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a pruned model's weights into a model as it was before pruning; its layers take the sizes in the file.

    A configuration has one head count for all layers and derives the head size from it, so that a pruned model cannot
    be built from its configuration alone.

    Args:
        model: of the same architecture, built from the same configuration; it is changed in place.
        path: ``.safetensors`` file, or directory that holds one ``model.safetensors``.

    Returns:
        ``model``.

    Raises:
        ValueError: a weight is missing in the file, or has another number of dimensions there; nothing is changed.

    Example:
        >>> pruned.save_pretrained("pruned")  # doctest: +SKIP
        >>> model = load_pruned(AutoModel.from_config(config), "pruned")  # doctest: +SKIP
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    shapes = {name: info.shape for name, info in Shard(file).tensors.items()}
    _check_file(model, shapes, file)
    for group in find_groups(model):
        size = shapes[group.output.name][group.output.dim]
        update_counts(group, size // group.stride // group.per_unit)
    for path_, module in model.named_modules():
        for key, parameter in module._parameters.items():
            shape = shapes.get(f"{path_}.{key}".lstrip("."))
            if parameter is not None and shape is not None and shape != tuple(parameter.shape):
                replace(module, key, parameter.new_empty(shape))
    load_model(model, file)
    return model


def _check_file(model: nn.Module, shapes: dict[str, tuple[int, ...]], file: Path) -> None:
    for name, parameter in model.named_parameters():
        if name not in shapes:
            raise ValueError(f"{file}: weight {name!r} of the model is missing")
        if len(shapes[name]) != parameter.dim():
            raise ValueError(f"{file}: {name!r} has shape {list(shapes[name])}, the model's {list(parameter.shape)}")
