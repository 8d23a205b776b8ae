"""Scores of a Hugging Face language model from text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from ._checks import SCORE_METRICS, listed
from .calibration import calibrate
from .checkpoint import Checkpoint
from .layers import find_layers

#: What can be scored from text: the inputs, or the gradients of the language model's loss.
CRITERIA = ("wanda", *(metric for metric, (_, grad) in SCORE_METRICS.items() if grad))


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
    modules = _modules_of(model, names)
    include = [f"re:^{re.escape(name)}$" for name in modules]
    if criterion == "wanda":
        found = calibrate(model, ({"input_ids": batch} for batch in batches), include=include)
    else:
        found = _gradient_scores(model, include, batches, criterion)
    return {modules[name]: score for name, score in found.items()}


def _modules_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Module name -> tensor name; a checkpoint may lack the prefix of the model's body, or have one more."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    layers = {layer.name for layer in find_layers(model, include="*") if layer.parameter.dim() == 2}
    found = {}
    for name in names:
        stem = name.removesuffix(".weight")
        for form in (stem, prefix + stem, stem.removeprefix(prefix)):
            if form in layers:
                found[form] = name
                break
    if not found:
        raise ValueError("no tensor of the checkpoint is the weight of a linear layer of the model")
    return found


def _gradient_scores(model: nn.Module, include: list[str], batches: Iterable[Tensor], metric: str) -> dict[str, Tensor]:
    layers = find_layers(model, include)
    wanted = {id(layer.parameter) for layer in layers}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    scores = {layer.name: torch.zeros(layer.parameter.shape, device=layer.parameter.device) for layer in layers}
    unreached = set(scores)
    model.eval()
    for batch in batches:
        model.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        if loss.requires_grad:  # not where the model uses none of the layers
            loss.backward()
        # An expert that no token of the batch went to has no gradient, which counts as zeros.
        grads = {layer.name: grad for layer in layers if (grad := layer.parameter.grad) is not None}
        weights = [layer.parameter.detach() for layer in layers if layer.name in grads]
        ops.update_scores_([scores[name] for name in grads], weights, list(grads.values()), metric=metric, alpha=1.0)
        unreached -= grads.keys()
    if unreached:
        raise ValueError(f"no gradient of the loss reaches {listed(sorted(unreached))}; exclude what is not used")
    return scores
