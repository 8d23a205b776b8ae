"""``pruneops info``: what executes the operators."""

from __future__ import annotations

import argparse

from rich.table import Table

from .._native import backend_info
from .._version import __version__
from . import console


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    text = "Show what executes the operators: compiled kernels or the PyTorch reference, devices and versions."
    parser = commands.add_parser("info", help="show the backend in use", description=text)
    console.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the facts of :func:`pruneops.backend_info`."""
    facts = {"pruneops": __version__, **backend_info()}
    if args.json:
        console.print_json(facts)
        return
    table = Table(title="pruneops", show_header=False)
    for name, value in facts.items():
        table.add_row(name, _text(value))
    console.output().print(table)


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return {None: "none", True: "yes", False: "no"}.get(value, str(value))  # type: ignore[call-overload]
