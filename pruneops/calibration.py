"""Activation-aware pruning: norms of the inputs of each layer, and Wanda block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import listed
from .expert_inputs import ExpertInputs, one_by_one
from .layers import Patterns, PrunableLayer, find_layers, stores_in_by_out, unlayered_weights, unwrapped
from .patterns import Pattern, parse_pattern
from .pruning import divisible_layers, layer_reports
from .report import LayerMasks, PruneReport
from .selection import apply_masks, check_limits, select_masks

#: Arguments of blocks that carry a cache of keys and values, which the second run of a block would find filled.
_CACHE = {"past_key_values", "past_key_value", "layer_past", "use_cache"}


def calibrate(
    model: nn.Module, batches: Iterable[Any], *, include: Patterns = None, exclude: Patterns = None
) -> dict[str, Tensor]:
    """The norms of the inputs that the linear layers of a model get, in one pass over some batches.

    Nothing but one running sum per input channel is held. With the norms, ``prune(criterion="wanda",
    input_norms=norms)`` prunes at any sparsity and pattern, without another pass. Of experts that transformers stacks,
    each gets the norms of the tokens that were sent to it; one that no token reached gets ones, which rank by abs(w)
    alone, and a warning names it.

    Args:
        model: any module; it is run in evaluation mode, without a cache of keys and values. What ``torch.compile`` or
            data-parallel wrappers made is unwrapped.
        batches: what the model is called with: tensors, tuples of arguments, or mappings of keyword arguments.
            Each token counts, padding too.
        include, exclude: which layers, see :func:`pruneops.layers.find_layers`. Convolutions and embeddings are left
            out.

    Returns:
        Layer name -> float32 tensor of shape (in,): the L2 norm of each input channel over all tokens.

    Raises:
        ValueError: there are no batches or no linear layers, or a layer (of stacked experts all) is never called.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> calibrate(model, [torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, 0.0]])])
        {'0': tensor([5., 1.])}
    """
    model = unwrapped(model)
    return norms_of(model, find_layers(model, include, exclude, stacked="experts"), batches)


def norms_of(model: nn.Module, layers: list[PrunableLayer], batches: Iterable[Any]) -> dict[str, Tensor]:
    """As :func:`calibrate`, of the linear ones of some layers.

    Args:
        model: the module, unwrapped.
        layers: of :func:`pruneops.layers.find_layers`.
        batches: what the model is called with.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> norms_of(model, find_layers(model), [torch.tensor([[3.0, 1.0]])])
        {'0': tensor([3., 1.])}
    """
    with _evaluating(model), _Norms(model, _linear(model, layers, "calibrate"), "calibrate") as norms:
        if not sum(1 for batch in batches for _ in [_call(model, batch)]):
            raise ValueError("calibrate: there are no batches")
    return norms.result()


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
    activations only the inputs of one block are held, for all batches. Layers outside of the blocks stay as they are.

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
            :func:`calibrate` and :func:`pruneops.prune` are the way.

    Example:
        >>> report = wanda(model, tokens.split(8), 0.5)  # doctest: +SKIP
    """
    if scope not in ("row", "local"):
        raise ValueError(f"wanda: scope must be 'row' or 'local', got {scope!r}")
    form = parse_pattern(pattern)
    model = unwrapped(model)
    name, chain = _find_blocks(model, blocks)
    found = find_layers(model, include, exclude, stacked="experts")
    found = _inside(name, chain, _linear(model, found, "wanda"))
    layers, skipped = divisible_layers(found, form, on_indivisible, "wanda")
    check_limits({x.name: x.weight.shape for x in layers}, sparsity=sparsity, pattern=form, scope=scope)
    masks: dict[str, Tensor] = {}
    with _evaluating(model):
        calls = _record(model, chain, name, batches)
        for i, block in enumerate(chain):
            inside = set(map(id, block.parameters()))
            mine = [x for x in layers if x.name not in masks and id(x.parameter) in inside]
            if mine:
                with _Norms(model, mine, "wanda") as norms:
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


