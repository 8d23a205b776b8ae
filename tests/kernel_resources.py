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


def _compile(source, arch, kind, folder):
    target = Path(folder) / f"{source.stem}.{kind}"
    command = ["nvcc", *FLAGS, f"-arch={arch}", f"-{kind}", "-Xptxas=-v", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr, target


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


def measure(arch="sm_90"):
    """Compiles every source of csrc/cuda and returns its kernels."""
    sources = sorted(CUDA.glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        logs = pool.map(lambda source: _compile(source, arch, "cubin", folder)[0], sources)
        return [kernel for source, log in zip(sources, logs, strict=True) for kernel in parse(source.name, log)]


def ptx(source, arch="sm_90"):
    """The PTX of each kernel of a source file, by mangled name."""
    with tempfile.TemporaryDirectory() as folder:
        text = _compile(CUDA / source, arch, "ptx", folder)[1].read_text()
    return {found[1]: found[0] for found in re.finditer(r"\.entry (\w+)\(.*?\n}", text, re.DOTALL)}


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
    kernels = measure(args.arch)
    print(table(kernels))
    wasteful = [k for k in kernels if k.local or k.spilled]
    print(f"{len(kernels)} kernels for {args.arch}, {len(wasteful)} with local memory or spills")
    sys.exit(bool(wasteful))


if __name__ == "__main__":
    main()
