"""The machine, the software and the commit that figures belong to."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import pruneops

ROOT = Path(__file__).resolve().parents[1]


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if commit and _output("git", "status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return commit


def environment(device: str) -> dict[str, object]:
    facts: dict[str, object] = {
        "device": device,
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "backend": {key: value for key, value in pruneops.backend_info().items() if key != "library"},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_memory"] = properties.total_memory
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        facts["cuda"] = torch.version.cuda
    return facts
