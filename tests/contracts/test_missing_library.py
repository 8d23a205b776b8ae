"""Missing pieces are said aloud: what runs is known, a missing library warns once, a broken one is an error."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pruneops
from pruneops import ops

PACKAGE = Path(pruneops.__file__).parent

USE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, pruneops
    from pruneops import ops
    score = ops.update_scores_(torch.zeros(8), torch.arange(8.0), torch.ones(8), metric="snip", alpha=0.9)
    mask = ops.topk_mask(score, keep=3)
    ops.apply_masks_(score, ops.pack_mask(mask))
    import pruneops.ops
print(json.dumps({
    "warnings": [[w.category.__name__, str(w.message)] for w in caught if "pruneops" in str(w.message)],
    "info": pruneops.backend_info(), "score": score.tolist(), "file": pruneops.__file__,
}))
"""


@pytest.fixture
def copy(tmp_path):
    """The package without its compiled library."""
    target = tmp_path / "pruneops"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def run(folder, **environment):
    environment = {**os.environ, "PYTHONPATH": str(folder.parent), **environment}
    command = [sys.executable, "-c", USE]
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


def test_without_the_library_everything_works_after_one_warning(copy):
    done = run(copy)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert Path(told["file"]).parent == copy
    assert told["score"] == [0, 0, 0, 0, 0, 5, 6, 7]
    ((category, message),) = told["warnings"]
    assert category == "RuntimeWarning"
    assert "compiled library is missing" in message
    assert "pip install" in message
    info = told["info"]
    assert (info["cpu"], info["cuda"], info["library"]) == ("reference", "reference", None)
    assert (info["cuda_compiled"], info["cuda_archs"], info["cpu_isa"]) == (False, [], None)


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(100)])
def test_a_broken_library_is_an_error_with_its_cause(copy, content):
    library = copy / "_C.abi3.so"
    library.write_bytes(content)
    done = run(copy)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: pruneops: the compiled library {library} does not load: ")
    cause = last.partition("does not load: ")[2]
    assert any(word in cause for word in ("file too short", "invalid ELF header", "ELF"))
    assert "Traceback" in done.stderr


def test_a_library_of_something_else_is_an_error(copy):
    found = next(iter(Path(torch.__file__).parent.glob("lib/libc10.so")), None)
    if found is None:
        pytest.skip("torch has no shared library of its own here")
    shutil.copy(found, copy / "_C.abi3.so")
    done = run(copy)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: pruneops: the compiled library ")


def test_a_library_may_be_named(copy):
    library = pruneops.backend_info()["library"]
    if library is None:
        pytest.skip("no compiled library in the package")
    done = run(copy, PRUNEOPS_LIBRARY=library)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["warnings"] == []
    assert (told["info"]["cpu"], told["info"]["library"]) == ("native", library)


@pytest.mark.parametrize("named", ["", "nowhere.so", "."])
def test_a_named_library_that_is_not_there_is_an_error(copy, named):
    done = run(copy, PRUNEOPS_LIBRARY=named)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: pruneops: PRUNEOPS_LIBRARY names no file: {named!r}"


def test_native_library_is_used():
    if not list(PACKAGE.glob("_C*.so")):
        pytest.skip("no compiled library in the package")
    assert pruneops.backend_info()["cpu"] == "native"


def test_cpu_kernels_are_those_for_the_instruction_set_of_the_machine():
    chosen = pruneops.backend_info()["cpu_isa"]
    if chosen is None:
        pytest.skip("no compiled library")
    assert chosen == {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "baseline")


def test_backend_info_is_consistent():
    info = pruneops.backend_info()
    assert set(info) == {
        "cpu", "cpu_isa", "cuda", "cuda_compiled", "cuda_archs", "cuda_available", "torch", "built_with_torch",
        "library",
    }  # fmt: skip
    native = info["library"] is not None
    assert info["cpu"] == ("native" if native else "reference")
    assert info["cuda"] == ("native" if info["cuda_compiled"] else "reference")
    assert info["cuda_compiled"] == bool(info["cuda_archs"])
    assert (info["cpu_isa"] is not None) == (info["built_with_torch"] is not None) == native
    assert info["torch"] == torch.__version__
    assert info["cuda_available"] == torch.cuda.is_available()
    if native:
        assert Path(info["library"]).is_file()
        assert all(arch.replace("+PTX", "").replace(".", "").isdigit() for arch in info["cuda_archs"])
    json.dumps(info)


def test_backend_info_is_a_fresh_dict():
    pruneops.backend_info()["cpu"] = "changed"
    assert pruneops.backend_info()["cpu"] != "changed"


def operators():
    """All that are registered, such as ``pruneops::block_reduce.out``."""
    return sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pruneops::"))


def test_every_operator_is_registered():
    assert {name.removeprefix("pruneops::").partition(".")[0] for name in operators()} == set(ops.__all__)


@pytest.mark.parametrize("op", operators())
@pytest.mark.parametrize("key", ["CPU", "CUDA"])
def test_every_operator_has_a_kernel_where_the_backend_says_native(op, key):
    if pruneops.backend_info()[key.lower()] != "native":
        pytest.skip(f"the {key} backend is the reference")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, key)
