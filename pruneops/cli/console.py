"""What the commands share: arguments, consoles, progress bars and the form of numbers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

#: Width of tables where stdout is no terminal, so that long tensor names stay whole.
_PLAIN_WIDTH = 140


def output() -> Console:
    """The console of results, on stdout; text is printed as it is, whatever a path or a name holds."""
    plain_width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return _Output(width=plain_width, markup=False, emoji=False, highlight=False)


class _Output(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError  # main() knows the exit code


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which every command has."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on stderr, which vanishes at the end; silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def percent(share: float) -> str:
    """A share with two decimals: 12.50 %."""
    return f"{100 * share:.2f} %"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape such as 384 x 1536."""
    return " x ".join(map(str, shape))


def size_text(count: int) -> str:
    """A number of bytes in the largest binary unit that leaves it above 1."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
