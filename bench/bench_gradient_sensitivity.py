"""Steps of gradient-sensitivity importance on the shapes of BERT-base, beside Neural Compressor's NumPy path.

``heads and neurons`` is a step of the usual configuration: six weights of each layer by its head mask, three by the
weighted gradient of its neurons. ``elementwise`` is abs(w * g) over the encoder's matrices. Beside them is Neural
Compressor's path, written from its formulas: a NumPy copy of every tensor, once for each name; and its own pruner where
``neural_compressor`` is importable. Weights and gradients have few exact values, so that every sum is exact and all
contenders must find the same importances; ``data()`` asserts it. One call is one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneops.gradient_sensitivity import PrunerList

from .common import Case, Config

HEADS = 12
LINEARS = ("query", "key", "value", "output", "intermediate", "closing")
Importance = dict[str, Any]


class Layer(nn.Module):
    """The matrices of a BERT layer."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        for name in LINEARS[:4]:
            setattr(self, name, nn.Linear(hidden, hidden))
        self.intermediate, self.closing = nn.Linear(hidden, width), nn.Linear(width, hidden)


class Encoder(nn.Module):
    """BERT-base's matrices; ``forward`` only takes what the pruners look for."""

    def __init__(self, layers: int, hidden: int, width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(hidden, width) for _ in range(layers))

    def forward(self, head_mask: Tensor) -> Tensor:
        return head_mask


def configurations(elementwise: bool) -> list[dict[str, Any]]:
    if elementwise:
        return [{"names": [f"layer.*.{name}.weight" for name in LINEARS], "end_epoch": 99, "start_epoch": 98}]
    inputs = [f"layer.*.intermediate.{kind}" for kind in ("weight", "bias")]
    heads = {"target": 8, "normalize": True, "transpose": False, "importance_inputs": ["head_mask"],
             "importance_metric": "abs_gradient"}  # fmt: skip
    neurons = {"target": 60, "normalize": False, "stride": 1, "transpose": False, "importance_inputs": inputs,
               "importance_metric": "weighted_gradient"}  # fmt: skip
    of_heads = [f"layer.*.{name}.{kind}" for name in LINEARS[:3] for kind in ("weight", "bias")]
    return [
        {"names": of_heads, "parameters": heads},
        {"names": inputs, "parameters": neurons},
        {"names": ["layer.*.closing.weight"], "parameters": {**neurons, "transpose": True}},
    ]


class Pruneops:
    def __init__(self, model: Encoder, mask: Tensor, elementwise: bool) -> None:
        self.pruners = PrunerList.from_config(model, {"pruners": configurations(elementwise)})
        self.pruners.on_epoch_begin(0)
        model(mask)

    def step(self) -> None:
        self.pruners.on_step_end()

    def importance(self) -> Importance:
        return {name: score for pruner in self.pruners for name, score in pruner.importance.items()}


class NumpyPath:
    """Neural Compressor's formulas over copies in NumPy arrays, without its look-ups of names."""

    def __init__(self, model: Encoder, mask: Tensor, elementwise: bool) -> None:
        self.parameters, self.mask = dict(model.named_parameters()), mask
        self.elementwise, self.layers = elementwise, len(model.layer)
        self.scores: Importance = {}

    def step(self) -> None:
        for i in range(self.layers):
            if self.elementwise:
                for name in LINEARS:
                    self._add(f"layer.{i}.{name}.weight", self._product(f"layer.{i}.{name}.weight"))
                continue
            for name in LINEARS[:3]:
                for kind in ("weight", "bias"):
                    self._add(f"layer.{i}.{name}.{kind}", self._copy(self.mask.grad)[i])
            for name in ("intermediate.weight", "intermediate.bias", "closing.weight"):
                rows = self._product(f"layer.{i}.intermediate.weight").sum(1)
                self._add(f"layer.{i}.{name}", rows + self._product(f"layer.{i}.intermediate.bias"))

    def importance(self) -> Importance:
        return self.scores

    def _add(self, name: str, value: np.ndarray) -> None:
        self.scores[name] = self.scores.get(name, 0) + np.absolute(value)

    def _product(self, name: str) -> np.ndarray:
        parameter = self.parameters[name]
        return self._copy(parameter.grad) * self._copy(parameter.detach())

    @staticmethod
    def _copy(x: Tensor) -> np.ndarray:
        return np.array(np.array(x.cpu()))


