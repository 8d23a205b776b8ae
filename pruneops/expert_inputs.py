"""What goes into experts that one parameter stacks, which are no modules with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from .layers import PrunableLayer

#: Functions whose second argument is a matrix: out x in, or in x out.
_LINEAR = {linear}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


class ExpertInputs(TorchFunctionMode):
    """Calls back with the inputs of matrices while it is entered: each product with one of them is seen.

    Functions are looked at and not what they become, in which a matrix may be another one: a copy under autocast.

    Args:
        layers: matrices within stacked parameters.
        seen: called with the name of a layer and its inputs, shape (..., in).
    """

    def __init__(self, layers: Iterable[PrunableLayer], seen: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names: dict[Any, str] = {}
        self._stacks: dict[int, list[PrunableLayer]] = {}
        for layer in layers:
            self._names[_place(layer.weight)] = layer.name
            self._stacks.setdefault(id(layer.parameter), []).append(layer)
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if len(args) > 1 and isinstance(args[1], Tensor):
            if func in _LINEAR or func in _PRODUCTS:
                self._look(args[0], args[1].t() if func in _PRODUCTS and args[1].dim() == 2 else args[1])
            elif func is torch.bmm:
                self._look_at_all(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _look(self, inputs: Tensor, matrix: Tensor) -> None:
        if name := self._names.get(_place(matrix)):
            self._seen(name, inputs)

    def _look_at_all(self, inputs: Tensor, stack: Tensor) -> None:
        """All experts at once, with zeros for the tokens that were sent to others."""
        for layer in self._stacks.get(id(stack), ()):
            if layer.transposed:
                self._seen(layer.name, layer.part(inputs))


def _place(x: Tensor) -> tuple[Any, ...] | None:
    """Where in memory a tensor lies, and how."""
    return (x.device, x.data_ptr(), x.shape, x.stride()) if x.layout is torch.strided else None


@contextmanager
def one_by_one(configs: Iterable[Any]) -> Iterator[None]:
    """Experts that transformers multiplies one after the other, and not all in one kernel.

    Args:
        configs: the configurations of a model, those of its parts too.
    """
    found = [
        (config, config._experts_implementation) for config in configs if hasattr(config, "_experts_implementation")
    ]
    try:
        for config, _ in found:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, implementation in found:
            config._experts_implementation = implementation
