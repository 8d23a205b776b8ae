"""The command line: ``pruneops prune``, ``score``, ``inspect``, ``verify`` and ``info``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .._version import __version__
from . import info, inspect, prune, score, verify

_BAD_INPUT, _INTERRUPTED, _TERMINATED = 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0; 1 where ``verify`` finds that a claim is not true; 2 after one line on stderr that says what
        was wrong, with nothing written; 130 after Ctrl-C; 143 after a termination signal; 141 where the reader of the
        output went away.

    Example:
        >>> main(["info", "--json"])  # doctest: +SKIP
        0
    """
    try:
        with _termination_unwinds(), _warnings_are_lines():
            args = _parser().parse_args(argv)
            code: int | None = args.run(args)
            sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return _say("interrupted", _INTERRUPTED)
    except _Terminated:
        return _say("terminated", _TERMINATED)
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MemoryError, RuntimeError) as error:
        # PyTorch's CPU allocator raises a RuntimeError of its own; any other is a fault that needs its traceback.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        return _say("error: out of memory", _BAD_INPUT)
    except OSError as error:
        return _say(f"error: {_describe(error)}", _BAD_INPUT)
    except (ValueError, TypeError, ImportError) as error:
        return _say(f"error: {error}", _BAD_INPUT)


class _Terminated(BaseException):
    """A termination signal; like KeyboardInterrupt, so that it unwinds and the staged files go."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pruneops", description="Fast, exact pruning of transformer checkpoints.")
    parser.add_argument("--version", action="version", version=f"pruneops {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (prune, score, inspect, verify, info):
        command.add_parser(commands)
    return parser


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Turn SIGTERM into an exception for the time of the block."""

    def terminate(*_: object) -> NoReturn:
        raise _Terminated

    try:
        old = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old or signal.SIG_DFL)


@contextmanager
def _warnings_are_lines() -> Iterator[None]:
    """Show what a user is warned of as errors are shown, and not the place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is UserWarning:
                _say(f"warning: {message}", 0)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_line
        yield


def _say(message: str, code: int) -> int:
    print("pruneops:", " ".join(message.split()), file=sys.stderr)
    return code


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    reason = error.strerror.replace("overwrite=True", "--overwrite")
    return f"{error.filename}: {reason}" if error.filename else reason
