"""One-shot pruning of a module."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .criteria import (
    GradientCriterion,
    MagnitudeCriterion,
    RetrainFreeCriterion,
    SnipCriterion,
    SnipMomentumBlockCriterion,
    SnipMomentumCriterion,
    criterion_class,
    get_criterion,
)
from .layers import Patterns, PrunableLayer, Stacked, find_layers, unlayered_weights, unwrapped
from .patterns import Pattern, parse_pattern
from .report import LayerMasks, LayerReport, PruneReport
from .selection import apply_masks, block_scores, select_masks

#: What one step of these criteria ranks by; selection computes it on the fly, so that no score is stored.
_METRICS = {
    MagnitudeCriterion: "magnitude",
    GradientCriterion: "gradient",
    SnipCriterion: "snip",
    SnipMomentumCriterion: "snip",
    SnipMomentumBlockCriterion: "mask_gradient",
    RetrainFreeCriterion: "mask_fisher",
}


def prune(
    model: nn.Module,
    sparsity: float | None,
    *,
    criterion: str = "magnitude",
    pattern: str | Pattern = "1x1",
    scope: str | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    min_sparsity: float | None = None,
    max_sparsity: float | None = None,
    input_norms: Mapping[str, Tensor] | None = None,
    on_indivisible: str = "skip",
) -> PruneReport:
    """Prune a model in place, in one shot, to an exact sparsity.

    Of the weights of Linear, Conv1d/2d/3d and GPT-2's Conv1D layers, of ``nn.MultiheadAttention`` and of experts that
    transformers stacks, all but those excluded by default (embeddings, norms, output heads, adapters, routers: see
    :func:`pruneops.layers.find_layers`), the lowest-scoring ones become +0.0; the others keep their bits. A parameter
    that modules share is counted and pruned once. Everything is checked before the first weight changes.

    Args:
        model: any module, on one device. What ``torch.compile`` or data-parallel wrappers made is unwrapped.
        sparsity: share to prune, 0 <= sparsity < 1: exactly ``int(sparsity * n)`` of the n entries (or blocks) of
            all layers, each layer or each row, by ``scope``. With an N:M pattern None, or what it gives.
        criterion: ``magnitude`` needs no data; ``gradient``, ``snip``, ``snip_momentum`` and for block patterns
            ``snip_momentum_block``, ``retrain_free`` use the gradients that are there; ``wanda`` uses
            ``input_norms``; or any other registered criterion, of which one step is taken.
        pattern: ``1x1``, ``NxM``, ``channelx1``, ``1xchannel`` or ``N:M``; see :func:`pruneops.parse_pattern`.
        scope: ``global``, ``local`` (each layer) or ``row`` (each output channel). By default ``global``, but
            ``row`` for ``wanda``, whose scores of different rows do not compare.
        include: globs or ``re:`` expressions of names to prune, even if excluded by default.
        exclude: the same of names not to prune.
        min_sparsity: lowest sparsity of each layer in a global selection.
        max_sparsity: highest sparsity of each layer in a global selection.
        input_norms: for ``wanda``, and only there: layer name -> norms of its inputs, of :func:`pruneops.calibrate`.
            Layers without them are left alone.
        on_indivisible: a layer that the pattern does not divide: ``skip`` (one warning lists them) or ``error``.

    Returns:
        The report, with counts per layer, seconds and masks.

    Raises:
        ValueError: an argument is out of range, nothing is left to prune, or a gradient is missing; it names the
            argument, layer or parameter.
        TypeError: an argument is not of the kind named above.

    Example:
        >>> report = prune(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)), 0.5)
        >>> report.total, report.kept
        (48, 24)
    """
    form = parse_pattern(pattern)
    metric = "wanda" if criterion == "wanda" else _METRICS.get(criterion_class(criterion))
    scope = scope or ("row" if metric == "wanda" else "global")
    if metric == "wanda" and input_norms is None:
        raise ValueError("prune: criterion 'wanda' needs input_norms; pruneops.calibrate collects them")
    if metric != "wanda" and input_norms is not None:
        raise ValueError(f"prune: criterion {criterion!r} does not read input_norms; criterion='wanda' does")
    model = unwrapped(model)
    # Of what nn.MultiheadAttention stacks no inputs are measured.
    stacked: Stacked = "experts" if metric == "wanda" else True
    found = find_layers(model, include, exclude, stacked=stacked)
    if input_norms is not None:
        found = _with_norms(found, input_norms)
    layers, skipped = divisible_layers(found, form, on_indivisible)
    weights = {layer.name: layer.weight for layer in layers}
    if metric and metric.startswith("mask_") and not form.block:
        raise ValueError(f"prune: criterion {criterion!r} scores blocks, but pattern {form.spec!r} has none")
    seconds: dict[str, float] = {}
    grads = _gradients(layers, criterion) if metric not in (None, "magnitude", "wanda") else None
    with _timed(seconds, "score", weights):
        scores = None
        if metric is None:
            scores = _one_step(criterion, layers, form)
        elif form.block and metric != "wanda":
            scores = block_scores(weights, form, metric, grads)
    with _timed(seconds, "select", weights):
        masks = select_masks(weights, sparsity=sparsity, pattern=form, scope=scope, metric=metric or "magnitude",
                             scores=scores, grads=grads, input_norms=input_norms, min_sparsity=min_sparsity,
                             max_sparsity=max_sparsity)  # fmt: skip
    with _timed(seconds, "apply", weights):
        apply_masks(weights, masks, form)
    return PruneReport(
        layers=layer_reports(layers, masks),
        criterion=criterion,
        pattern=form.spec,
        scope=scope,
        seconds=seconds,
        skipped=tuple(skipped),
        masks=LayerMasks(layers, masks, form),
        unlayered=unlayered_weights(model, stacked=stacked),
    )


def divisible_layers(
    layers: list[PrunableLayer], form: Pattern, on_indivisible: str, caller: str = "prune"
) -> tuple[list[PrunableLayer], list[str]]:
    """The layers that a pattern divides, and the names of the others.

    Args:
        layers: of :func:`pruneops.layers.find_layers`; none where others have taken them all.
        form: the pattern.
        on_indivisible: ``skip`` (one warning lists the others) or ``error``.
        caller: what messages begin with.

    Raises:
        ValueError: nothing is left, or something is left over and ``on_indivisible`` is ``error``.
    """
    if on_indivisible not in ("skip", "error"):
        raise ValueError(f"{caller}: on_indivisible must be 'skip' or 'error', got {on_indivisible!r}")
    if not layers:
        raise ValueError(f"{caller}: no layer is left to prune: an earlier rule has taken each that this one names")
    odd = [layer for layer in layers if not form.divides(layer.weight.shape)]
    if odd:
        listed = ", ".join(f"{layer.name} {list(layer.weight.shape)}" for layer in odd)
        message = f"{caller}: pattern {form.spec!r} does not divide {len(odd)} layers: {listed}"
        if on_indivisible == "error":
            raise ValueError(message)
        if len(odd) == len(layers):
            raise ValueError(f"{message}; no layer is left to prune")
        warnings.warn(f"{message}; they are skipped", UserWarning, stacklevel=3)
    return [layer for layer in layers if layer not in odd], [layer.name for layer in odd]


def _with_norms(layers: list[PrunableLayer], input_norms: Mapping[str, Tensor]) -> list[PrunableLayer]:
    found = [layer for layer in layers if layer.name in input_norms]
    if not found:
        named, known = (", ".join(list(names)[:5]) or "none" for names in (input_norms, [x.name for x in layers]))
        raise ValueError(
            f"prune: no layer is left to prune: input_norms has none of them; its names begin with {named}, those of "
            f"the layers with {known}"
        )
    return found


def _gradients(layers: list[PrunableLayer], criterion: str) -> dict[str, Tensor]:
    found = {}
    for layer in layers:
        if layer.weight.grad is None:
            why = "run a backward pass first" if layer.parameter.requires_grad else "it is frozen (requires_grad=False)"
            raise ValueError(
                f"prune: criterion {criterion!r} needs gradients, and the weight of {layer.name!r} has none: {why}"
            )
        found[layer.name] = layer.weight.grad
    return found


@torch.no_grad()
def _one_step(name: str, layers: list[PrunableLayer], form: Pattern) -> dict[str, Tensor]:
    """The scores after one step of a registered criterion."""
    config = {"criterion_type": name, "end_step": 1, "pattern": form.spec, "block_scores": form.block is not None}
    criterion = get_criterion(config, {layer.name: layer for layer in layers})
    criterion.on_step_begin()
    criterion.on_before_optimizer_step()
    criterion.on_after_optimizer_step()
    return criterion.scores


@contextmanager
def _timed(seconds: dict[str, float], step: str, weights: dict[str, Tensor]) -> Iterator[None]:
    """Measure a step; on a CUDA device up to the end of its kernels."""
    start = time.perf_counter()
    yield
    for device in {weight.device for weight in weights.values() if weight.is_cuda}:
        torch.cuda.synchronize(device)
    seconds[step] = time.perf_counter() - start


def layer_reports(layers: list[PrunableLayer], masks: dict[str, Tensor]) -> tuple[LayerReport, ...]:
    """The counts of each layer from its mask, which has one entry per weight or per block."""
    if not layers:
        return ()
    kept = torch.stack([masks[layer.name].sum() for layer in layers]).tolist()
    reports = []
    for layer, units in zip(layers, kept, strict=True):
        total = layer.weight.numel()
        per_unit = total // max(masks[layer.name].numel(), 1)
        shape = tuple(layer.as_stored(layer.weight).shape)
        reports.append(LayerReport(layer.name, shape, total, units * per_unit))
    return tuple(reports)
