"""What the compiler makes of every CUDA kernel: registers, shared and local memory, spills, and the widest loads and
stores of its loops. Needs nvcc, no GPU.

python tests/kernel_resources.py [--arch sm_90]
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import ptx

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
    text: str = field(default="", repr=False)

    @cached_property
    def accesses(self):
        """What its loops read and write of global memory."""
        return list(ptx.Code(self.text).accesses())

    def widest(self, kind):
        """Bytes of the widest loads (``ld``) or stores (``st``) of its loops; 0 where there are none."""
        return max((access.width for access in self.accesses if access.kind == kind), default=0)


def nvcc(source, target, *flags):
    command = ["nvcc", f"-{target.suffix[1:]}", *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def _compile(source, arch):
    """The kernels of a source file: to PTX, and from there to the machine's code."""
    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / f"{source.stem}.ptx"
        nvcc(source, middle, *FLAGS, f"-arch={arch}")
        log = nvcc(middle, middle.with_suffix(".cubin"), f"-arch={arch}", "-Xptxas=-v")
        text = ptx.kernels(middle.read_text())
    kernels = parse(source.name, log)
    for kernel in kernels:
        kernel.text = text[kernel.name]
    return kernels


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
    # The largest takes as long as all others.
    sources = sorted(CUDA.glob("*.cu"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        compiled = dict(zip(sources, pool.map(lambda source: _compile(source, arch), sources), strict=True))
    return [kernel for source in sorted(sources) for kernel in compiled[source]]


def demangled(names):
    """Readable names, without namespaces, arguments and the structures' own type parameters."""
    if shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    plain = (re.sub(r"pruneops::(cuda::)?|^void ", "", name) for name in done.stdout.splitlines())
    return [name.partition("(")[0] for name in plain]


def table(kernels):
    """One line for each kernel."""
    rows = [("source", "kernel", "registers", "shared", "local", "spilled", "loads", "stores")]
    for kernel, name in zip(kernels, demangled([k.name for k in kernels]), strict=True):
        numbers = (kernel.registers, kernel.shared, kernel.local, kernel.spilled, *map(kernel.widest, ("ld", "st")))
        rows.append((kernel.source, name, *map(str, numbers)))
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
