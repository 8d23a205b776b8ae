"""Runs the tests of the kernels and of the operators in builds that check themselves (AddressSanitizer and
UndefinedBehaviorSanitizer, ThreadSanitizer), and says so where a machine cannot.

    python tests/sanitize.py [kernels] [ops] [threads]
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Run(NamedTuple):
    """``tests`` of a build with ``sanitizers``, whose runtime is loaded before Python."""

    sanitizers: str
    runtime: str
    needs: tuple[str, ...]
    tests: tuple[str, ...]


RUNS = {
    # Grids that loop and threads that share, which the ordinary run tests as they are launched too. Hostile values
    # are for the CPU kernels alone: under the emulation every value takes the same way through memory. Of the many
    # entries that a thread passes over, test_cpu_threads has enough.
    "kernels": Run(
        "address,undefined", "libasan.so", ("cmake", "ninja"),
        ("tests/emulation", "-k",
         "3-blocks and not values and not dtypes3 and not dtypes4 or 3-threads and not of_many or test_any or of_any "
         "or cpu_threads or emulated_sizes or sanitizers"),
    ),
    # Not what compiles or traces, which is torch's own code, nor packages without the library, nor other instruction
    # sets, which a build for tests lacks, nor values and millions of them: they are for kernels.
    "ops": Run(
        "address,undefined", "libasan.so", (),
        ("tests/ops", "tests/contracts", "-k",
         "not inductor and not compile and not opcheck and not values and not millions",
         "--ignore=tests/contracts/test_missing_library.py", "--ignore=tests/contracts/test_instruction_sets.py"),
    ),
    "threads": Run(
        "thread", "libtsan.so", ("cmake", "ninja"),
        ("tests/emulation", "-k",
         "3-threads and not values and not of_many or (test_any or of_any) and cpu or cpu_threads or sanitizers"),
    ),
}  # fmt: skip

#: Python itself leaks. A report ends the process, so that no test can hide it.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def library(name):
    """Where g++ keeps a library, or None."""
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if Path(path).is_absolute() and Path(path).exists() else None


def what_is_missing(run):
    """Why this machine cannot do a run, or None."""
    for tool in ("g++", *run.needs):
        if shutil.which(tool) is None:
            return f"{tool} is not on the path"
    if library(run.runtime) is None:
        return f"g++ has no {run.runtime}, the runtime of -fsanitize={run.sanitizers}"
    for package in ("pytest", "hypothesis", *(("pybind11",) if run.needs else ("torch",))):
        if importlib.util.find_spec(package) is None:
            return f"the Python package {package} is not installed"
    return None


def build_ops(sanitizers):
    """The operators' library with sanitizers, built beside the package."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PRUNEOPS_SANITIZE": sanitizers},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"setup.py build_ext failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    (built,) = (ROOT / "build" / sanitizers.replace(",", "-") / "pruneops").glob("_C*.so")
    return str(built)


def without_randomization():
    """ThreadSanitizer knows where memory may lie, and newer kernels place it elsewhere."""
    command = ["setarch", "-R"]
    works = shutil.which("setarch") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


def run_tests(name):
    """What came of a run: whether it is in order, and a line about it."""
    run = RUNS[name]
    if reason := what_is_missing(run):
        return True, f"SKIPPED: {reason}"
    start = time.monotonic()
    env = {
        **os.environ, **OPTIONS, "PRUNEOPS_SANITIZE": run.sanitizers, "HYPOTHESIS_PROFILE": "sanitize",
        # The C++ library too, whose exceptions the sanitizers intercept.
        "LD_PRELOAD": f"{library(run.runtime)} {library('libstdc++.so')}",
    }  # fmt: skip
    if not run.needs:
        env["PRUNEOPS_LIBRARY"] = build_ops(run.sanitizers)
    prefix = without_randomization() if run.sanitizers == "thread" else []
    command = [*prefix, sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *run.tests]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    passed = re.search(r"^\d+ passed.*", done.stdout, re.MULTILINE)
    if done.returncode != 0 or passed is None:
        return False, f"FAILED\n{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-12000:]}"
    return True, f"{passed[0]} ({time.monotonic() - start:.0f} s with the build)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all by default")
    names = parser.parse_args().runs or list(RUNS)
    if unknown := set(names) - set(RUNS):
        parser.error(f"no run is named {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    in_order = True
    with ThreadPoolExecutor(2) as pool:  # the tests of a run take one processor, mostly
        for name, (fine, line) in zip(names, pool.map(run_tests, names), strict=True):
            print(f"sanitize: {name} under {RUNS[name].sanitizers}: {line}", flush=True)
            in_order &= fine
    sys.exit(not in_order)


if __name__ == "__main__":
    main()
