"""Prune a small OPT in one shot, by magnitude and by Wanda, and compare perplexities.

    python examples/wanda_docstrings.py

The text is real and at hand: the documentation strings of Python's standard library, as bytes. The model is trained
on the spot, until some inputs stand out from others: before that, magnitude is as good. A tenth of the text is held
out. Writes a table to out/wanda.md. Needs `pip install 'pruneops[examples]'`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import sys
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

import pruneops
from pruneops.calibration import wanda
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


def pruned(dense: nn.Module, how: str, pattern: str, calibration: Tensor) -> nn.Module:
    """A copy with half of its weights, chosen in one shot."""
    model = copy.deepcopy(dense)
    criterion, _, scope = how.partition(" ")
    if criterion == "wanda":
        wanda(model, calibration.split(16), 0.5, pattern=pattern)
    else:
        pruneops.prune(model, 0.5, pattern=pattern, scope=scope or None)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help="of training (default: 2500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # The model is too small for threads.
    tokens = torch.frombuffer(bytearray(docstrings()), dtype=torch.uint8).long()
    learned, held_out = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :]
    config = OPTConfig(vocab_size=256, hidden_size=WIDTH, ffn_dim=4 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
                       max_position_embeddings=CONTEXT, word_embed_proj_dim=WIDTH, dropout=0.0, pad_token_id=0,
                       bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = OPTForCausalLM(config)
    print(f"{len(tokens):,} bytes of documentation; {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, learned, args.steps, args.seed)
    calibration = sample_tokens(learned, 128, CONTEXT, seed=args.seed)
    lines = [
        f"Perplexity per byte on held-out text; dense: {perplexity(model, held_out):.3f}.", "",
        "| pruned | criterion | perplexity |", "|---|---|---:|",
    ]  # fmt: skip
    for pattern, criteria in (("1x1", ("magnitude global", "magnitude local", "magnitude row", "wanda")),
                              ("2:4", ("magnitude", "wanda"))):  # fmt: skip
        for how in criteria:
            found = perplexity(pruned(model, how, pattern, calibration), held_out)
            lines.append(f"| {'50 %' if pattern == '1x1' else pattern} | {how} | {found:.3f} |")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "wanda.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
