"""Builds the emulation once for each session, in build/, and lends its modules."""

import importlib
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

import pytest
from driver import Backend

ROOT = Path(__file__).parents[2]
#: Sanitizers to build with, such as "address,undefined". They check instead of the emulation, and Python must run
#: with their library preloaded.
SANITIZE = os.environ.get("PRUNEOPS_SANITIZE", "")
BUILD = ROOT / "build" / ("emulation-" + SANITIZE.replace(",", "-") if SANITIZE else "emulation")

#: Every test starts from a seed of its own, which follows from this one and the test's name.
SEED = int(os.environ.get("PRUNEOPS_EMULATION_SEED") or random.SystemRandom().getrandbits(32))


def pytest_report_header():
    return f"emulation: PRUNEOPS_EMULATION_SEED={SEED}"


def _run(*command):
    # A preloaded sanitizer is for the tests, not for the compiler.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-8000:]}{done.stderr[-8000:]}", pytrace=False)


@pytest.fixture(scope="session")
def build_module():
    """Builds and imports a module by its name."""
    for tool in ("cmake", "g++", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"the emulation is built with {tool}, which is not there")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("the emulation is built with Python's headers, which are not there")
    pybind11 = pytest.importorskip("pybind11")
    _run(
        "cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD, "-DCMAKE_CXX_COMPILER=g++", "-DPRUNEOPS_EMULATION=ON",
        f"-DPRUNEOPS_SANITIZE={SANITIZE}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip

    def build(name):
        _run("cmake", "--build", BUILD, "--target", name)
        return importlib.import_module(name)

    sys.path.insert(0, str(BUILD))
    return build


@pytest.fixture(scope="session")
def selftest(build_module):
    return build_module("_emulation_selftest")


#: The emulated kernels as they are launched, and with grids that make blocks loop or leave some without work; the
#: CPU kernels on one and on three threads.
BACKENDS = {
    "emulated": ("cuda", 0),
    "emulated-3-blocks": ("cuda", 3),
    "cpu": ("cpu", 1),
    "cpu-3-threads": ("cpu", 3),
}


@pytest.fixture(scope="session")
def emulation(build_module):
    return build_module("_emulation")


# Session scope: hypothesis runs many examples within one test, which all share the backend.
@pytest.fixture(scope="session", params=BACKENDS)
def backend(emulation, request):
    return Backend(emulation, *BACKENDS[request.param])


@pytest.fixture(scope="session", params=["emulated", "cpu"])
def any_backend(emulation, request):
    """For hypothesis, which draws the grid or the threads."""
    return Backend(emulation, BACKENDS[request.param][0])


@pytest.fixture(autouse=True)
def _settings(request):
    """Every test starts with its own seed, and with the grids and threads of its backend."""
    if "emulation" not in request.fixturenames:
        return
    module = request.getfixturevalue("emulation")
    module.set_seed(SEED ^ zlib.crc32(request.node.nodeid.encode()))
    module.set_last_blocks(2**64 - 1)
    module.set_grid(0)
    module.set_small_grid(1)
    module.cpu.set_threads(1)
    if "backend" in request.fixturenames:
        request.getfixturevalue("backend").configure()
