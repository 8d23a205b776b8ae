"""``pruneops prune``: a pruned copy of a checkpoint."""

from __future__ import annotations

import argparse
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from .._checks import listed
from ..checkpoint import Checkpoint
from ..offline import Limits, Pruning, left_alone
from ..patterns import parse_pattern
from ..planning import Plan, make_plan
from ..report import LayerReport, PruneReport
from ..score_files import CriterionScores, SavedScores
from ..selection import SCOPES
from . import console

_ABOUT = """
Write a copy of a checkpoint in which the weights of smallest magnitude are zero. Pruned are the tensors named
*.weight with two or more dimensions, in float64, float32, bfloat16 or float16. Left alone by default are, by their
names, embeddings ('embed' in one of the last three parts, or ending in wte, wpe, shared, relative_attention_bias),
norms (last part with 'norm' or beginning with 'ln'), output heads (lm_head, embed_out, classifier, score, qa_outputs,
head, heads, cls.predictions.decoder, output), adapters (such as lora_A) and routers of experts. Experts stacked in
one tensor of three dimensions are always left alone. Exactly int(sparsity * n) of n entries or blocks are pruned.
"""
_NAMES = (
    "excluded by default: a glob of tensor names, with or without .weight, or re: and a regular expression; repeatable"
)
#: Tables with more rows show one row for the tensors whose names differ only in their numbers.
_MOST_ROWS = 50


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("prune", help="write a pruned copy of a checkpoint", description=_ABOUT)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path,
        help="a .safetensors file, or a Hugging Face model directory with one or many shards",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="DIR", type=Path,
        help="where to write: a directory, made with its parents; for a .safetensors file also a new file name",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="replace an earlier output when the new is complete; a directory with other files in it is refused",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what would be pruned and the memory needed")
    console.add_json(parser)
    how = parser.add_argument_group("what to prune")
    how.add_argument("--sparsity", type=share, help="share to prune, at least 0 and below 1; N:M patterns give it")
    how.add_argument("--pattern", default="1x1", help="1x1, NxM, channelx1, 1xchannel or N:M (default: 1x1)")
    how.add_argument("--scope", choices=SCOPES,
                     help="all weights together (default), each, each row (default with scores of wanda)")  # fmt: skip
    how.add_argument("--criterion", default="magnitude", help="what is ranked: a registered criterion without data")
    how.add_argument("--import", metavar="MODULE", dest="module", help="import this first; it registers a criterion")
    how.add_argument("--scores", metavar="FILE", type=Path, help="rank by these instead; made by 'pruneops score'")
    how.add_argument("--min-sparsity", metavar="P", type=share, help="lowest sparsity of each tensor, global scope")
    how.add_argument("--max-sparsity", metavar="P", type=_bound, help="highest sparsity of each tensor, global scope")
    how.add_argument("--include", metavar="NAME", action="append", help=f"prune only these, even if {_NAMES}")
    how.add_argument("--exclude", metavar="NAME", action="append", help="leave these alone; the same form, repeatable")
    how.add_argument("--on-indivisible", choices=["skip", "error"], default="skip",
                     help="where the pattern does not divide a tensor (default: skip)")  # fmt: skip
    parser.set_defaults(run=run)


