"""Builds the compiled library: one shared object with the CPU kernels and, where wanted, the CUDA kernels.

It is built on PyTorch's stable ABI and uses no Python API, so that one binary serves every torch from 2.10 on and
every Python. Environment: FORCE_CUDA=1 (also without a GPU or a CUDA build of torch) or FORCE_CUDA=0; otherwise CUDA
is built where nvcc is found. TORCH_CUDA_ARCH_LIST chooses the architectures, CUDA_HOME the toolkit, MAX_JOBS the
number of compilers at a time. PRUNEOPS_SANITIZE=address,undefined builds a library that checks itself, in
build/address-undefined instead of the package (tests/sanitize.py runs tests on it); it has no CUDA kernels, and CPU
kernels for this machine alone.
"""

import os
import platform
import shutil
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
DEFAULT_ARCHS = "8.0 9.0 10.0+PTX"
#: The CPU kernels that csrc/cpu/isa.cpp chooses, by what torch calls the machine's instruction set.
ISAS = {"AVX512": "avx512", "AVX2": "avx2"}
SANITIZE = os.environ.get("PRUNEOPS_SANITIZE", "")


def cuda_home() -> Path | None:
    """The toolkit that holds nvcc, or None."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(named)] if named else []
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parent.parent)
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    # A wrapper script may stand for nvcc on the PATH; the toolkit is where the headers are too.
    return next((c for c in candidates if (c / "bin/nvcc").exists() and (c / "include/cuda_runtime.h").exists()), None)


def wanted_cuda() -> Path | None:
    """The toolkit to build with: FORCE_CUDA decides, otherwise its presence does."""
    force = "0" if SANITIZE else os.environ.get("FORCE_CUDA")
    if force not in (None, "0", "1"):
        raise SystemExit(f"pruneops: FORCE_CUDA must be 0 or 1, got {force!r}")
    home = None if force == "0" else cuda_home()
    if force == "1" and home is None:
        raise SystemExit("pruneops: FORCE_CUDA=1, but no CUDA toolkit is in CUDA_HOME, on the PATH or in /usr/local")
    return home


def sources(*patterns: str) -> list[str]:
    # Relative paths: setuptools refuses absolute ones in a source distribution.
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


#: What the extension depends on, so that a source distribution holds it too.
HEADERS = sources("csrc/**/*.h", "csrc/**/*.cuh")


def sanitizers() -> list[str]:
    """The flags that PRUNEOPS_SANITIZE asks for; as in CMakeLists.txt."""
    if not SANITIZE:
        return []
    return [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-O1", "-g"]


class Build(cpp_extension.BuildExtension):
    """Keeps a library with sanitizers, which only loads into a process that brings them, out of the package.

    CUDA sources are compiled anew when a header has changed: where torch has no CUDA, it does not tell ninja what they
    include.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        if SANITIZE and (self.inplace or self.editable_mode):
            raise SystemExit("pruneops: PRUNEOPS_SANITIZE builds beside the package: setup.py build_ext")

    def build_extensions(self) -> None:
        included = [header for header in HEADERS if header.startswith(("csrc/cuda/", "csrc/math/"))]
        changed = max(map(os.path.getmtime, included))
        for compiled in Path(self.build_temp).glob("csrc/cuda/*.o"):
            if compiled.stat().st_mtime < changed:
                compiled.unlink()
        super().build_extensions()


def extension() -> cpp_extension.CppExtension:
    # One rounding per operation is a promise of the library: no contraction to fused multiply-adds.
    cxx = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-g0"]
    nvcc = ["-std=c++17", "-O3", "--fmad=false", "--threads=2", "-Xcompiler=-fvisibility=hidden"]
    macros = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
    home = wanted_cuda()
    if home is None:
        checks, files = sanitizers(), sources("csrc/cpu/*.cpp", "csrc/ops/*.cpp")
        if SANITIZE:
            isa = ISAS.get(torch.backends.cpu.get_cpu_capability(), "baseline")
            macros.append(("PRUNEOPS_ONLY_ISA", isa))
            files = [file for file in files if "isa_" not in file or f"isa_{isa}" in file]
        return cpp_extension.CppExtension(
            "pruneops._C", files, define_macros=macros,
            depends=HEADERS, extra_compile_args={"cxx": cxx + checks}, extra_link_args=checks, py_limited_api=True,
        )  # fmt: skip
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS).replace(";", " ").split()
    # Absent from cpp_extension where torch itself has no CUDA.
    cpp_extension.CUDA_HOME = str(home)
    cxx += ["-DPRUNEOPS_CUDA", f"-DPRUNEOPS_CUDA_ARCHS={','.join(archs)}"]
    target = "sbsa-linux" if platform.machine() == "aarch64" else "x86_64-linux"
    libraries = [str(home / "lib64"), str(home / "targets" / target / "lib")]
    return cpp_extension.CppExtension(
        "pruneops._C", sources("csrc/cpu/*.cpp", "csrc/ops/*.cpp", "csrc/cuda/*.cu"), define_macros=macros,
        depends=HEADERS, include_dirs=[str(home / "include")], library_dirs=libraries,
        libraries=["cudart_static", "rt", "pthread", "dl"],
        extra_compile_args={"cxx": cxx, "nvcc": [*nvcc, "-DPRUNEOPS_CUDA"]}, py_limited_api=True,
    )  # fmt: skip


print(f"pruneops: building against torch {torch.__version__}")
options = {"bdist_wheel": {"py_limited_api": "cp310"}}
if SANITIZE:
    beside = Path("build") / SANITIZE.replace(",", "-")
    options["build_ext"] = {"build_lib": str(beside), "build_temp": str(beside / "objects")}
setup(ext_modules=[extension()], cmdclass={"build_ext": Build}, options=options)
