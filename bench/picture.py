"""The picture: the fraction of the copy bandwidth of each case of the short table, peers beside it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .results import OURS, Row, Run, decimal, span

#: Kind of contender: colour, marker, size.
STYLES = {
    OURS: ("#1f5fd0", "o", 70),
    "Neural Compressor": ("#d1495b", "s", 34),
    "torch.compile": ("#7d3fb2", "D", 34),
    "other PyTorch": ("#7f8a93", "o", 30),
    "NumPy": ("#e0a030", "^", 36),
}


def kind(contender: str) -> str:
    if contender in (OURS, "torch.compile"):
        return contender
    # kthvalue over the concatenation is how Neural Compressor selects.
    if contender.startswith("INC") or contender in ("kthvalue + compare", "neural_compressor"):
        return "Neural Compressor"
    return "NumPy" if contender.startswith("numpy") else "other PyTorch"


def _panel(axes, rows: list[Row], title: str) -> None:
    for y, row in enumerate(rows):
        points = [(row.fraction(result), kind(name)) for name, result in row.results.items() if result.seconds]
        # Ours last, on top of a peer that is as fast.
        for x, of in sorted(points, key=lambda point: point[1] == OURS):
            colour, marker, area = STYLES[of]
            axes.scatter(x, y, s=area, c=colour, marker=marker, zorder=4 if of == OURS else 3, edgecolors="white",
                         linewidths=0.6)  # fmt: skip
        axes.text(1.01, y, decimal(row.fraction(row.ours)), transform=axes.get_yaxis_transform(), va="center",
                  fontsize=8, color=STYLES[OURS][0])  # fmt: skip
    axes.axvline(1, color="#333333", linewidth=1)
    axes.text(1, -0.9, "copy", ha="center", va="bottom", fontsize=8, color="#333333")
    axes.set_xscale("log")
    axes.set_xlim(right=max(2.5, axes.get_xlim()[1]))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [f"{row.op}  {row.case}" for row in rows], fontsize=8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize=10, pad=18)


def draw(runs: dict[str, Run], path: Path) -> None:
    """One panel for each device that was measured; the caption says which was not."""
    panels = [run for device in ("cpu", "cuda") if (run := runs.get(device)) and run.headlines()]
    if not panels:
        raise SystemExit("no results to draw")
    counts = [len(run.headlines()) for run in panels]
    figure = Figure(figsize=(9.5, 1.6 + 0.30 * sum(counts) + 0.5 * (len(panels) - 1)), layout="constrained", dpi=150)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=counts)[:, 0]
    for axes, run in zip(grid, panels, strict=True):
        facts = run.machines[0]
        name = facts["gpu"] if run.device == "cuda" else f"{facts['cpu']}, {facts['threads']} threads"
        _panel(axes, run.headlines(), f"{name}, copy at {span(run.copies[0])}")
    missing = "" if "cuda" in runs else "  GPU: not measured."
    grid[-1].set_xlabel(f"fraction of the copy bandwidth (least bytes / time / bandwidth){missing}", fontsize=9)
    handles = [Line2D([], [], linestyle="", marker=marker, color=colour, label=label)
               for label, (colour, marker, _) in STYLES.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
