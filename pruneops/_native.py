"""Finds and loads the compiled library, and says what is in use."""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from . import _library  # noqa: F401  the schemas must exist before kernels are added to them


def _find() -> str | None:
    """``_C*.so`` beside this file, unless ``PRUNEOPS_LIBRARY`` names another one."""
    named = os.environ.get("PRUNEOPS_LIBRARY")
    if named is None:
        return next((str(path) for path in sorted(Path(__file__).parent.glob("_C*.so"))), None)
    if not Path(named).is_file():
        raise ImportError(f"pruneops: PRUNEOPS_LIBRARY names no file: {named!r}")
    return str(Path(named).resolve())


def _load() -> dict[str, object] | None:
    """Load the compiled library; its build facts, or None (with a warning) where there is none."""
    path = _find()
    if path is None:
        warnings.warn(
            "pruneops: the compiled library is missing (no _C*.so in the package); every operator uses the slow "
            "PyTorch reference. Install with: pip install --no-build-isolation .",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    try:
        torch.ops.load_library(path)
        build_info = ctypes.CDLL(path).pruneops_build_info
    except (OSError, AttributeError) as error:
        cause = error.__cause__ or error  # torch wraps what the loader says
        raise ImportError(f"pruneops: the compiled library {path} does not load: {cause}") from error
    build_info.restype = ctypes.c_char_p
    build = json.loads(build_info())
    archs = [arch for arch in build.pop("cuda_archs").split(",") if arch]
    return {"library": path, "cuda_archs": archs, **build}


_BUILD = _load()


def is_served(tensor: object) -> bool:
    """Whether operators on this tensor are the compiled ones, called right now and not traced."""
    if type(tensor) not in (Tensor, Parameter) or is_compiling() or _BUILD is None:
        return False
    return tensor.is_cpu or (tensor.is_cuda and bool(_BUILD["cuda_archs"]))  # type: ignore[attr-defined]


def backend_info() -> dict[str, object]:
    """What executes the operators.

    Returns:
        A dict with ``cpu`` and ``cuda`` (``"native"`` or ``"reference"``), ``cuda_compiled`` (bool),
        ``cuda_archs`` (list such as ``["8.0", "9.0+PTX"]``), ``cpu_isa`` (the vector instructions chosen on this
        machine; the variable ATEN_CPU_CAPABILITY limits them, as it limits torch's), ``torch`` (version in use),
        ``built_with_torch``, ``cuda_available`` and ``library`` (path or None).

    Example:
        >>> backend_info()["cpu"]
        'native'
    """
    build = _BUILD or {}
    cuda_compiled = bool(build.get("cuda_archs"))
    return {
        "cpu": "native" if _BUILD else "reference",
        "cuda": "native" if cuda_compiled else "reference",
        "cuda_compiled": cuda_compiled,
        "cuda_archs": build.get("cuda_archs", []),
        "cpu_isa": build.get("cpu_isa"),
        "torch": torch.__version__,
        "built_with_torch": build.get("built_with_torch"),
        "cuda_available": torch.cuda.is_available(),
        "library": build.get("library"),
    }
