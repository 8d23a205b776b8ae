"""What goes into the layers of a model: norms of their inputs, by which Wanda ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import listed
from .expert_inputs import ExpertInputs, one_by_one
from .layers import Patterns, PrunableLayer, find_layers, stores_in_by_out, unwrapped


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
        Layer name -> float32 tensor of shape (in,): the L2 norm of each input channel over all tokens. Layers that are
        never called are left out, and a warning names them.

    Raises:
        ValueError: there are no batches or no linear layers, or none is called.

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
    with evaluating(model), Norms(model, linear_layers(model, layers, "calibrate"), "calibrate") as norms:
        if not sum(1 for batch in batches for _ in [run_batch(model, batch)]):
            raise ValueError("calibrate: there are no batches")
    norms.leave_out_unreached()
    return norms.result()


class Norms:
    """Sums the squares of the inputs of layers while it is entered.

    Args:
        model: the module, run within :func:`evaluating`.
        layers: of :func:`linear_layers`.
        caller: what messages begin with.
    """

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

    def __enter__(self) -> Norms:
        for module, name in self._modules:
            self._entered.callback(module.register_forward_pre_hook(self._hook(name), with_kwargs=True).remove)
        if self._experts:
            self._entered.enter_context(ExpertInputs(self._experts, self._add))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._add(name, args[0] if args else next(iter(kwargs.values())))

        return see

    def _add(self, name: str, inputs: Tensor) -> None:
        x = inputs.detach().flatten(0, -2) if inputs.dim() > 1 else inputs.detach()[None]
        # Sums over many batches lose nothing in float64; each batch is summed where it is.
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(0).double()
        self._sums[name] = self._sums[name] + squares if name in self._sums else squares

    def leave_out_unreached(self) -> list[PrunableLayer]:
        """The layers that got an input, with those stacked beside one that did; a warning names the others.

        Raises:
            ValueError: none got one.
        """
        reached = {id(layer.parameter) for layer in self._layers if layer.name in self._sums}
        others = [layer.name for layer in self._layers if id(layer.parameter) not in reached]
        if not reached:
            raise ValueError(f"{self._caller}: no layer got an input: {listed(others, 3)}")
        if others:
            warnings.warn(
                f"{self._caller}: {len(others)} layers got no input that can be seen and are left out, as those are "
                f"whose weight something else than the layer reads: {listed(others, 3)}",
                UserWarning,
                stacklevel=4,
            )
        self._layers = [layer for layer in self._layers if id(layer.parameter) in reached]
        return self._layers

    def result(self) -> dict[str, Tensor]:
        """Layer name -> norms; ones for an expert without tokens, and a warning."""
        unreached = [layer for layer in self._layers if layer.name not in self._sums]
        for layer in unreached:
            self._sums[layer.name] = torch.ones(layer.weight.shape[1], device=layer.weight.device)
        if unreached:
            warnings.warn(
                f"{self._caller}: no token reached {len(unreached)} of {len(self._experts)} matrices of experts, which "
                f"are ranked by abs(w) alone: {listed([layer.name for layer in unreached], 3)}",
                UserWarning,
                stacklevel=3,
            )
        return {layer.name: self._sums[layer.name].sqrt().float() for layer in self._layers}


def _linear_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear) or stores_in_by_out(module)]


def linear_layers(model: nn.Module, found: list[PrunableLayer], caller: str) -> list[PrunableLayer]:
    """The linear ones of some layers, and experts.

    Raises:
        ValueError: there are none.
    """
    linear = {id(module._parameters.get("weight")) for module in _linear_modules(model)}
    layers = [layer for layer in found if layer.index is not None or id(layer.parameter) in linear]
    if not layers:
        names = listed([layer.name for layer in found])
        raise ValueError(f"{caller}: no layer is left to prune: none of these is linear: {names}")
    return layers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
    for config in todo:  # outer ones first: what is set in one is set in those in it
        if id(config) not in found and hasattr(config, "to_dict"):
            found[id(config)] = config
            todo += vars(config).values()
    return list(found.values())


def run_batch(model: nn.Module, batch: Any) -> Any:
    """What a model gives for one of the batches of :func:`calibrate`."""
    if isinstance(batch, Mapping):
        return model(**{key: value for key, value in batch.items() if key != "use_cache"})
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
