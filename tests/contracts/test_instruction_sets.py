"""The kernels for other machines' vector instructions give what the oracle gives, as far as this machine has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pruneops

TESTS = Path(__file__).parents[1]

#: What ATEN_CPU_CAPABILITY calls the instruction sets, and what backend_info() does, fewest instructions first.
SETS = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}


def run(capability, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=TESTS.parent, env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(params=["default", "avx2"])
def fewer(request):
    """A capability below the one that this process has."""
    own = pruneops.backend_info()["cpu_isa"]
    if own is None:
        pytest.skip("no compiled library")
    if list(SETS.values()).index(SETS[request.param]) >= list(SETS.values()).index(own):
        pytest.skip(f"this machine's kernels are {own}")
    return request.param


def test_a_capability_limits_the_kernels(fewer):
    done = run(fewer, "-c", "import pruneops; print(pruneops.backend_info()['cpu_isa'])")
    assert (done.stdout.strip(), done.returncode) == (SETS[fewer], 0), done.stderr


def test_an_unknown_capability_limits_nothing():
    done = run("none", "-c", "import pruneops; print(pruneops.backend_info()['cpu_isa'])")
    assert done.stdout.strip() == str(pruneops.backend_info()["cpu_isa"])


def test_random_calls_with_fewer_instructions(fewer):
    done = run(fewer, str(TESTS / "fuzz.py"), "--cases", "1500", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr


def test_blocks_and_bits_with_fewer_instructions(fewer):
    files = ("test_update_block_scores.py", "test_block_reduce.py", "test_pack_unpack.py")
    done = run(fewer, "-m", "pytest", "-q", "-m", "not cuda", *(str(TESTS / "ops" / file) for file in files))
    assert done.returncode == 0, done.stdout + done.stderr
