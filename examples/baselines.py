"""What the examples compare criteria with, and how they show what they found."""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from torch import Tensor, nn

import pruneops


@pruneops.register_criterion("random")
class RandomCriterion(pruneops.PruningCriterion):
    """Each weight has a random score for the whole run."""

    def on_step_begin(self) -> None:
        if not self.scores:
            self.update_scores("magnitude")  # makes the storage
            for score in self.scores.values():
                score.uniform_()


class Choice(NamedTuple):
    """One way to prune half of the weights in one shot."""

    pattern: str
    criterion: str
    #: Among which weights a weight has to hold its place; None is what the pattern says.
    scope: str | None

    @property
    def draws(self) -> bool:
        """Whether it depends on a seed: of the random scores, or of the text to calibrate with."""
        return self.criterion in ("random", "wanda")


CHOICES = (
    Choice("1x1", "random", "row"),
    Choice("1x1", "magnitude", "global"),
    Choice("1x1", "magnitude", "local"),
    Choice("1x1", "magnitude", "row"),
    Choice("1x1", "wanda", "row"),
    Choice("2:4", "random", None),
    Choice("2:4", "magnitude", None),
    Choice("2:4", "wanda", None),
)

_WITHIN = {"global": "the model", "local": "a layer", "row": "a row", None: "4 weights"}


def pruned(dense: nn.Module, choice: Choice, batches: Sequence[Tensor]) -> nn.Module:
    """A copy of a language model with half of its weights; ``batches`` of tokens calibrate Wanda."""
    model = copy.deepcopy(dense)
    if choice.criterion == "wanda":
        pruneops.wanda(model, batches, 0.5, pattern=choice.pattern)
    else:
        pruneops.prune(model, 0.5, criterion=choice.criterion, pattern=choice.pattern, scope=choice.scope)
    return model


def table(dense: Sequence[float], found: Mapping[Choice, Sequence[float]]) -> str:
    """Markdown: a row for the dense model and for each choice, with the perplexity of each seed."""
    lines = ["| pattern | criterion | compared within | perplexity | seeds |", "|---|---|---|---:|---|"]
    rows = [("dense", "", "", dense), *((x.pattern, x.criterion, _WITHIN[x.scope], found[x]) for x in found)]
    for pattern, criterion, within, values in rows:
        spread = f" ± {_figures(stdev(values))}" if len(values) > 1 else ""
        seeds = " / ".join(map(_figures, values)) if len(values) > 1 else "none drawn"
        lines.append(f"| {pattern} | {criterion} | {within} | {_figures(mean(values))}{spread} | {seeds} |")
    return "\n".join(lines)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all have: how many seeds, and the folder to write to."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("out"))
    return options


def publish(text: str, path: Path, note: str, start: float) -> None:
    """Write a table; print it with a note, the seconds since ``start`` and those of the processor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    used = os.times()
    print(f"{text}\n\n{note}; {time.perf_counter() - start:.0f} s, "
          f"{used.user + used.children_user:.0f} s of the processor")  # fmt: skip


def _figures(value: float) -> str:
    """Four figures, and none behind the point of a thousand or more."""
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
