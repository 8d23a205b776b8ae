"""Wanda: pruning of a transformer by its weights and what goes into them, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ._checks import listed
from .calibration import Norms, evaluating, linear_layers, run_batch
from .layers import Patterns, PrunableLayer, find_layers, unlayered_weights, unwrapped
from .patterns import Pattern, parse_pattern
from .pruning import divisible_layers, layer_reports
from .report import LayerMasks, PruneReport
from .selection import apply_masks, check_limits, select_masks

#: Arguments of blocks that carry a cache of keys and values, which the second run of a block would find filled.
_CACHE = {"past_key_values", "past_key_value", "layer_past", "use_cache"}


def wanda(
    model: nn.Module,
    batches: Iterable[Any],
    sparsity: float | None = None,
    *,
    pattern: str | Pattern = "1x1",
    scope: str = "row",
    blocks: str | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    on_indivisible: str = "skip",
) -> PruneReport:
    """Prune a transformer in place by abs(w) times the norm of the weight's input (Wanda: Sun et al., 2024).

    Block by block, as published: a block is calibrated on what the blocks before it, already pruned, give. Of the
    activations only the inputs of one block are held, for all batches. Layers outside of the blocks stay as they are,
    and with a warning those that are never called.

    Args:
        model: a model that is a chain of blocks, such as the decoder layers of a language model; run and unwrapped as
            in :func:`calibrate`.
        batches: as in :func:`calibrate`; they are gone through once.
        sparsity: share to prune of each row or layer; None for an N:M pattern, which gives it.
        pattern: see :func:`pruneops.parse_pattern`.
        scope: ``row`` (each output channel, as published) or ``local`` (each layer).
        blocks: name of the ``nn.ModuleList`` of blocks; by default the one with the most weights in it.
        include, exclude: which layers, see :func:`pruneops.layers.find_layers`. Convolutions and embeddings are left
            out.
        on_indivisible: a layer that the pattern does not divide: ``skip`` or ``error``.

    Returns:
        The report, with counts per layer and masks.

    Raises:
        ValueError: an argument is out of range, there are no batches, or the model is no chain of blocks; then
            :func:`calibrate` and :func:`pruneops.prune` are the way. Nothing is changed.

    Example:
        >>> report = wanda(model, tokens.split(8), 0.5)  # doctest: +SKIP
    """
    if scope not in ("row", "local"):
        raise ValueError(f"wanda: scope must be 'row' or 'local', got {scope!r}")
    form = parse_pattern(pattern)
    model = unwrapped(model)
    name, chain = _find_blocks(model, blocks)
    found = find_layers(model, include, exclude, stacked="experts")
    found = _inside(name, chain, linear_layers(model, found, "wanda"))
    layers, skipped = divisible_layers(found, form, on_indivisible, "wanda")
    check_limits({x.name: x.weight.shape for x in layers}, sparsity=sparsity, pattern=form, scope=scope)
    masks: dict[str, Tensor] = {}
    with evaluating(model):
        with Norms(model, layers, "wanda") as dense:
            calls = _record(model, chain, name, batches)
        layers = dense.leave_out_unreached()
        for i, block in enumerate(chain):
            inside = set(map(id, block.parameters()))
            mine = [x for x in layers if x.name not in masks and id(x.parameter) in inside]
            if mine:
                with Norms(model, mine, "wanda") as norms:
                    for call in calls:
                        call.run(block, i)
                weights = {x.name: x.weight for x in mine}
                chosen = select_masks(
                    weights, sparsity=sparsity, pattern=form, scope=scope, metric="wanda", input_norms=norms.result()
                )
                apply_masks(weights, chosen, form)
                masks |= chosen
            for call in calls:
                call.hidden = call.run(block, i)
    layers = [layer for layer in layers if layer.name in masks]
    return PruneReport(
        layers=layer_reports(layers, masks),
        criterion="wanda",
        pattern=form.spec,
        scope=scope,
        seconds={},
        skipped=tuple(skipped),
        masks=LayerMasks(layers, masks, form),
        unlayered=unlayered_weights(model, stacked="experts"),
    )


@dataclass
class _Call:
    """One batch on its way through the chain: what the next block gets, and the further arguments of each block."""

    hidden: Any = None
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    output: Any = None

    def run(self, block: nn.Module, i: int) -> Any:
        args, kwargs = self.arguments[i]
        return _first(block(self.hidden, *args, **kwargs))


class _Recorder:
    """Hooks that note how each block is called, and that each is fed with the output of the one before."""

    def __init__(self, name: str) -> None:
        self.calls: list[_Call] = []
        self._name = name

    def before(self, i: int) -> Any:
        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self.calls[-1]
            hidden = args[0] if args else kwargs.get("hidden_states")
            expected = hidden if i == 0 else call.output
            if not isinstance(hidden, Tensor) or hidden is not expected or len(call.arguments) != i:
                raise ValueError(
                    f"wanda: the blocks {self._name!r} are no chain in which each gets what the one before gives; "
                    "use calibrate() and prune(criterion='wanda') instead"
                )
            if i == 0:
                call.hidden = hidden
            used = _CACHE if args else _CACHE | {"hidden_states"}
            rest = {key: value for key, value in kwargs.items() if key not in used}
            call.arguments.append((args[1:], rest))

        return note

    def after(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.calls[-1].output = _first(output)


def _record(model: nn.Module, chain: list[nn.Module], name: str, batches: Iterable[Any]) -> list[_Call]:
    """Run the dense model once; the calls of its blocks, with the inputs of the first one."""
    recorder = _Recorder(name)
    handles = [block.register_forward_pre_hook(recorder.before(i), with_kwargs=True) for i, block in enumerate(chain)]
    handles += [block.register_forward_hook(recorder.after) for block in chain]
    try:
        for batch in batches:
            recorder.calls.append(_Call())
            run_batch(model, batch)
            recorder.calls[-1].output = None
    finally:
        for handle in handles:
            handle.remove()
    if not recorder.calls:
        raise ValueError("wanda: there are no batches")
    return recorder.calls


def _find_blocks(model: nn.Module, name: str | None) -> tuple[str, list[nn.Module]]:
    """The chain of blocks: the named ``nn.ModuleList``, or the outermost with the most weights."""
    lists = {key: x for key, x in model.named_modules() if isinstance(x, nn.ModuleList) and len(x)}
    if name is None and lists:
        name = max(lists, key=lambda key: sum(p.numel() for p in lists[key].parameters()))
    if name is None or name not in lists:
        known = ", ".join(lists) or "none"
        raise ValueError(f"wanda: blocks must name an nn.ModuleList, got {name!r}; those of this model: {known}")
    return name, list(lists[name])


def _inside(name: str, chain: list[nn.Module], layers: list[PrunableLayer]) -> list[PrunableLayer]:
    """The layers that lie in the blocks."""
    inside = {id(p) for block in chain for p in block.parameters()}
    found = [layer for layer in layers if id(layer.parameter) in inside]
    if not found:
        names = listed([layer.name for layer in layers])
        raise ValueError(f"wanda: no layer is left to prune: none of these lies in the blocks {name!r}: {names}")
    return found


def _first(output: Any) -> Any:
    """The hidden states of a block's output."""
    return output[0] if isinstance(output, tuple) else output