def share(text: str) -> float:
    """A sparsity given as text: at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number, at least 0 and below 1, got {text!r}")
    return value


def _bound(text: str) -> float:
    return 1.0 if text in ("1", "1.0") else share(text)


def run(args: argparse.Namespace) -> None:
    """Prune the checkpoint, or show what that would do."""
    if args.output is None and not args.dry_run:
        raise ValueError("--output is missing (--dry-run works without it)")
    limits = Limits(args.sparsity, args.min_sparsity, args.max_sparsity)
    start = time.perf_counter()
    checkpoint = Checkpoint(args.checkpoint)
    scores = _ranked_by(args)
    scope = args.scope or ("row" if scores and scores.criterion == "wanda" else "global")
    plan = make_plan(
        checkpoint, parse_pattern(args.pattern), scope=scope, include=args.include, exclude=args.exclude,
        on_indivisible=args.on_indivisible,
    )  # fmt: skip
    output = None if args.output is None else _target(checkpoint, args.output)
    seconds = {"read": time.perf_counter() - start}
    pruning = _run(plan, limits, scores, None if args.dry_run else output, args.overwrite)
    report = pruning.report()
    asked = plan.pattern.sparsity if args.sparsity is None else args.sparsity
    document = {
        "checkpoint": str(args.checkpoint),
        "output": None if output is None else str(output),
        "dry_run": args.dry_run,
        "sparsity_asked": asked,
        **report.to_dict(),
        "seconds": seconds | pruning.seconds,
        "skipped": left_alone(plan),
        "copied_unpruned": checkpoint.other_weights(),
        "memory_bytes": plan.memory_bytes,
        "disk_bytes": plan.disk_bytes,
    }
    if args.json:
        console.print_json(document)
    else:
        _show(checkpoint, report, document)


def _ranked_by(args: argparse.Namespace) -> SavedScores | CriterionScores | None:
    """What ranks the weights; None for magnitude, which is computed on the fly."""
    if args.module is not None:
        try:
            importlib.import_module(args.module)
        except ImportError as error:
            raise ValueError(f"--import {args.module}: {error}") from error
    if args.scores is not None:
        return SavedScores(args.scores)
    return None if args.criterion == "magnitude" else CriterionScores(args.criterion)


def _target(checkpoint: Checkpoint, output: Path) -> Path:
    """The file or directory to make; writing it touches no more than an earlier output there."""
    is_file_name = output.suffix == ".safetensors"
    if not checkpoint.path.is_dir():
        return output if is_file_name else output / checkpoint.path.name
    if is_file_name:
        raise ValueError(f"{output}: the output of a model directory is a directory, not a file")
    source, target = checkpoint.path.resolve(), output.resolve()
    if source in target.parents or target in source.parents:
        raise ValueError(f"{output} and the checkpoint {checkpoint.path} lie one inside the other")
    return output


def _run(
    plan: Plan, limits: Limits, scores: SavedScores | CriterionScores | None, output: Path | None, overwrite: bool
) -> Pruning:
    with console.progress() as bars:
        task = bars.add_task("Selecting", total=sum(info.end - info.start for info in plan.checkpoint.tensors.values()))

        def advance(name: str) -> None:
            info = plan.checkpoint.tensors[name]
            bars.update(task, description="Pruning", advance=info.end - info.start)

        pruning = Pruning(plan, limits, advance, scores)
        if output is None:
            pruning.rehearse()
        else:
            pruning.write(output, overwrite=overwrite)
    return pruning


def _show(checkpoint: Checkpoint, report: PruneReport, document: dict[str, Any]) -> None:
    out = console.output()
    out.print(_table(report))
    for line in _notes(checkpoint, report, document):
        out.print(line, soft_wrap=True)


def _notes(checkpoint: Checkpoint, report: PruneReport, document: dict[str, Any]) -> Iterator[str]:
    """The lines below the table."""
    asked, pruned = console.percent(document["sparsity_asked"]), report.total - report.kept
    yield f"asked {asked}, reached {console.percent(report.sparsity)}: {pruned:,} of {report.total:,} weights pruned"
    yield ", ".join(f"{part} {seconds:.3f} s" for part, seconds in document["seconds"].items())
    yield from skipped_lines(checkpoint, document["skipped"])
    for file in document["copied_unpruned"]:
        yield f"copied as it is, with dense weights: {file}"
    if document["dry_run"]:
        memory, disk = (console.size_text(document[key]) for key in ("memory_bytes", "disk_bytes"))
        yield f"memory needed beside the mapped files: {memory}; size of the output: {disk}; nothing was written"
    else:
        yield f"written to {document['output']}"


def skipped_lines(checkpoint: Checkpoint, skipped: dict[str, str]) -> Iterator[str]:
    """A line for each reason why tensors of a checkpoint are left alone, with their share of it."""
    for reason in dict.fromkeys(skipped.values()):
        names = [name for name, why in skipped.items() if why == reason]
        share_of_all = console.percent(checkpoint.share(names))
        yield f"left alone, {reason}, {share_of_all} of all weights: {listed(names, 3)}"


def _table(report: PruneReport) -> Table:
    groups = _groups(report.layers)
    title = f"{report.criterion}, pattern {report.pattern}, scope {report.scope}"
    table = Table(title=title, show_footer=True)
    table.add_column("tensor", f"total of {len(report.layers)}", overflow="fold")
    table.add_column("shape as stored")
    table.add_column("weights", f"{report.total:,}", justify="right")
    table.add_column("kept", f"{report.kept:,}", justify="right")
    table.add_column("sparsity", console.percent(report.sparsity), justify="right")
    for name, layers in groups.items():
        total, kept = sum(x.total for x in layers), sum(x.kept for x in layers)
        shapes = sorted({console.shape_text(x.shape) for x in layers})
        low, high = (console.percent(pick(x.sparsity for x in layers)) for pick in (min, max))
        spread = low if low == high else f"{low} to {high}"
        label = f"{name}  ({len(layers)} tensors)" if len(layers) > 1 else name
        table.add_row(label, ", ".join(shapes), f"{total:,}", f"{kept:,}", spread)
    return table


def _groups(layers: tuple[LayerReport, ...]) -> dict[str, list[LayerReport]]:
    """Each layer under its name; where that is too much for a table, those that differ in numbers under one."""
    if len(layers) <= _MOST_ROWS:
        return {layer.name: [layer] for layer in layers}
    groups: dict[str, list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault(re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", layer.name), []).append(layer)
    return groups
