"""``pruneops verify``: proves the sparsity and the pattern of a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from ..checkpoint import Checkpoint
from ..selection import SCOPES
from ..verification import Verification, verify
from . import console
from .prune import share, skipped_lines

_ABOUT = """
Prove what a checkpoint is: that at least int(sparsity * n) of its n weights (or blocks, altogether) are zero, and that
N:M groups hold. The tensors are those that 'pruneops prune' would prune. Exit code 0 where all of it is true, 1 where
it is not, 2 for bad input.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("verify", help="prove the sparsity and pattern of a checkpoint", description=_ABOUT)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a .safetensors file, or a model directory")
    parser.add_argument("--sparsity", type=share, help="share that must be zero; N:M patterns give it")
    parser.add_argument("--pattern", default="1x1", help="1x1, NxM, channelx1, 1xchannel or N:M (default: 1x1)")
    parser.add_argument("--scope", choices=SCOPES, default="global", help="in total (default), in each, in each row")
    parser.add_argument("--exact", action="store_true", help="not one more may be zero either")
    parser.add_argument("--include", metavar="NAME", action="append", help="only these, as in 'pruneops prune'")
    parser.add_argument("--exclude", metavar="NAME", action="append", help="not these, as in 'pruneops prune'")
    console.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify the checkpoint; 0 where the claim is true, else 1."""
    checkpoint = Checkpoint(args.checkpoint)
    with console.progress() as bars:
        task = bars.add_task("Reading", total=None)
        found = verify(
            checkpoint, args.sparsity, args.pattern, scope=args.scope, include=args.include, exclude=args.exclude,
            exact=args.exact, on_tensor=lambda name: bars.update(task, description=name),
        )  # fmt: skip
    if args.json:
        console.print_json({"checkpoint": str(args.checkpoint), **found.to_dict()})
    else:
        _show(found, checkpoint)
    return 0 if found.ok else 1


def _show(found: Verification, checkpoint: Checkpoint) -> None:
    table = Table(title=str(checkpoint.path), show_footer=True)
    table.add_column("tensor", f"total of {len(found.tensors)}", overflow="fold")
    table.add_column("shape (out x in)")
    table.add_column("units", f"{found.units:,}", justify="right")
    table.add_column("zero", f"{found.pruned:,}", justify="right")
    table.add_column("sparsity", console.percent(found.pruned / max(found.units, 1)), justify="right")
    table.add_column("broken", f"{sum(x.broken for x in found.tensors):,}", justify="right")
    for x in found.tensors:
        shape, sparsity = console.shape_text(x.shape), console.percent(x.sparsity)
        table.add_row(x.name, shape, f"{x.units:,}", f"{x.pruned:,}", sparsity, f"{x.broken:,}")
    out = console.output()
    out.print(table)
    for line in skipped_lines(checkpoint, found.skipped):
        out.print(line, soft_wrap=True)
    for file in found.unchecked:
        out.print(f"not checked, may hold dense weights: {file}", soft_wrap=True)
    claim = f"sparsity {found.sparsity:g}, pattern {found.pattern}, scope {found.scope}"
    for problem in found.problems:
        out.print(problem)
    out.print(f"{'verified' if found.ok else 'NOT TRUE'}: {claim}")
