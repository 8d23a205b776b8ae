"""A whole pruning step: scores updated, blocks of 4x1 selected over all layers at 50 %, masks applied.

Beside it: what Neural Compressor does in a step, written from its formulas, and its own classes where
``neural_compressor`` is importable. Weights and gradients are multiples of 1/2048, so that every sum is exact and all
contenders must find the same masks, but for what ties with the threshold prune beyond the count: Neural Compressor
keeps as many blocks of its last layer instead. ``data()`` asserts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from pruneops import ops

from .blocks import grid, inc_expand, inc_mean
from .common import Case, Config, element_size
from .shapes import GPT_125M, LLAMA_7B, Shape, total

BLOCK, ALPHA, SPARSITY = (4, 1), 0.9, 0.5


class Pruneops:
    """Block scores and block masks; nothing of the weight's size is made."""

    def __init__(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        self.weights = [weight.clone() for weight in weights]
        self.grads = grads
        self.scores = [torch.zeros(grid(w.shape, BLOCK), device=w.device) for w in weights]
        self.masks = [torch.empty_like(score, dtype=torch.bool) for score in self.scores]

    def step(self) -> None:
        ops.update_block_scores_(self.scores, self.weights, self.grads, block=BLOCK, metric="snip", alpha=ALPHA)
        ops.topk_mask(self.scores, sparsity=SPARSITY, ties="threshold", out=self.masks)
        ops.apply_masks_(self.weights, self.masks, block=BLOCK)

    def weight_masks(self) -> list[Tensor]:
        return [inc_expand(mask, BLOCK) for mask in self.masks]


class Eager:
    """Neural Compressor's formulas, without its bookkeeping."""

    def __init__(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        self.weights = [weight.clone() for weight in weights]
        self.grads = grads
        self.scores = [torch.zeros(grid(w.shape, BLOCK), device=w.device) for w in weights]
        self.masks: list[Tensor] = []

    def step(self) -> None:
        for score, weight, grad in zip(self.scores, self.weights, self.grads, strict=True):
            score *= ALPHA
            score += 1.0 * inc_mean(torch.abs(weight * grad), BLOCK)
        scores = torch.cat([score.flatten() for score in self.scores])
        threshold = torch.kthvalue(scores, int(SPARSITY * scores.numel())).values
        self.masks = [inc_expand(score > threshold, BLOCK) for score in self.scores]
        for i, mask in enumerate(self.masks):
            self.weights[i] = self.weights[i] * mask

    def weight_masks(self) -> list[Tensor]:
        return self.masks


class NeuralCompressor:
    """Its pruner, with its criterion, pattern and masks; the optimizer's step between them is left out."""

    def __init__(self, weights: list[Tensor], grads: list[Tensor]) -> None:
        from neural_compressor.compression.pruner.pruners.basic import PytorchBasicPruner
        from neural_compressor.compression.pruner.utils import DotDict
        from neural_compressor.utils.logger import Logger

        # It prints a line for each layer and step.
        Logger().get_logger().setLevel("ERROR")
        self.modules = {f"layer{i}": _linear(w, g) for i, (w, g) in enumerate(zip(weights, grads, strict=True))}
        config: dict[str, Any] = {
            "pruning_type": "snip_momentum", "criterion_type": "snip_momentum", "pattern": "4x1",
            "pruning_scope": "global", "target_sparsity": SPARSITY, "criterion_reduce_type": "mean",
            "max_sparsity_ratio_per_op": 0.98, "min_sparsity_ratio_per_op": 0.0, "low_memory_usage": False,
            "start_step": 1, "end_step": 10**9, "pruning_frequency": 1, "reg_type": None, "parameters": {},
            "lock_init_sparsity": False, "sparsity_decay_type": "exp", "op_names": [],
        }  # fmt: skip
        self.pruner = PytorchBasicPruner(DotDict(config), self.modules)

    def step(self) -> None:
        pruner = self.pruner
        pruner.criterion.on_before_optimizer_step()
        pruner.masks = pruner.pattern.get_masks(pruner.criterion.scores, SPARSITY, pruner.masks)
        pruner.mask_weights()

    def weight_masks(self) -> list[Tensor]:
        return [self.pruner.masks[name] for name in self.modules]


def _linear(weight: Tensor, grad: Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(1, 1, bias=False, device=weight.device)
    linear.weight = torch.nn.Parameter(weight.clone())
    linear.weight.grad = grad
    return linear


def _data(config: Config, shapes: list[Shape], dtype: torch.dtype, kinds: dict[str, type]) -> dict[str, Any]:
    def exact(shape: Shape) -> Tensor:
        return (torch.randint(-2047, 2048, shape, device=config.device) / 2048).to(dtype)

    weights, grads = ([exact(shape) for shape in shapes] for _ in range(2))
    contenders = {name: kind(weights, grads) for name, kind in kinds.items()}
    for contender in contenders.values():
        contender.step()
    _assert_same_masks(contenders)
    return contenders


def _assert_same_masks(contenders: dict[str, Any]) -> None:
    first, *others = contenders
    masks = contenders[first].weight_masks()
    entries = sum(mask.numel() for mask in masks)
    pruned = entries - sum(int(mask.sum()) for mask in masks)
    beyond = pruned - int(SPARSITY * entries)
    for name in others:
        differ = [int((a != b).sum()) for a, b in zip(masks, contenders[name].weight_masks(), strict=True)]
        if any(differ[:-1]) or differ[-1] > beyond:
            raise AssertionError(f"the masks of {first} and of {name} differ")


def cases(config: Config) -> Iterator[Case]:
    fp32, bf16 = torch.float32, torch.bfloat16
    kinds: dict[str, type] = {"pruneops": Pruneops, "INC eager": Eager}
    if find_spec("neural_compressor"):
        kinds["INC 2.6"] = NeuralCompressor

    def case(name: str, shapes: list[Shape], dtype: torch.dtype, kinds: dict[str, type], **more: Any) -> Case:
        n, size = total(shapes), element_size(dtype)
        blocks = 1 / (BLOCK[0] * BLOCK[1])
        # Update (w, g, score twice), selection (score, mask), application (w twice, mask).
        floor = 2 * size + 8 * blocks + 5 * blocks + 2 * size + blocks
        return Case("prune step", name, n, floor, lambda: _data(config, shapes, dtype, kinds),
                    {kind: lambda data, kind=kind: data[kind].step() for kind in kinds}, **more)  # fmt: skip

    shapes = 2 * [(64, 32)] if config.smoke else GPT_125M
    yield case("GPT 125M, 4x1 global, fp32", shapes, fp32, kinds, headline=True)
    if config.gpu:
        ours = {"pruneops": Pruneops}
        yield case("Llama 7B, 4x1 global, bf16", LLAMA_7B, bf16, ours, headline=True, needs=56 * 10**9)


def test_speed(timed, case, contender):
    timed(case, contender)
