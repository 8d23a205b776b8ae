"""Run the benchmarks with torch and NumPy alone, on CPU or CUDA: ``python -m bench --device cuda``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import torch

from .common import Bench, Case, Config, DoesNotFitError
from .environment import environment
from .results import STATISTIC


def all_cases(config: Config) -> Iterator[Case]:
    """The cases of every file that can be imported."""
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        try:
            module = importlib.import_module(f"bench.{path.stem}")
        except ImportError as error:
            print(f"{path.name}: skipped, {error}", file=sys.stderr)
            continue
        yield from module.cases(config)


def describe(record: dict) -> str:
    facts, stats = record["extra_info"], record["stats"]
    if not stats:
        return f"{record['name']}: failed, {facts['error']}"
    seconds = stats[STATISTIC[facts["device"]]]
    fraction = facts["floor_bytes"] / seconds / facts["copy_bandwidth"]
    extra = facts["peak_extra_bytes"] / 2**20
    return f"{record['name']}: {1e3 * seconds:.3f} ms, {fraction:.3f} of the copy bandwidth, {extra:.1f} MiB extra"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("smoke", "default", "full"), default="default")
    parser.add_argument("--only", default="*", help="glob over <op>-<case>")
    parser.add_argument("--contender", default="*", help="glob over their names")
    parser.add_argument("--budget", type=float, default=float("inf"), help="start no case after so many seconds")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 2
    config = Config(options.device, options.size)
    bench, records, began, failed = Bench(config), [], time.monotonic(), False
    result = {"machine_info": environment(options.device), "benchmarks": records}
    wanted = [case for case in all_cases(config) if fnmatch(f"{case.op}-{case.name}", options.only)]
    # The main cases first: the budget may end before the others.
    for case in sorted(wanted, key=lambda case: not case.headline):
        if time.monotonic() - began > options.budget:
            print(f"{case.op}-{case.name}: skipped, out of time", flush=True)
            continue
        try:
            for contender in filter(lambda name: fnmatch(name, options.contender), case.contenders):
                record = bench.run(case, contender)
                failed |= contender == "pruneops" and not record["stats"]
                records.append(record)
                print(describe(record), flush=True)
        except DoesNotFitError as error:
            print(f"{case.op}-{case.name}: skipped, {error}", flush=True)
        if options.output:
            # After every case, so that a run that is cut off leaves what it measured.
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