class NeuralCompressor:
    """Its own pruners over its own model class."""

    def __init__(self, model: Encoder, mask: Tensor, elementwise: bool) -> None:
        from neural_compressor.experimental.pruner_legacy.gradient_sensitivity import GradientSensitivityPruner
        from neural_compressor.model.torch_model import PyTorchModel

        wrapped = PyTorchModel(model)
        empty = dict.fromkeys(("method", "names", "parameters"))
        schedule = {"start_epoch": 0, "end_epoch": 99, "initial_sparsity": 0.0, "target_sparsity": 0.5,
                    "update_frequency": 1}  # fmt: skip
        self.pruners = []
        for config in configurations(elementwise):
            values = empty | schedule | config
            if elementwise:  # it knows the * of structured pruning only
                values["names"] = [name for name in wrapped.get_all_weight_names() if name.endswith("weight")]
            self.pruners.append(GradientSensitivityPruner(wrapped, SimpleNamespace(**values), SimpleNamespace()))
            self.pruners[-1].on_epoch_begin(0)
        model(mask)

    def step(self) -> None:
        for pruner in self.pruners:
            pruner.on_step_end()

    def importance(self) -> Importance:
        return {name: score for pruner in self.pruners for name, score in pruner.importance.items()}


def _data(config: Config, elementwise: bool, kinds: Mapping[str, type]) -> dict[str, Any]:
    model = Encoder(2, 48, 96) if config.smoke else Encoder(12, 768, 3072)
    model.to(config.device)
    for parameter in model.parameters():
        parameter.data = torch.randint(-8, 9, parameter.shape, device=config.device) / 64
        parameter.grad = torch.randint(-8, 9, parameter.shape, device=config.device) / 64
    mask = torch.ones(len(model.layer), HEADS, device=config.device, requires_grad=True)
    mask.grad = torch.randint(-8, 9, mask.shape, device=config.device) / 64
    contenders = {name: kind(model, mask, elementwise) for name, kind in kinds.items()}
    for contender in contenders.values():
        contender.step()
        contender.step()
    _assert_same(contenders)
    return contenders


def _assert_same(contenders: dict[str, Any]) -> None:
    first, *others = contenders
    expected = contenders[first].importance()
    for name in others:
        found = contenders[name].importance()
        if found.keys() != expected.keys():
            raise AssertionError(f"{first} and {name} weigh different weights")
        if not all(np.array_equal(expected[key].cpu().numpy(), np.asarray(found[key])) for key in found):
            raise AssertionError(f"the importances of {first} and of {name} differ")


def cases(config: Config) -> Iterator[Case]:
    kinds: dict[str, type] = {"pruneops": Pruneops, "NumPy path": NumpyPath}
    if find_spec("neural_compressor"):
        kinds["INC 2.6"] = NeuralCompressor
    layers, hidden, width = (2, 48, 96) if config.smoke else (12, 768, 3072)
    matrices = 4 * hidden * hidden + 2 * hidden * width
    for name, elementwise, entries, floor in (
        ("heads and neurons", False, layers * hidden * width, 8),  # reads w and g of the incoming weights
        ("elementwise", True, layers * matrices, 16),  # reads w, g, score; writes score
    ):
        yield Case("gradient sensitivity", f"{name}, BERT-base", entries, floor,
                   lambda elementwise=elementwise: _data(config, elementwise, kinds),
                   {kind: lambda data, kind=kind: data[kind].step() for kind in kinds}, headline=True)  # fmt: skip


def test_speed(timed, case, contender):
    timed(case, contender)
