"""Output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ._checks import listed
from .checkpoint import WORK_PREFIX


@contextmanager
def staged(target: str | Path, *, overwrite: bool = False, files: Collection[Path] | None = None) -> Iterator[Path]:
    """A path to write a file or directory to, which takes the place of ``target`` when the block ends.

    The old content of ``target`` survives until the new is complete and on disk. When the block fails or is
    interrupted, the staged files and the parent directories made for them are removed.

    A file is replaced, or a new directory appears, in one step. A directory that exists stays the same, and nothing
    is replaced in it but ``files``: the old ones go aside, the new ones come in, and if that fails the old come back.
    A process that is killed in that moment leaves both in a directory ``.pruneops-*`` in it.

    Args:
        target: the file or directory to make; missing parents are made.
        overwrite: replace what is there. An empty directory is filled without it.
        files: the files that the directory to make will hold, relative to it; None where a file is made.

    Yields:
        The path to write to; nothing exists there yet.

    Raises:
        FileExistsError: as in :func:`check_target`.
        OSError: the place cannot be written to.

    Example:
        >>> with staged("model.safetensors") as path:  # doctest: +SKIP
        ...     path.write_bytes(data)
    """
    target = Path(target).resolve()
    check_target(target, overwrite, files)
    with _parents_of(target):
        # What exists may be a mount point, to which nothing beside it can be renamed.
        work = Path(tempfile.mkdtemp(prefix=WORK_PREFIX, dir=target if target.is_dir() else target.parent))
        new, old = work / target.name, work / f"{target.name}.replaced"
        try:
            yield new
            _sync(new)
            if files is not None and target.is_dir():
                _swap(new, target, old, overwrite, files)
            else:
                check_target(target, overwrite, files)
                os.replace(new, target)
        except SafetensorError as error:
            # So the writers of safetensors report a full disk.
            raise OSError(errno.EIO, str(error), str(target)) from error
        except OSError as error:
            # A full disk is reported by write(), which knows no file name.
            error.filename = error.filename or str(target)
            raise
        finally:
            if not old.exists() or not any(old.iterdir()):  # what could not come back is not removed
                shutil.rmtree(work, ignore_errors=True)


def check_target(target: Path, overwrite: bool, files: Collection[Path] | None = None) -> None:
    """Whether an output may be made at a place.

    Args:
        target, overwrite, files: as in :func:`staged`.

    Raises:
        FileExistsError: ``target`` is a directory where a file is to be made, or the other way round; it holds files
            that are not among ``files``; or it exists and ``overwrite`` is false.
        OSError: the directory cannot be read.

    Example:
        >>> check_target(Path("model"), True, [Path("model.safetensors")])
    """
    if target.exists():
        _refuse(target, _why_not(target, overwrite, files))


def _refuse(target: Path, reason: str | None) -> None:
    if reason:
        raise FileExistsError(errno.EEXIST, reason, str(target))


def _why_not(target: Path, overwrite: bool, files: Collection[Path] | None) -> str | None:
    """Why what is at ``target`` may not be replaced, or None."""
    if not (target.is_file() if files is None else target.is_dir()):
        return "exists and is no file" if files is None else "exists and is no directory"
    if files is not None:
        if others := _others(target, files):
            return f"holds what the output would not replace ({listed(others, 3)}); choose another place"
        if not any(target.iterdir()):
            return None
    return None if overwrite else "exists already; overwrite=True replaces it"


def _others(folder: Path, files: Collection[Path]) -> list[Path]:
    """The files of a directory that are not among ``files``, relative to it, those at its top first."""
    found = {path.relative_to(folder) for path in _files(folder)} - set(files)
    return sorted(found, key=lambda path: (len(path.parts), path))


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _swap(new: Path, target: Path, old: Path, overwrite: bool, files: Collection[Path]) -> None:
    """Bring the entries of ``new`` into ``target``; what they replace goes to ``old``, and comes back on failure."""
    names = {file.parts[0] for file in files}
    aside = [(target / name, old / name) for name in names if os.path.lexists(target / name)]
    inside = [(entry, target / entry.name) for entry in new.iterdir()]
    old.mkdir()
    try:
        _rename(aside)
        _refuse(target, _why_not(old, overwrite, files))  # what came while the new was written
        _rename(inside)
    except BaseException:
        _rename((after, before) for before, after in reversed(aside + inside) if _moved(before, after))
        raise
    os.rename(old, f"{old}.done")


def _rename(moves: Iterable[tuple[Path, Path]]) -> None:
    for before, after in moves:
        os.rename(before, after)


def _moved(before: Path, after: Path) -> bool:
    return os.path.lexists(after) and not os.path.lexists(before)


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
