"""The machine, the software and the commit that figures belong to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
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
    """The commit of the working tree; PRUNEOPS_COMMIT names it in a copy without a repository."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if commit and _output("git", "status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return commit or os.environ.get("PRUNEOPS_COMMIT")


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


def main(arguments: list[str] | None = None) -> int:
    """Print the environment; fail where the device, or with ``--native`` its kernels, are missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.environment", description=main.__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device", file=sys.stderr)
        return 1
    facts = environment(options.device)
    print(json.dumps(facts, indent=1))
    return int(options.native and pruneops.backend_info()[options.device] != "native")


if __name__ == "__main__":
    sys.exit(main())
