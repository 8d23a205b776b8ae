"""Prune small OPT models in one shot to half of their weights: at random, by magnitude and by Wanda.

    python examples/wanda_docstrings.py

The text is real and at hand: the documentation strings of Python's standard library, as bytes; a tenth of it is held
out. Each seed trains a model of its own on the spot, until some inputs stand out from others: before that, magnitude
is as good. Writes a table of perplexities to out/wanda_docstrings.md. Needs `pip install 'pruneops[examples]'`.
"""

from __future__ import annotations

import ast
import math
import sys
import sysconfig
import time
from pathlib import Path

import torch
from baselines import CHOICES, parser, pruned, publish, table
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from pruneops.scoring import sample_tokens

CONTEXT, WIDTH, PEAK = 64, 64, 4e-3


def docstrings() -> bytes:
    """The documentation strings of the standard library's modules, classes and functions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [library / f"{name}.py" for name in sorted(sys.stdlib_module_names)]
    files += [library / name / "__init__.py" for name in sorted(sys.stdlib_module_names)]
    texts = []
    for file in filter(Path.is_file, files):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                texts.append(text)
    return "\n\n".join(texts).encode()


def train(model: nn.Module, tokens: Tensor, steps: int, seed: int) -> None:
    """Next-byte prediction on random windows; one-cycle learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        batch = sample_tokens(tokens, 16, CONTEXT, seed=seed * steps + step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Per byte, over the whole text in windows."""
    model.eval()
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in windows.split(64)]
    return math.exp(float(sum(losses)) / len(windows))


def measure(tokens: Tensor, steps: int, seed: int) -> list[float]:
    """Perplexities of a newly trained model: dense, then those of each choice."""
    torch.manual_seed(seed)
    learned, held_out = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :]
    config = OPTConfig(vocab_size=256, hidden_size=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
                       max_position_embeddings=CONTEXT, word_embed_proj_dim=WIDTH, dropout=0.0, pad_token_id=0,
                       bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = OPTForCausalLM(config)
    print(f"seed {seed}: {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, learned, steps, seed)
    batches = sample_tokens(learned, 128, CONTEXT, seed=seed).split(16)
    return [perplexity(x, held_out) for x in (model, *(pruned(model, choice, batches) for choice in CHOICES))]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=2500, help="of training (default: 2500)")
    args = options.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)  # The model is too small for threads.
    tokens = torch.frombuffer(bytearray(docstrings()), dtype=torch.uint8).long()
    print(f"{len(tokens):,} bytes of documentation")
    dense, *found = zip(*(measure(tokens, args.steps, seed) for seed in range(args.seeds)), strict=True)
    text = table(dense, dict(zip(CHOICES, found, strict=True)))
    publish(text, args.out / "wanda_docstrings.md", "perplexity per byte of held-out text", start)


if __name__ == "__main__":
    main()
