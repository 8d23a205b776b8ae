"""Importance from gradients, accumulated on the device with one operator call for all weights of a step.

Sensitivity of a head: abs of the gradient of a mask that multiplies its output (Michel et al., 2019). With o = W_o c
the same number is the sum of W_o * dL/dW_o over the head's columns, so that a model needs no mask. Sensitivity of a
neuron: abs of the sum of w * dL/dw over its incoming weights and its bias (Molchanov et al., 2019, eq. 8, by group).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .model import Model
from .structure import Group

Importance = dict[str, Tensor]
Target = tuple[str, Mapping[str, Any]]
#: Signed row sums of one step, by model and importance inputs.
StepSums = dict[Any, Tensor]


def accumulate_elementwise(model: Model, importance: Importance, names: Sequence[str]) -> None:
    """Add abs(w * g) of each weight."""
    grads = [model.gradient(name, "names") for name in names]
    weights = [model.weight(name) for name in names]
    scores = [_storage(importance, name, weight, weight.shape) for name, weight in zip(names, weights, strict=True)]
    ops.update_scores_(scores, weights, grads, metric="snip", alpha=1.0)


def accumulate_abs(
    model: Model, importance: Importance, targets: Sequence[Target], groups: Mapping[str, Group | None]
) -> None:
    """Add abs(gradient of the head mask) to the importance of each weight.

    The mask is an input of shape (layers, heads). A model that was given none is read through the weight that
    follows the heads.

    Args:
        model: what is pruned.
        importance: weight name -> tensor of shape (heads,), updated in place; names whose heads are the same
            share it.
        targets: weight names with their parameters.
        groups: weight name -> the heads that it is part of, where they are known.

    Raises:
        ValueError: there is no gradient, no head mask or no index into it; nothing is written.
    """
    masks = {
        key: model.input_gradient(key) for key in {parameters["importance_inputs"][0] for _, parameters in targets}
    }
    masked = [target for target in targets if masks[target[1]["importance_inputs"][0]] is not None]
    unmasked = [target for target in targets if masks[target[1]["importance_inputs"][0]] is None]
    grads = {}
    for name, parameters in masked:
        key, index = parameters["importance_inputs"][0], parameters.get("index")
        grads[key, index] = _layer_of(name, key, masks[key], index)
    heads = {name: _heads_of(name, parameters, groups) for name, parameters in unmasked}

    if masked:
        shared = _share(importance, masked, lambda _, p: (p["importance_inputs"][0], p.get("index")))
        rows = list(shared)
        scores = [
            _shared_storage(importance, names, grads[row[0]], grads[row[0]].shape) for row, names in shared.items()
        ]
        ops.update_scores_(scores, None, [grads[row[0]] for row in rows], metric="gradient", alpha=1.0)
    if unmasked:
        _accumulate_outputs(importance, unmasked, heads)


def accumulate_weighted(
    model: Model, importance: Importance, targets: Sequence[Target], step: StepSums | None = None
) -> None:
    """Add abs(sum over the importance inputs of the row sums of w * g) to the importance of each weight.

    What one weight stacks, such as ``gate_up_proj``, counts as weights of their own.

    Args:
        model: what is pruned.
        importance: weight name -> tensor of shape (rows,), updated in place; names with the same inputs share it.
        targets: weight names with their parameters.
        step: sums that other pruners have made in this step; those made here are added.

    Raises:
        ValueError: an input has no gradient, or another number of rows than the first; nothing is written.
    """
    shared = _share(importance, targets, lambda _, p: tuple(p["importance_inputs"]))
    read = {inputs: [_read(model, x) for x in inputs] for inputs, _ in shared}
    for (inputs, _), names in shared.items():
        _check_rows(names[0], inputs, [parts[0][0] for parts in read[inputs]])
    pairs = {inputs: [pair for parts in found for pair in parts] for inputs, found in read.items()}
    scores = []
    for (inputs, _), names in shared.items():
        weight = pairs[inputs][0][0]
        scores.append(_shared_storage(importance, names, weight, weight.shape[:1]))
    inputs_of = [pairs[inputs] for inputs, _ in shared]
    if all(len(found) == 1 and found[0][0].dim() > 1 for found in inputs_of):
        columns = [score.unsqueeze(1) for score in scores]
        weights, grads = ([found[0][i] for found in inputs_of] for i in (0, 1))
        ops.update_block_scores_(columns, weights, grads, block=(1, -1), metric="mask_gradient", alpha=1.0)
    else:
        step = {} if step is None else step
        keys = [(model.identity, inputs) for inputs, _ in shared]
        missing = {key: found for key, found in zip(keys, inputs_of, strict=True) if key not in step}
        step.update(zip(missing, _row_sums(list(missing.values())), strict=True))
        sums = [step[key] for key in keys]
        ops.update_scores_(scores, None, sums, metric="gradient", alpha=1.0)


def _accumulate_outputs(importance: Importance, targets: Sequence[Target], heads: Mapping[str, Group]) -> None:
    shared = _share(importance, targets, lambda name, _: heads[name].key)
    groups = [heads[names[0]] for names in shared.values()]
    grads = [_output_gradient(group) for group in groups]
    scores = [
        _shared_storage(importance, names, group.output_weight, torch.Size([group.instances])).unsqueeze(0)
        for names, group in zip(shared.values(), groups, strict=True)
    ]
    # Heads of one size share a call; models with several sizes are rare.
    for stride in {group.stride for group in groups}:
        which = [i for i, group in enumerate(groups) if group.stride == stride]
        chosen, weights, seen = ([x[i] for i in which] for x in (scores, [x.output_weight for x in groups], grads))
        ops.update_block_scores_(chosen, weights, seen, block=(-1, stride), metric="mask_gradient", alpha=1.0)


def _output_gradient(group: Group) -> Tensor:
    if group.output_gradient is None:
        raise ValueError(
            f"importance_metric 'abs_gradient': {group.output.name!r} has no gradient; call backward() first"
        )
    return group.output_gradient


def _share(
    importance: Importance, targets: Sequence[Target], source: Callable[[str, Mapping[str, Any]], Hashable]
) -> dict[tuple[Any, int], list[str]]:
    """Names by what their importance comes from and where it is stored: each is computed once."""
    shared: dict[tuple[Any, int], list[str]] = {}
    for name, parameters in targets:
        shared.setdefault((source(name, parameters), id(importance.get(name))), []).append(name)
    return shared


def _shared_storage(importance: Importance, names: Sequence[str], like: Tensor, shape: torch.Size) -> Tensor:
    score = _storage(importance, names[0], like, shape)
    importance.update(dict.fromkeys(names, score))
    return score


def _storage(importance: Importance, name: str, like: Tensor, shape: torch.Size) -> Tensor:
    if importance.get(name) is None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        importance[name] = torch.zeros(shape, dtype=dtype, device=like.device)
    return importance[name]


def _layer_of(name: str, key: str, grad: Tensor | None, index: int | None) -> Tensor:
    if grad is None or grad.dim() != 2:
        shape = None if grad is None else list(grad.shape)
        raise ValueError(f"{name!r}: the gradient of {key!r} has shape {shape}, expected (layers, heads)")
    if index is None:
        raise ValueError(f"{name!r}: parameters['index'] is missing; it says which layer of {key!r} this is")
    if index >= len(grad):
        raise ValueError(f"{name!r}: index {index} is beyond the {len(grad)} layers of {key!r}")
    return grad[index]


def _heads_of(name: str, parameters: Mapping[str, Any], groups: Mapping[str, Group | None]) -> Group:
    group = groups.get(name)
    if group is None or group.kind != "heads":
        key = parameters["importance_inputs"][0]
        raise ValueError(f"{name!r}: no gradient of {key!r} was seen, and it belongs to no attention that is known")
    return group


def _read(model: Model, name: str) -> list[tuple[Tensor, Tensor]]:
    """The parts of a weight and of its gradient."""
    grads = model.by_outputs(name, model.gradient(name, "importance_inputs"))
    return list(zip(model.by_outputs(name, model.weight(name)), grads, strict=True))


def _check_rows(name: str, inputs: Sequence[str], weights: Sequence[Tensor]) -> None:
    for key, weight in zip(inputs, weights, strict=True):
        if weight.dim() == 0 or weight.shape[:1] != weights[0].shape[:1]:
            raise ValueError(
                f"{name!r}: importance_inputs {key!r} has shape {list(weight.shape)}, "
                f"{inputs[0]!r} has shape {list(weights[0].shape)}; they must have as many rows"
            )


def _row_sums(groups: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> list[Tensor]:
    """For each group of weights and gradients the sum of their row sums of w * g: signed, in float32 or wider.

    All matrices share one call, and no product has a weight's size.
    """
    matrices = [pair for group in groups for pair in group if pair[0].dim() > 1]
    columns = [weight.new_empty((len(weight), 1), dtype=_wide(weight)) for weight, _ in matrices]
    weights, grads = ([pair[i] for pair in matrices] for i in (0, 1))
    ops.update_block_scores_(columns, weights, grads, block=(1, -1), metric="mask_sum")
    found = iter(columns)

    def rows(weight: Tensor, grad: Tensor) -> Tensor:
        return next(found).squeeze(1) if weight.dim() > 1 else weight.to(_wide(weight)) * grad

    return [torch.stack([rows(*pair) for pair in group]).sum(0) for group in groups]


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
