"""What ptxas gives every CUDA kernel: registers, shared and local memory, spills. Needs nvcc, no GPU.

python tests/kernel_resources.py [--arch sm_90]
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-DPRUNEOPS_CUDA")

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """Bytes, but for the number of registers of a thread. ``shared`` is of a block, the others of a thread."""

    source: str
    name: str
    registers: int = 0
    shared: int = 0
    local: int = 0
    spilled: int = 0


@dataclass
class Compiled:
    """A source file as it is compiled: what ``ptxas -v`` says about it, and its PTX."""

    log: str
    ptx: str


def _compile(source, arch):
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch={arch}", "-cubin", "-Xptxas=-v", "--keep", "--keep-dir", folder,
                   str(source), "-o", f"{folder}/{source.stem}.cubin"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return Compiled(done.stdout + done.stderr, (Path(folder) / f"{source.stem}.ptx").read_text())


def compile_all(arch="sm_90"):
    """Every source of csrc/cuda, by its name, compiled once."""
    # The largest takes as long as all others.
    sources = sorted(CUDA.glob("*.cu"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: _compile(source, arch), sources)
        return dict(sorted((source.name, result) for source, result in zip(sources, compiled, strict=True)))


def parse(source, log):
    """The kernels of one source file from what ``ptxas -v`` says about it."""
    kernels = []
    for line in log.splitlines():
        if found := ENTRY.search(line):
            kernels.append(Kernel(source, found[1]))
        elif found := FRAME.search(line):
            kernels[-1].local, stores, loads = map(int, found.groups())
            kernels[-1].spilled = stores + loads
        elif found := USED.search(line):
            kernels[-1].registers = int(found[1])
            shared = SHARED.search(line)
            kernels[-1].shared = int(shared[1]) if shared else 0
    return kernels


def measure(compiled):
    """The kernels of all sources."""
    return [kernel for source, result in compiled.items() for kernel in parse(source, result.log)]


def entries(ptx):
    """The PTX of each kernel of a source file, by mangled name."""
    return {found[1]: found[0] for found in re.finditer(r"\.entry (\w+)\(.*?\n}", ptx, re.DOTALL)}


def demangled(names):
    """Readable names, without namespaces, arguments and the structures' own type parameters."""
    if shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = (re.sub(r"pruneops::(cuda::)?|^void ", "", name) for name in done.stdout.splitlines())
    return [name.partition("(")[0] for name in plain]


def table(kernels):
    """One line for each kernel."""
    rows = [("source", "kernel", "registers", "shared", "local", "spilled")]
    names = demangled([k.name for k in kernels])
    rows += [
        (k.source, name, str(k.registers), str(k.shared), str(k.local), str(k.spilled))
        for k, name in zip(kernels, names, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="sm_90")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("kernel_resources: nvcc is not on the path")
    kernels = measure(compile_all(args.arch))
    print(table(kernels))
    wasteful = [k for k in kernels if k.local or k.spilled]
    print(f"{len(kernels)} kernels for {args.arch}, {len(wasteful)} with local memory or spills")
    sys.exit(bool(wasteful))


if __name__ == "__main__":
    main()
