"""What pruning adds to a training step of a GPT with 124 million parameters.

The cases time one step of :class:`pruneops.Pruner` without a selection (score update and mask application) on the
85 million weights of the blocks, beside Neural Compressor 2.6's pruner where ``neural_compressor`` is importable.
``python -m bench.bench_pruner`` runs the whole model and prints the shares of its forward and backward pass, and what a
step with a selection takes, of which a run has a hundred by default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pruneops.pruner import Pruner

from .common import Case, Config

SPARSITY = 0.8
WIDTH, DEPTH, HEADS, VOCABULARY, CONTEXT = 768, 12, 12, 50257, 1024


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """GPT-2's shape, its output tied to its embedding."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, HEADS) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def loss(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        logits = self.norm(self.blocks(x)) @ self.tokens.weight.t()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


#: Settings of our pruner: after its one selection, and with a selection in each of its steps.
ONCE: dict[str, Any] = {"schedule": "one_shot", "end_step": 1}
ALWAYS: dict[str, Any] = {"schedule": "linear", "initial_sparsity": SPARSITY / 2, "end_step": 100, "frequency": 1}


class Pruneops:
    """Our pruner, by hand."""

    def __init__(self, model: nn.Module, pattern: str, schedule: dict[str, Any] = ONCE) -> None:
        self.pruner = Pruner(model, pattern=pattern, sparsity=SPARSITY, **schedule)
        self.step()

    def step(self) -> None:
        self.pruner.on_before_optimizer_step()
        self.pruner.on_after_optimizer_step()


class NeuralCompressor:
    """Its pruner with its criterion, pattern and masks."""

    def __init__(self, model: nn.Module, pattern: str) -> None:
        from neural_compressor.compression.pruner.pruners.basic import PytorchBasicPruner
        from neural_compressor.compression.pruner.utils import DotDict
        from neural_compressor.utils.logger import Logger

        # It prints a line for each layer and step.
        Logger().get_logger().setLevel("ERROR")
        modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        config: dict[str, Any] = {
            "pruning_type": "snip_momentum", "criterion_type": "snip_momentum", "pattern": pattern,
            "pruning_scope": "global", "target_sparsity": SPARSITY, "criterion_reduce_type": "mean",
            "max_sparsity_ratio_per_op": 0.98, "min_sparsity_ratio_per_op": 0.0, "low_memory_usage": False,
            "start_step": 1, "end_step": 10**9, "pruning_frequency": 1, "reg_type": None, "parameters": {},
            "lock_init_sparsity": False, "sparsity_decay_type": "exp", "op_names": [],
        }  # fmt: skip
        # Its masks keep everything; applying them costs the same as applying selected ones.
        self.pruner = PytorchBasicPruner(DotDict(config), modules)

    def step(self) -> None:
        self.pruner.on_before_optimizer_step()
        self.pruner.on_after_optimizer_step()


def kinds() -> dict[str, Callable[[nn.Module, str], Any]]:
    found: dict[str, Callable[[nn.Module, str], Any]] = {"pruneops": Pruneops}
    if find_spec("neural_compressor"):
        found["INC 2.6"] = NeuralCompressor
    return found


def cases(config: Config) -> Iterator[Case]:
    width, depth = (48, 1) if config.smoke else (WIDTH, DEPTH)
    for pattern in ("4x1", "1x1"):
        # Score (w, g; block or entry score twice) and masks at one bit (w twice).
        floor = 8 + 8 / (4 if pattern == "4x1" else 1) + 8 + 1 / 8

        def data(pattern: str = pattern) -> dict[str, Any]:
            blocks = nn.Sequential(*(Block(width, HEADS) for _ in range(depth))).to(config.device)
            for parameter in blocks.parameters():
                parameter.grad = torch.randn_like(parameter)
            return {name: kind(blocks, pattern) for name, kind in kinds().items()}

        contenders = {name: (lambda made, name=name: made[name].step()) for name in kinds()}
        yield Case("pruner step", f"GPT blocks, {pattern}", 12 * width * width * depth, floor, data, contenders)


def test_speed(timed: Any, case: Case, contender: str) -> None:
    timed(case, contender)


def best(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Seconds of the best round, by the clock and of the processor: others may share the machine."""
    clock, processor = [], []
    for _ in range(rounds):
        start, begun = time.perf_counter(), time.process_time()
        call()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - begun)
    return min(clock), min(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = GPT()
    ids = torch.randint(VOCABULARY, (args.batch, args.length))

    def forward_backward() -> None:
        model.zero_grad()
        model.loss(ids).backward()

    forward_backward()
    clock, processor = best(forward_backward, args.rounds)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; forward and backward of {args.batch} x "
        f"{args.length} tokens: {clock:.2f} s by the clock, {processor:.2f} s of the processor"
    )
    for pattern in ("4x1", "1x1"):
        for name, kind in (kinds() | {"pruneops, with a selection": partial(Pruneops, schedule=ALWAYS)}).items():
            pruner = kind(model.blocks, pattern)
            step = best(pruner.step, 3)
            print(
                f"{name}, {pattern}: step {1e3 * step[0]:.0f} ms by the clock ({step[0] / clock:.2%} of forward and "
                f"backward), {1e3 * step[1]:.0f} ms of the processor ({step[1] / processor:.2%})",
                flush=True,
            )
            del pruner


if __name__ == "__main__":
    main()