class _Norms:
    """Sums the squares of the inputs of layers while it is entered."""

    def __init__(self, model: nn.Module, layers: list[PrunableLayer], caller: str) -> None:
        self._caller = caller
        self._layers = layers
        self._sums: dict[str, Tensor] = {}
        self._entered = ExitStack()
        self._experts = [layer for layer in layers if layer.index is not None]
        names = {id(layer.parameter): layer.name for layer in layers if layer.index is None}
        # A shared weight gets the inputs of all modules that use it.
        self._modules = [
            (module, names[id(module.weight)])
            for module in _linear_modules(model)
            if id(module._parameters.get("weight")) in names
        ]

    def __enter__(self) -> _Norms:
        for module, name in self._modules:
            self._entered.callback(module.register_forward_pre_hook(self._hook(name)).remove)
        if self._experts:
            self._entered.enter_context(ExpertInputs(self._experts, self._add))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _hook(self, name: str) -> Any:
        return lambda module, inputs: self._add(name, inputs[0])

    def _add(self, name: str, inputs: Tensor) -> None:
        x = inputs.detach().flatten(0, -2) if inputs.dim() > 1 else inputs.detach()[None]
        # Sums over many batches lose nothing in float64; each batch is summed where it is.
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(0).double()
        self._sums[name] = self._sums[name] + squares if name in self._sums else squares

    def result(self) -> dict[str, Tensor]:
        """Layer name -> norms."""
        unreached = [layer for layer in self._layers if layer.name not in self._sums]
        reached = {id(layer.parameter) for layer in self._experts if layer.name in self._sums}
        for layer in unreached:
            if id(layer.parameter) not in reached:
                raise ValueError(f"{self._caller}: layer {layer.name!r} got no input; exclude it")
            self._sums[layer.name] = torch.ones(layer.weight.shape[1], device=layer.weight.device)
        if unreached:
            warnings.warn(
                f"{self._caller}: no token reached {len(unreached)} of {len(self._experts)} matrices of experts, which "
                f"are ranked by abs(w) alone: {listed([layer.name for layer in unreached], 3)}",
                UserWarning,
                stacklevel=3,
            )
        return {layer.name: self._sums[layer.name].sqrt().float() for layer in self._layers}


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
            _call(model, batch)
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


def _linear_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear) or stores_in_by_out(module)]


def _linear(model: nn.Module, found: list[PrunableLayer], caller: str) -> list[PrunableLayer]:
    linear = {id(module._parameters.get("weight")) for module in _linear_modules(model)}
    layers = [layer for layer in found if layer.index is not None or id(layer.parameter) in linear]
    if not layers:
        listed = ", ".join(layer.name for layer in found)
        raise ValueError(f"{caller}: no layer is left to prune: none of these is linear: {listed}")
    return layers


def _inside(name: str, chain: list[nn.Module], layers: list[PrunableLayer]) -> list[PrunableLayer]:
    """The layers that lie in the blocks."""
    inside = {id(p) for block in chain for p in block.parameters()}
    found = [layer for layer in layers if id(layer.parameter) in inside]
    if not found:
        listed = ", ".join(layer.name for layer in layers)
        raise ValueError(f"wanda: no layer is left to prune: none of these lies in the blocks {name!r}: {listed}")
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no cache of keys and values, which a second run would extend, and experts that are
    seen one by one.
    """
    training = {module: module.training for module in model.modules()}
    configs = _configs(model)
    caching = [(config, config.use_cache) for config in configs if getattr(config, "use_cache", None)]
    model.eval()
    try:
        for config, _ in caching:
            config.use_cache = False
        with torch.no_grad(), one_by_one(configs):
            yield
    finally:
        for config, caches in caching:
            config.use_cache = caches
        for module, mode in training.items():
            module.training = mode


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of all modules, with those in them: parts of a model, such as a decoder, have their own."""
    found: dict[int, Any] = {}
    todo = [module.config for module in model.modules() if hasattr(module, "config")]
    while todo:
        config = todo.pop()
        if id(config) not in found and hasattr(config, "to_dict"):
            found[id(config)] = config
            todo += vars(config).values()
    return list(found.values())


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "use_cache"})
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _first(output: Any) -> Any:
    """The hidden states of a block's output."""
    return output[0] if isinstance(output, tuple) else output
