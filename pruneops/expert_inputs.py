"""What goes into experts that one parameter stacks, which are no modules with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .layers import PrunableLayer

#: Products that linear layers become, and where among their arguments the inputs and the matrix, in x out, stand.
_PRODUCTS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}


class ExpertInputs(TorchDispatchMode):
    """Calls back with the inputs of matrices while it is entered: each product with one of them is seen.

    Args:
        layers: matrices within stacked parameters.
        seen: called with the name of a layer and its inputs, shape (tokens, in).
    """

    def __init__(self, layers: Iterable[PrunableLayer], seen: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names = {_place(layer.weight.t()): layer.name for layer in layers}
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            inputs, matrix = (args[i] for i in _PRODUCTS[func])
            is_plain = type(matrix) is Tensor and matrix.layout is torch.strided
            if is_plain and (name := self._names.get(_place(matrix))):
                self._seen(name, inputs)
        return func(*args, **(kwargs or {}))


def _place(x: Tensor) -> tuple[Any, ...]:
    """Where in memory a tensor lies, and how."""
    return x.device, x.data_ptr(), x.shape, x.stride()


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
