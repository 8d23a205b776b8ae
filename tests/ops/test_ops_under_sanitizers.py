"""The sanitizers see what is planted in the operators' library, in a process of its own, as a report ends it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "address" not in os.environ.get("PRUNEOPS_SANITIZE", ""), reason="run by tests/sanitize.py"
)

#: An array of 4,096 entries that says it has some more.
USE = """
import sys
import numpy as np, torch
from pruneops import ops
entries = 4096 + int(sys.argv[1])
x = np.lib.stride_tricks.as_strided(np.ones(4096, np.float32), (entries,))
ops.update_scores_(torch.zeros(entries), torch.from_numpy(x), None, metric="magnitude")
"""


def run(entries):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", USE, str(entries)], capture_output=True, text=True)


def test_sanitizers_see_the_library():
    done = run(0)
    assert done.returncode == 0, done.stderr
    done = run(8)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "pruneops::" in done.stderr
