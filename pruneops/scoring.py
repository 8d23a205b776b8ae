"""Scores of a Hugging Face language model from text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._checks import SCORE_METRICS, listed
from .calibration import norms_of
from .checkpoint import Checkpoint
from .layers import PrunableLayer, find_layers

#: What can be scored from text: the inputs, or the gradients of the language model's loss.
CRITERIA = ("wanda", *(metric for metric, (_, grad) in SCORE_METRICS.items() if grad))


#: A matrix of an expert in a checkpoint, as ``model.layers.0.block_sparse_moe.experts.3.w1``, and in the model that
#: transformers makes of it, as ``model.layers.0.mlp.experts.gate_up_proj.3``.
_IN_CHECKPOINT = re.compile(r"(?P<block>.+)\.\w+\.experts\.(?P<expert>\d+)\.(?P<matrix>\w+)")
_IN_MODEL = re.compile(r"(?P<block>.+)\.\w+\.experts\.(?P<matrix>\w+)\.(?P<expert>\d+)")
#: What is stacked together, or under another name: all of it gets the same inputs.
_STACKS = {"w1": "gate_up_proj", "w3": "gate_up_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
           "w2": "down_proj"}  # fmt: skip


def load_model(path: Path) -> tuple[nn.Module, Any]:
    """A causal language model and its tokenizer from a model directory.

    Raises:
        ImportError: transformers is missing.
        OSError, ValueError: the directory does not hold both.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError("scores from text need transformers: pip install transformers") from error
    if not path.is_dir():
        raise ValueError(f"{path}: must be a model directory with a tokenizer")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        return AutoModelForCausalLM.from_pretrained(path, local_files_only=True), tokenizer
    finally:
        if bars:
            logging.enable_progress_bar()


def sample_tokens(tokens: Tensor, samples: int, length: int, seed: int = 0) -> Tensor:
    """Windows of a text at random places.

    Args:
        tokens: the text, shape (n,).
        samples: how many windows.
        length: tokens of each.
        seed: of the places.

    Returns:
        shape (samples, length).

    Raises:
        ValueError: the text is too short.

    Example:
        >>> sample_tokens(torch.arange(4), 1, 4)
        tensor([[0, 1, 2, 3]])
    """
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} tokens, fewer than one sample of {length}")
    starts = torch.randint(len(tokens) - length + 1, (samples,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


def score_checkpoint(
    model: nn.Module, checkpoint: Checkpoint, names: Iterable[str], batches: Iterable[Tensor], criterion: str = "wanda"
) -> dict[str, Tensor]:
    """Scores of the tensors of a checkpoint, from the model that was loaded from it.

    Args:
        model: a causal language model; for gradients, only the scored parameters are left to require them.
        checkpoint: where it came from; its tensor names are those of the result.
        names: tensors to score. Those that are no layer of the model, or a convolution, are left out.
        batches: token indices, shape (batch, length) each.
        criterion: ``wanda`` (norms of the inputs), or a metric that reads gradients, summed over the batches:
            ``gradient``, ``snip``, ``taylor``, ``fisher``.

    Returns:
        Tensor name -> what :func:`pruneops.score_files.save_scores` takes.

    Raises:
        ValueError: the criterion is unknown, no tensor is a layer of the model, or one is a layer that no batch uses.

    Example:
        >>> batches = [torch.arange(128).reshape(1, 128)]
        >>> scores = score_checkpoint(model, checkpoint, checkpoint.tensors, batches)  # doctest: +SKIP
        >>> save_scores("scores.safetensors", scores)  # doctest: +SKIP
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    layers = find_layers(model, include="*", stacked="experts")
    layer_of = _layers_of(names, layers, getattr(model, "base_model_prefix", ""))
    wanted = set(layer_of.values())
    chosen = [layer for layer in layers if layer in wanted]
    if criterion == "wanda":
        found = norms_of(model, chosen, ({"input_ids": batch} for batch in batches))
        return {name: found[layer.name] for name, layer in layer_of.items() if layer.name in found}
    found = _gradient_scores(model, chosen, batches, criterion)
    ready = ((name, _of_tensor(checkpoint.tensor(name), layer, found[layer.name])) for name, layer in layer_of.items())
    return {name: score for name, score in ready if score is not None}


def _layers_of(names: Iterable[str], layers: list[PrunableLayer], prefix: str) -> dict[str, PrunableLayer]:
    """Tensor name -> layer; a checkpoint may lack the prefix of the model's body, or have one more."""
    by_name: dict[Any, PrunableLayer] = {}
    for layer in layers:
        if layer.weight.dim() == 2:
            by_name[layer.name] = layer
            if match := _IN_MODEL.fullmatch(layer.name):
                by_name[match["block"], match["matrix"], match["expert"]] = layer
    found = {}
    for name in names:
        known = [form for form in _forms(name.removesuffix(".weight"), prefix) if form in by_name]
        if known:
            found[name] = by_name[known[0]]
    if not found:
        raise ValueError("no tensor of the checkpoint is the weight of a linear layer of the model")
    return found


def _forms(name: str, prefix: str) -> Iterator[Any]:
    """What the model may know a tensor by: a name, or the place of an expert's matrix."""
    _, _, inner = name.partition(".")  # the body may have another name, as in Nemotron-H
    for form in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."), f"{prefix}.{inner}"):
        yield form
        if match := _IN_CHECKPOINT.fullmatch(form):
            block, expert, matrix = match.groups()
            yield block, matrix, expert
            yield block, _STACKS.get(matrix), expert


def _gradient_scores(
    model: nn.Module, layers: list[PrunableLayer], batches: Iterable[Tensor], metric: str
) -> dict[str, Tensor]:
    wanted = {id(layer.parameter) for layer in layers}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    scores = {x.name: torch.zeros(x.part(x.parameter).shape, device=x.parameter.device) for x in layers}
    unreached = set(scores)
    model.eval()
    for batch in batches:
        model.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        if loss.requires_grad:  # not where the model uses none of the layers
            loss.backward()
        # An expert that no token of the batch went to has no gradient, which counts as zeros.
        grads = {x.name: x.part(grad) for x in layers if (grad := x.parameter.grad) is not None}
        weights = [x.part(x.parameter.detach()) for x in layers if x.name in grads]
        ops.update_scores_([scores[name] for name in grads], weights, list(grads.values()), metric=metric, alpha=1.0)
        unreached -= grads.keys()
    if unreached:
        raise ValueError(f"no gradient of the loss reaches {listed(sorted(unreached))}; exclude what is not used")
    return scores


def _of_tensor(tensor: Tensor, layer: PrunableLayer, score: Tensor) -> Tensor | None:
    """What of a layer's score, as stored, belongs to a tensor: of ``gate_up_proj`` those rows that hold it."""
    if layer.index is None:
        return score
    weight, rows = layer.weight, len(tensor)
    halves = (slice(None), slice(rows), slice(rows, None), slice(0, None, 2), slice(1, None, 2))
    for part in halves:
        if torch.equal(weight[part], tensor.to(weight)):
            return layer.as_stored(score)[part]
    return None
