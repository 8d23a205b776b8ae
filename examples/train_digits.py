"""Prune a small vision transformer while it is trained on handwritten digits, with every criterion.

    python examples/train_digits.py

Trains it dense, then prunes each dense model at several sparsities and patterns, and writes a table and a picture of
the test accuracies to out/. The digits are those of scikit-learn: 1797 images of 8 x 8 pixels. Needs
`pip install 'pruneops[examples]'`.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from baselines import parser, publish  # which registers the random criterion, too
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pruneops import CRITERIA, parse_pattern
from pruneops.pruner import Pruner

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
PATTERNS = ("1x1", "4x1", "2:4")
BATCH = 128


class Block(nn.Module):
    """Attention and a perceptron, each after a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.proj(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """16 patches of 2 x 2 pixels, 65,536 prunable weights in two blocks."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        self.patches = nn.Linear(4, width)
        self.places = nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patches(patches) + self.places).mean(1)))


def load_data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train and to test with: two thirds and one third, each digit equally often."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3
    labels = torch.tensor(digits.target)
    parts = train_test_split(images, labels, test_size=1 / 3, random_state=seed, stratify=digits.target)
    return parts[0], parts[2], parts[1], parts[3]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, steps: int) -> None:
    """The training loop; it knows nothing of pruning. One-cycle learning rate."""
    peak = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    model.train()
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images)).split(BATCH)
        picked = order[step % (len(images) // BATCH)]
        F.cross_entropy(model(images[picked]), labels[picked]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, in percent."""
    model.eval()
    return 100 * float((model(images).argmax(1) == labels).float().mean())


def prune(dense: nn.Module, data: tuple[Tensor, ...], steps: int, **settings: object) -> tuple[nn.Module, float]:
    """A copy of the dense model, pruned over the first half of ``steps``; and its sparsity."""
    model = copy.deepcopy(dense)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pruner = Pruner(model, optimizer, include="blocks.*", end_step=steps // 2, frequency=5, **settings)
    train(model, optimizer, data[0], data[1], steps)
    report = pruner.detach()
    check_exact(report, settings)
    return model, report.sparsity


def check_exact(report, settings: dict) -> None:
    """The sparsity is the one asked for, to the last unit."""
    pattern = parse_pattern(settings["pattern"])
    unit = pattern.block[0] * pattern.block[1] if pattern.block else 1
    asked = settings["sparsity"] if pattern.sparsity is None else pattern.sparsity
    assert report.total - report.kept == unit * int(asked * (report.total // unit)), (report, settings)


def cases(pattern: str):
    """Criterion and sparsity of each run for a pattern."""
    blocks = parse_pattern(pattern).block is not None
    criteria = ["magnitude", "gradient", "snip", "snip_momentum"]
    criteria += ["snip_momentum_block", "retrain_free"] if blocks else []
    sparsities = [None] if parse_pattern(pattern).sparsity else SPARSITIES
    return [(criterion, sparsity) for criterion in [*criteria, "random"] for sparsity in sparsities]


def train_dense(seed: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """The weights and the accuracy of a dense model."""
    torch.manual_seed(seed)
    data = load_data(seed)
    model = VisionTransformer()
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), data[0], data[1], steps)
    return model.state_dict(), accuracy(model, data[2], data[3])


def prune_case(dense: dict[str, Tensor], seed: int, steps: int, pattern: str, criterion: str, sparsity: float | None):
    """The key and the accuracy of one pruned model."""
    torch.manual_seed(seed)
    data = load_data(seed)
    model = VisionTransformer()
    model.load_state_dict(dense)
    pruned, reached = prune(model, data, steps, criterion=criterion, pattern=pattern, sparsity=sparsity)
    return (pattern, criterion, sparsity or reached), accuracy(pruned, data[2], data[3])


def run(seeds: int, epochs: int) -> tuple[list[float], dict[tuple[str, str, float], list[float]]]:
    """Accuracies of the dense models, and (pattern, criterion, sparsity) -> accuracies."""
    steps = epochs * (len(load_data(0)[0]) // BATCH)
    found: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    # The model is too small for threads: one process for each core.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        dense = [pool.submit(train_dense, seed, 3 * steps) for seed in range(seeds)]
        runs = [
            pool.submit(prune_case, dense[seed].result()[0], seed, steps, pattern, criterion, sparsity)
            for seed in range(seeds)
            for pattern in PATTERNS
            for criterion, sparsity in cases(pattern)
        ]
        for done, future in enumerate(runs, 1):
            key, score = future.result()
            found[key].append(score)
            print(f"\r{done} of {len(runs)} models pruned", end="" if done < len(runs) else "\n", flush=True)
    return [future.result()[1] for future in dense], found


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std()) if len(values) > 1 else 0.0


def table(dense: list[float], found: dict) -> str:
    """Markdown: a row for each pattern and criterion, best mean first."""
    heads = " | ".join(f"{s:.0%}" for s in SPARSITIES)
    lines = [f"Test accuracy in percent, mean ± standard deviation of {len(dense)} seeds; dense: "
             f"{spread(dense)[0]:.1f} ± {spread(dense)[1]:.1f}.", "", f"| pattern | criterion | {heads} |",
             "|---|---|" + "---:|" * len(SPARSITIES)]  # fmt: skip
    for pattern in PATTERNS:
        rows = {c: {s: spread(v) for (p, k, s), v in found.items() if (p, k) == (pattern, c)} for c in CRITERIA}
        ranked = sorted((c for c in rows if rows[c]), key=lambda c: -sum(mean for mean, _ in rows[c].values()))
        for criterion in ranked:
            row = rows[criterion]
            cells = [f"{row[s][0]:.1f} ± {row[s][1]:.1f}" if s in row else "" for s in SPARSITIES]
            lines.append(f"| {pattern} | {criterion} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, dense: list[float], found: dict) -> None:
    """Accuracy against sparsity, one panel for each pattern."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(PATTERNS), width_ratios=(4, 4, 1.6), sharey=True)
    names = list(dict.fromkeys(criterion for _, criterion, _ in found))
    for axes, pattern in zip(panels, PATTERNS, strict=True):
        axes.axhline(spread(dense)[0], color="0.4", linestyle=":", label="dense")
        for i, criterion in enumerate(names):
            points = {s: spread(v) for (p, c, s), v in found.items() if (p, c) == (pattern, criterion)}
            if not points:
                continue
            # Side by side, so that bars of equal sparsity can be told apart.
            places = [SPARSITIES.index(s) + (i - (len(names) - 1) / 2) * 0.06 for s in points]
            means, errors = zip(*points.values(), strict=True)
            style = {"color": "0.55", "linestyle": "--"} if criterion == "random" else {"color": f"C{i}"}
            axes.errorbar(places, means, errors, marker="o", markersize=4, capsize=2, label=criterion, **style)
        shown = [i for i, s in enumerate(SPARSITIES) if any((p, s) == (pattern, k) for p, _, k in found)]
        axes.set_xticks(shown, [f"{SPARSITIES[i]:.0%}" for i in shown])
        axes.set(title=f"pattern {pattern}", xlabel="sparsity", xlim=(shown[0] - 0.5, shown[-1] + 0.5))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    panels[1].legend(loc="lower left", fontsize=8)
    figure.suptitle(f"A vision transformer pruned while training on digits: mean and deviation of {len(dense)} seeds")
    figure.savefig(path, dpi=120)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--epochs", type=int, default=10, help="of pruning and adapting; dense training has 3 times as many"
    )
    args = options.parse_args()
    start = time.perf_counter()
    dense, found = run(args.seeds, args.epochs)
    publish(table(dense, found), args.out / "digits.md", "every sparsity exact to the last weight", start)
    (args.out / "digits.json").write_text(
        json.dumps([dense, [[*key, value] for key, value in found.items()]], indent=1)
    )
    draw(args.out / "digits.png", dense, found)
    print(f"picture: {args.out / 'digits.png'}")


if __name__ == "__main__":
    main()
