"""``apply_masks_`` beside multiplication by bool and float masks, ``masked_fill_`` and ``torch._foreach_mul_``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruneops import ops

from .blocks import grid, inc_expand
from .common import Case, Config, as_one, beside, element_size, parts
from .shapes import BERT_BASE, LLAMA_7B, Shape, largest, square, total, transformer, whole

BLOCK = (4, 1)


@dataclass(frozen=True)
class Data:
    weights: list[Tensor]
    masks: list[Tensor]
    packed: list[Tensor]
    blocks: list[Tensor]
    #: What the peers keep instead: the pruned entries, and the mask in the weight's dtype.
    pruned: list[Tensor]
    floats: list[Tensor]


def _bool(data: Data) -> None:
    ops.apply_masks_(data.weights, data.masks)


def _packed(data: Data) -> None:
    ops.apply_masks_(data.weights, data.packed)


def _block(data: Data) -> None:
    ops.apply_masks_(data.weights, data.blocks, block=BLOCK)


def _inc(data: Data) -> None:
    """Neural Compressor replaces each weight by its product with a bool mask."""
    for i, mask in enumerate(data.masks):
        data.weights[i] = data.weights[i] * mask


def _mul_bool(data: Data) -> None:
    for weight, mask in zip(data.weights, data.masks, strict=True):
        weight.mul_(mask)


def _mul_float(data: Data) -> None:
    for weight, mask in zip(data.weights, data.floats, strict=True):
        weight.mul_(mask)


def _masked_fill(data: Data) -> None:
    for weight, pruned in zip(data.weights, data.pruned, strict=True):
        weight.masked_fill_(pruned, 0)


def _foreach(data: Data) -> None:
    torch._foreach_mul_(data.weights, data.floats)


def _expanded(data: Data) -> None:
    for weight, mask in zip(data.weights, data.blocks, strict=True):
        weight.mul_(inc_expand(mask, BLOCK))


def _data(config: Config, shapes: list[Shape], dtype: torch.dtype) -> Data:
    n = total(shapes)
    weights = parts(config.noise(n, dtype=dtype), shapes)
    masks = parts(config.noise(n, dtype=dtype) > 0, shapes)
    blocks = [config.noise(*grid(shape, BLOCK)) > 0 for shape in shapes]
    return Data(weights, masks, [ops.pack_mask(m) for m in masks], blocks,
                [~m for m in masks], [m.to(dtype) for m in masks])  # fmt: skip


def _as_one(data: Data) -> Data:
    shape = whole(sum(weight.numel() for weight in data.weights))
    return replace(data, weights=as_one(data.weights, shape), masks=as_one(data.masks, shape))


def cases(config: Config) -> Iterator[Case]:
    fp32, bf16 = torch.float32, torch.bfloat16
    peers = {"INC eager": _inc, "mul_ bool": _mul_bool, "mul_ float": _mul_float, "masked_fill_": _masked_fill}
    floats = {"INC eager": _inc, "mul_ float": _mul_float}
    bools = {"pruneops": _bool, **peers}

    def case(name: str, shapes: list[Shape], dtype: torch.dtype, mask: float, contenders, **more) -> Case:
        n, size = total(shapes), element_size(dtype)
        needs = int(n * (2 * size + 2.4)) + 3 * 4 * largest(shapes)
        return Case("apply_masks_", name, n, 2 * size + mask, lambda: _data(config, shapes, dtype), contenders,
                    needs=needs, **more)  # fmt: skip

    one, many = [square(config.n)], transformer(300, config.n)
    yield case("bool mask, fp32", one, fp32, 1, bools, headline=True)
    yield case("packed mask, fp32", one, fp32, 1 / 8, {"pruneops": _packed, **floats}, headline=True)
    expanded = {"pruneops": _block, "expand + mul_": _expanded, **floats}
    yield case("4x1 block mask, fp32", one, fp32, 1 / 4, expanded, headline=True)
    yield case("bool mask, bf16", one, bf16, 1, bools, headline=True)
    foreach = {**bools, "_foreach": _foreach}
    in_many = case("300 tensors, bool mask, fp32", many, fp32, 1, config.peers(foreach, "_foreach"))
    yield beside(in_many, "as one tensor", _as_one)
    if config.smoke:
        return
    yield case("BERT-base, bool mask, fp32", BERT_BASE, fp32, 1, config.peers(foreach, "_foreach"))
    if config.gpu:
        yield case("Llama 7B, bool mask, bf16", LLAMA_7B, bf16, 1, foreach, headline=True)


def test_speed(timed, case, contender):
    timed(case, contender)
