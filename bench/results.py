"""Reads the JSON of benchmark runs: for each case its contenders, held against the copy beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .common import OURS

#: On a CPU the best round, and the copy right beside it, since others share the machine; on a GPU, which nobody shares,
#: the median, and the best copy of the run.
STATISTIC = {"cpu": "min", "cuda": "median"}

#: What the short table and the picture show, in this order: a whole step, then its parts.
SHORT = ("prune step", "update_scores_", "update_block_scores_", "topk_mask", "row_topk_mask", "nm_mask",
         "apply_masks_", "gradient sensitivity")  # fmt: skip


def decimal(x: float) -> str:
    """A fraction with two digits that mean something."""
    return f"{x:.2f}" if x >= 0.1 else f"{x:.2g}"


def span(bandwidths: list[float]) -> str:
    """One bandwidth, or the lowest and the highest, in GB/s."""
    low, high = (f"{bandwidth / 1e9:,.0f}" for bandwidth in (min(bandwidths), max(bandwidths)))
    return f"{high} GB/s" if low == high else f"{low} to {high} GB/s"


@dataclass(frozen=True)
class Result:
    """One contender of a case; ``seconds`` is None where it failed, ``middle`` the median of its rounds."""

    seconds: float | None
    middle: float | None
    rounds: int
    peak_extra: int
    copy_bandwidth: float
    ours_beside: float | None = None
    error: str | None = None
    alone: float | None = None


@dataclass
class Row:
    """One case with all its contenders, from one run."""

    op: str
    case: str
    entries: int
    floor_bytes: float
    headline: bool
    commit: str
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def ours(self) -> Result:
        return self.results[OURS]

    @property
    def peers(self) -> dict[str, Result]:
        return {name: result for name, result in self.results.items() if name != OURS}

    def fraction(self, result: Result) -> float:
        """Of the copy bandwidth, at the floor of bytes; 0 for a failure."""
        return self.floor_bytes / result.seconds / result.copy_bandwidth if result.seconds else 0.0

    def times_slower(self, peer: Result) -> float:
        """A peer's time over ours, taken in turns with it where there are such; 0 for a failure.

        What ran once is no best of several rounds, and is held against our median.
        """
        ours = peer.ours_beside or (self.ours.middle if peer.rounds == 1 else self.ours.seconds)
        return peer.seconds / ours if peer.seconds and ours else 0.0


@dataclass
class Run:
    """All rows of one device, and the machines that they come from."""

    device: str
    machines: list[dict[str, Any]] = field(default_factory=list)
    copies: list[list[float]] = field(default_factory=list)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def headlines(self) -> list[Row]:
        """The first main case of each operator that is shown."""
        first: dict[str, Row] = {}
        for row in self.rows.values():
            if row.headline:
                first.setdefault(row.op, row)
        return [first[op] for op in SHORT if op in first]


def load(paths: list[Path]) -> dict[str, Run]:
    """Runs by device. A case of a later file replaces that of an earlier one whole: ratios stay within one run."""
    runs: dict[str, Run] = {}
    for path in paths:
        content = json.loads(path.read_text())
        machine = content["machine_info"]
        run = runs.setdefault(machine["device"], Run(machine["device"]))
        rows = _rows(content["benchmarks"], machine["commit"])
        if rows:
            run.machines.append(machine)
            run.copies.append([result.copy_bandwidth for row in rows.values() for result in row.results.values()])
            run.rows.update(rows)
    return runs


def _rows(records: list[dict[str, Any]], commit: str) -> dict[tuple[str, str], Row]:
    best_copy = max((record["extra_info"]["copy_bandwidth"] for record in records), default=0.0)
    rows: dict[tuple[str, str], Row] = {}
    for record in records:
        facts, stats = record["extra_info"], record["stats"] or {}
        key = (facts["op"], facts["case"])
        if key not in rows:
            of_case = (facts[name] for name in ("entries", "floor_bytes", "headline"))
            rows[key] = Row(*key, *of_case, commit)
        rows[key].results[facts["contender"]] = Result(
            stats.get(STATISTIC[facts["device"]]),
            stats.get("median"),
            stats.get("rounds", 0),
            facts["peak_extra_bytes"],
            best_copy if facts["device"] == "cuda" else facts["copy_bandwidth"],
            facts.get("ours_beside"),
            facts.get("error"),
            facts.get("alone"),
        )
    return {key: row for key, row in rows.items() if OURS in row.results}
