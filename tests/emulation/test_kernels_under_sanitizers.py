"""The sanitizers see what is planted, in processes of their own, as a report ends a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SANITIZE = os.environ.get("PRUNEOPS_SANITIZE", "")

under_address = pytest.mark.skipif("address" not in SANITIZE, reason="run by tests/sanitize.py")
under_thread = pytest.mark.skipif("thread" not in SANITIZE, reason="run by tests/sanitize.py")

PLANTED_FAULT = """
import sys, numpy as np
import _emulation_selftest as selftest
selftest.run(sys.argv[1], 2, 64, np.ones(128, np.int32))
"""

#: Three threads update one score at a time, in so many tiles that none can do the work of all.
RACE = """
import numpy as np, _emulation as e
from driver import Backend
cpu = Backend(e, "cpu", 3)
cpu.configure()
score, weights = cpu.array(np.zeros(10**6)), [cpu.array(np.ones(10**6)) for _ in range(3)]
scores = [score] * (3 if "race" in sys.argv[1] else 1)
cpu.update_scores(scores, weights[: len(scores)], [None] * len(scores), metric="magnitude", alpha=1.0)
"""


def run(module, script, *args):
    tests = Path(__file__).parent
    folders = os.pathsep.join(map(str, (Path(module.__file__).parent, tests, tests.parent)))
    return subprocess.run(
        [sys.executable, "-c", "import sys\n" + script, *args], env={**os.environ, "PYTHONPATH": folders},
        capture_output=True, text=True,
    )  # fmt: skip


@under_address
@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("read_past_the_end", "AddressSanitizer: heap-buffer-overflow"),
        ("write_past_the_end", "AddressSanitizer: heap-buffer-overflow"),
        ("index_past_shared", "runtime error: index 8 out of bounds"),
        ("misaligned_vector", "misaligned address"),
        ("overflowing_index", "runtime error: signed integer overflow"),
    ],
)
def test_sanitizers_see_faults_of_device_code(selftest, fault, report):
    assert run(selftest, PLANTED_FAULT, "block_sum").returncode == 0
    done = run(selftest, PLANTED_FAULT, fault)
    assert done.returncode != 0
    assert report in done.stderr
    assert "faults.cu" in done.stderr


@under_thread
def test_sanitizers_see_a_race_of_the_cpu_kernels(emulation):
    done = run(emulation, RACE, "one score a thread")
    assert done.returncode == 0, done.stderr
    done = run(emulation, RACE, "race")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
    assert "pruneops::cpu" in done.stderr
