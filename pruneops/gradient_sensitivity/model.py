"""One view of what is pruned: an ``nn.Module``, or an object with Neural Compressor's model interface."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..layers import stores_in_by_out, unwrapped
from .structure import find_group
from .surgery import replace

INTERFACE = (
    "get_all_weight_names",
    "get_weight",
    "get_gradient",
    "get_inputs",
    "update_weights",
    "register_forward_pre_hook",
    "remove_hooks",
)


class Model(Protocol):
    """What the pruner reads and writes, as tensors on the device where they lie."""

    @property
    def identity(self) -> int:
        """The same number for all views of one model."""

    def names(self) -> list[str]:
        """Names of all weights."""

    def weight(self, name: str) -> Tensor:
        """A weight without its graph."""

    def gradient(self, name: str, key: str) -> Tensor:
        """Its gradient; ``key`` is the setting that asks for it."""

    def by_outputs(self, name: str, x: Tensor) -> Sequence[Tensor]:
        """A weight or its gradient with the outputs along the first dimension: the parts that have all of them each."""

    def is_stacked(self, name: str) -> bool:
        """Whether a weight stacks matrices along its first dimension: experts do, a Conv1d does not."""

    def input_gradient(self, name: str) -> Tensor | None:
        """Gradient of an input of the last forward pass; None where the model was not given that input."""

    def write(self, name: str, value: Tensor) -> None:
        """Replace a weight."""

    def watch_inputs(self, names: Sequence[str]) -> None:
        """Look at the named inputs of each forward pass."""

    def stop_watching(self) -> None:
        """End of :meth:`watch_inputs`."""


def as_model(model: Any) -> Model:
    """The view of ``model``.

    Neural Compressor's own ``PyTorchModel`` is seen as the module in it, which is then resized too.

    Raises:
        TypeError: ``model`` is neither a module nor has the methods of the interface.
    """
    if all(callable(getattr(model, method, None)) for method in INTERFACE):
        inner = getattr(model, "model", None)
        return ModuleModel(inner) if isinstance(inner, nn.Module) else InterfaceModel(model)
    if isinstance(model, nn.Module):
        return ModuleModel(model)
    missing = ", ".join(method for method in INTERFACE if not callable(getattr(model, method, None)))
    raise TypeError(
        f"model must be a torch.nn.Module or have INC's model interface; {type(model).__name__} lacks {missing}"
    )


class ModuleModel:
    """An ``nn.Module``; what ``torch.compile`` or data-parallel wrappers made is unwrapped."""

    def __init__(self, module: nn.Module) -> None:
        self.module = unwrapped(module)
        self._called = module
        self._parts: dict[str, int] = {}
        self._inputs: dict[str, Any] = {}
        self._hook: Any = None

    @property
    def identity(self) -> int:
        return id(self.module)

    def names(self) -> list[str]:
        return [name for name, _ in self.module.named_parameters()]

    def weight(self, name: str) -> Tensor:
        return self._parameter(name).detach()

    def gradient(self, name: str, key: str) -> Tensor:
        parameter = self._parameter(name)
        if parameter.grad is None:
            why = "call backward() first" if parameter.requires_grad else "it is frozen (requires_grad=False)"
            raise ValueError(f"{key}: {name!r} has no gradient: {why}")
        return parameter.grad

    def by_outputs(self, name: str, x: Tensor) -> Sequence[Tensor]:
        owner = self.module.get_submodule(name.rpartition(".")[0])
        if name not in self._parts:  # asked for in every step, and no cut changes it
            group = find_group(self.module, name)
            self._parts[name] = 1 if group is None else group.slice_of(name).parts
        return (x.t() if x.dim() == 2 and stores_in_by_out(owner) else x).chunk(self._parts[name])

    def is_stacked(self, name: str) -> bool:
        # Both have three dimensions. The parts of a parametrized weight lie in a module of their own.
        path = name.rpartition(".")[0].partition("parametrizations.")[0].removesuffix(".")
        return self._parameter(name).dim() == 3 and not isinstance(self.module.get_submodule(path), _ConvNd)

    def input_gradient(self, name: str) -> Tensor | None:
        value = self._inputs.get(name)
        grad = value.grad if isinstance(value, Tensor) else None
        if grad is None and value is not None and name in inspect.signature(self.module.forward).parameters:
            raise ValueError(f"input {name!r} has no gradient: let it require one, and call backward()")
        return grad

    def write(self, name: str, value: Tensor) -> None:
        path, _, key = name.rpartition(".")
        replace(self.module.get_submodule(path), key, value)

    def watch_inputs(self, names: Sequence[str]) -> None:
        if self._hook is None and names:
            see = partial(self._see, names)
            # A compiled module was traced without this hook.
            self._hook = self._called.register_forward_pre_hook(see, with_kwargs=True)

    def stop_watching(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._inputs = {}

    def _see(self, names: Sequence[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs | inspect.signature(self.module.forward).bind(*args, **kwargs).arguments
        self._inputs = {name: given.get(name) for name in names}
        for value in self._inputs.values():
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                value.retain_grad()

    def _parameter(self, name: str) -> nn.Parameter:
        try:
            return self.module.get_parameter(name)
        except AttributeError as error:
            raise ValueError(f"the model has no weight {name!r}") from error


class InterfaceModel:
    """An object with Neural Compressor's model interface; it gets back the kind of array that it gives."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def identity(self) -> int:
        return id(self.model)

    def names(self) -> list[str]:
        return list(self.model.get_all_weight_names())

    def weight(self, name: str) -> Tensor:
        return _tensor(name, self.model.get_weight(name), "weight")

    def gradient(self, name: str, key: str) -> Tensor:
        return _tensor(name, self.model.get_gradient(name), "gradient")

    def by_outputs(self, name: str, x: Tensor) -> Sequence[Tensor]:
        return (x,)

    def is_stacked(self, name: str) -> bool:
        return self.weight(name).dim() == 3

    def input_gradient(self, name: str) -> Tensor | None:
        return _tensor(name, self.model.get_gradient(self.model.get_inputs(input_name=name)), "gradient")

    def write(self, name: str, value: Tensor) -> None:
        as_numpy = isinstance(self.model.get_weight(name), np.ndarray)
        self.model.update_weights(name, value.numpy() if as_numpy else value)

    def watch_inputs(self, names: Sequence[str]) -> None:
        self.model.register_forward_pre_hook()

    def stop_watching(self) -> None:
        self.model.remove_hooks()


def _tensor(name: str, value: Any, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"the model gives no {what} of {name!r}")
    return torch.as_tensor(value).detach()
