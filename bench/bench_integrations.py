"""The adapters beside the libraries that they serve: one pruning step, on the shapes of BERT-base and more.

A case is left out where its library is not importable. Neural Compressor is timed in its own pruner, in a step in the
middle of the schedule, from the masks' update to their application after the optimizer's step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pruneops.integrations import neural_compressor, torch_prune

from .common import Case, Config, warmed
from .shapes import BERT_BASE, Shape, total, transformer


def cases(config: Config) -> Iterator[Case]:
    small = transformer(8, config.n)
    bert = ("bert-base", small if config.smoke else BERT_BASE)
    # A step of Neural Compressor or of torch takes a quarter of a minute on the whole model.
    part = bert if config.thorough else ("bert-base, 2 layers", BERT_BASE[:12])
    layers = 30 if config.thorough else 4
    if find_spec("neural_compressor"):
        yield _neural_compressor(config, "4x1", *bert)
        yield _neural_compressor(config, "1x1", *part)
        yield _neural_compressor(config, "2:4", *part)
    yield _global_unstructured(config, small if config.smoke else layers * [(2048, 2048)])
    yield _sparsifier(config, bert[1])
    if find_spec("torch_pruning"):
        yield _importance(config, 256 if config.smoke else 4096)


def _layers(shapes: list[Shape], device: str) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    for i, (rows, columns) in enumerate(shapes):
        layer = nn.Linear(columns, rows, bias=False, device=device)
        layer.weight.grad = torch.randn_like(layer.weight)
        layers[str(i)] = layer
    return layers


class Pruners:
    """The pruner of the contender at work, on weights of its own."""

    def __init__(self, config: Config, pattern: str, shapes: list[Shape]) -> None:
        self.make = lambda: _pruner(_layers(shapes, config.device), pattern)
        self.ready: dict[str, Any] = {}

    def step(self, contender: str) -> None:
        pruner = self.ready[contender]
        pruner.global_step, pruner.handled_global_step, pruner.completed_pruned_cnt = 5, -1, 5
        pruner.on_step_begin(0)
        pruner.on_before_optimizer_step()
        pruner.on_after_optimizer_step()


def _pruner(layers: dict[str, nn.Module], pattern: str) -> Any:
    from neural_compressor import WeightPruningConfig
    from neural_compressor.compression.pruner.pruners import get_pruner
    from neural_compressor.compression.pruner.utils import process_config

    logging.disable(logging.INFO)
    sparsity = 0.5 if ":" in pattern else 0.8
    conf = WeightPruningConfig([{"pattern": pattern, "target_sparsity": sparsity, "end_step": 9}])
    pruner = get_pruner(process_config(conf)[0], layers)
    pruner.on_before_optimizer_step()
    return pruner


def _neural_compressor(config: Config, pattern: str, model: str, shapes: list[Shape]) -> Case:
    def contender(name: str, selection: bool | None) -> Callable[[Pruners], None]:
        def step(data: Pruners) -> None:
            if name not in data.ready:
                data.ready.clear()  # One pruner at a time: each has weights, gradients and scores.
                with nullcontext() if selection is None else neural_compressor.enabled(selection):
                    data.ready[name] = data.make()
                return
            data.step(name)

        return warmed(step)

    return Case(
        op="neural_compressor",
        name=f"{model}, {pattern}",
        entries=total(shapes),
        floor=8,
        data=lambda: Pruners(config, pattern, shapes),
        contenders=config.peers(
            {
                "pruneops": contender("pruneops", True),
                "pruneops criteria": contender("pruneops criteria", False),
                "neural_compressor": contender("neural_compressor", None),
            },
            "neural_compressor",
        ),
        headline=pattern == "4x1",
        in_turns=False,
    )


def _global_unstructured(config: Config, shapes: list[Shape]) -> Case:
    def data() -> list[nn.Parameter]:
        return [nn.Parameter(config.randn(*shape)) for shape in shapes]

    def contender(function: Callable[..., None]) -> Callable[[list[nn.Parameter]], list[nn.Module]]:
        def call(weights: list[nn.Parameter]) -> list[nn.Module]:
            modules = [_holder(weight) for weight in weights]
            function([(module, "weight") for module in modules], prune.L1Unstructured, amount=0.5)
            return modules

        return call

    return Case(
        op="global_unstructured",
        name="keep 50 % of square layers",
        entries=total(shapes),
        floor=12,
        data=data,
        contenders={
            "pruneops": contender(torch_prune.global_unstructured),
            "torch.nn.utils.prune": contender(prune.global_unstructured),
        },
        headline=True,
        needs=80 * total(shapes),
    )


def _holder(weight: Tensor) -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(weight))
    return module


def _sparsifier(config: Config, shapes: list[Shape]) -> Case:
    from torch.ao.pruning import WeightNormSparsifier

    from pruneops.integrations.torch_ao import Sparsifier

    def data() -> dict[str, Any]:
        sparsifiers = {
            "pruneops": Sparsifier(0.5, pattern="1x4"),
            "torch.ao.pruning": WeightNormSparsifier(0.5, sparse_block_shape=(1, 4)),
        }
        for sparsifier in sparsifiers.values():
            sparsifier.prepare(nn.Sequential(*_layers(shapes, config.device).values()), None)
        return sparsifiers

    return Case(
        op="torch_ao",
        name="bert-base-1x4-local",
        entries=total(shapes),
        floor=5,
        data=data,
        contenders={
            "pruneops": lambda data: data["pruneops"].step(),
            "torch.ao.pruning": lambda data: data["torch.ao.pruning"].step(),
        },
    )


def _importance(config: Config, width: int) -> Case:
    import torch_pruning

    from pruneops.integrations.torch_pruning import ChannelImportance

    def data() -> Any:
        model = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)).to(config.device)
        example = config.randn(2, width)
        model(example).square().mean().backward()
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        channels = list(range(4 * width))
        # The graph holds what the group refers to.
        return graph, graph.get_pruning_group(model[0], torch_pruning.prune_linear_out_channels, idxs=channels)

    return Case(
        op="torch_pruning",
        name=f"mlp-{width}",
        entries=8 * width**2,
        floor=8,
        data=data,
        contenders={
            "pruneops": lambda data: ChannelImportance("snip")(data[1]),
            "Torch-Pruning": lambda data: torch_pruning.importance.GroupTaylorImportance()(data[1]),
        },
    )


def test_speed(timed, case, contender):
    timed(case, contender)
