"""Peak extra memory of a call: what it allocated beyond what stood before it."""

from __future__ import annotations

import ctypes
import ctypes.util
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _STATM, _CLEAR = (Path("/proc/self") / name for name in ("status", "statm", "clear_refs"))
_PAGE = 4096


def available(device: str) -> int:
    """Free bytes on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable in /proc/meminfo")


def peak_extra(call: Callable[[], object], device: str) -> int:
    """Peak bytes beyond those before the call, its result included.

    On CUDA by the caching allocator's own count; on CPU by the resident set, whose high-water mark Linux resets on
    request, or by a sampling thread where that is not allowed.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _sampled(call)
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM") - before
    del result
    return max(peak, 0)


def _return_free_memory() -> None:
    """Give freed blocks back to the system, so that using them again counts."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in {_STATUS}")


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE


def _sampled(call: Callable[[], object]) -> int:
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident())
            time.sleep(1e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(peak, _resident()) - before
