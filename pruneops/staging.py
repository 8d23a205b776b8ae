"""Output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(target: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A path beside ``target`` to write a file or directory to, which takes its place when the block ends.

    The old content of ``target`` survives until the new is complete and on disk. When the block fails or is
    interrupted, the staged files and the parent directories made for them are removed.

    Args:
        target: the file or directory to make; missing parents are made.
        overwrite: replace what is there.

    Yields:
        The path to write to; nothing exists there yet.

    Raises:
        FileExistsError: ``target`` exists and ``overwrite`` is false.
        OSError: the place cannot be written to.

    Example:
        >>> with staged("model.safetensors") as path:  # doctest: +SKIP
        ...     path.write_bytes(data)
    """
    target = Path(target).resolve()
    _check_free(target, overwrite)
    with _parents_of(target):
        work = Path(tempfile.mkdtemp(prefix=".pruneops-", dir=target.parent))
        try:
            new = work / target.name
            yield new
            _sync(new)
            _check_free(target, overwrite)
            _move(new, target, aside=work / "replaced")
        except OSError as error:
            # A full disk is reported by write(), which knows no file name.
            error.filename = error.filename or str(target)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", str(target))


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """The missing parent directories of ``target``, for the time of the block; for good where it succeeds."""
    missing = [parent for parent in target.parents if not parent.exists()]
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            parent.rmdir()
        raise


def _sync(path: Path) -> None:
    """Bring a file, or all files of a directory, to the disk: a rename must not outrun its data."""
    for file in [path, *path.rglob("*")]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move(new: Path, target: Path, aside: Path) -> None:
    """Rename ``new`` to ``target``; what a single rename cannot replace goes ``aside``, and comes back on failure."""
    if new.is_file() and not target.is_dir():
        os.replace(new, target)
        return
    try:
        if target.exists():
            os.rename(target, aside)
        os.rename(new, target)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        raise
