"""``pruneops prune`` on a synthetic sharded float32 checkpoint: time, memory, and every weight checked with NumPy.

``python -m bench.checkpoint --gigabytes 8`` makes the checkpoint in a temporary folder, which needs twice its
size, reads and writes its files plainly, prunes it with one selection over all tensors, and holds the result against
the source. Files are read cold: their pages are dropped from the page cache before each run; written ones are synced.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .environment import environment

SHARDS = 10
SEED = 0
INDEX = "model.safetensors.index.json"
#: Entries that the check looks at together.
PIECE = 2**24
SAMPLED_EVERY_S = 0.01


def shard_shapes(width: int, number: int) -> dict[str, tuple[int, ...]]:
    """One transformer block of 12 width^2 weights; the first shard has an embedding, which is not pruned."""
    block = f"model.layers.{number}"
    shapes: dict[str, tuple[int, ...]] = {f"{block}.attn.{name}.weight": (width, width) for name in "qkvo"}
    shapes |= {f"{block}.mlp.up.weight": (4 * width, width), f"{block}.mlp.down.weight": (width, 4 * width)}
    shapes |= {f"{block}.norm.weight": (width,)}
    return shapes | ({"model.embed_tokens.weight": (width, width)} if number == 0 else {})


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Normal weights, of another deviation in each tensor; many have the same magnitude."""
    folder.mkdir()
    width = 64 * max(1, round(math.sqrt(gigabytes * 1e9 / 4 / 12 / SHARDS) / 64))
    generator = torch.Generator().manual_seed(SEED)
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            name: torch.randn(shape, generator=generator).mul_(0.02 * (1 + torch.rand((), generator=generator)))
            for name, shape in shard_shapes(width, number).items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def drop_from_cache(folder: Path) -> None:
    for path in shards(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_and_write(source: Path, target: Path) -> None:
    """What a script without pruning does to the files."""
    target.mkdir()
    for path in shards(source):
        save_file(load_file(path), target / path.name, metadata={"format": "pt"})
        sync(target / path.name)


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def anonymous_bytes(process: int) -> int:
    """Memory of a process that is no mapped file; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def peak_of(command: list[str]) -> int:
    """Peak anonymous memory of a command, its interpreter and libraries included."""
    process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(SAMPLED_EVERY_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def stored(folder: Path, mode: Literal["r", "r+"] = "r") -> dict[str, np.ndarray]:
    """Each tensor as 32-bit words in the mapped file, by a reader of the format's own."""
    found = {}
    for path in shards(folder):
        data = np.memmap(path, np.uint8, mode)
        end = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(data[8:end].tobytes())
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = (end + offset for offset in entry["data_offsets"])
            found[name] = data[first:last].view("<u4")
    return found


@dataclass
class Edge:
    """The weakest kept and the strongest pruned magnitude, as bits, and between which equal ones the cut is."""

    pruned: int = 0
    weakest: int = 2**32
    strongest: int = -1
    last_kept: tuple[int, int] = (-1, -1)  # tensor and entry, of the weakest
    first_pruned: tuple[int, int] = (-1, -1)  # of the strongest

    def add(self, tensor: int, start: int, magnitude: np.ndarray, gone: np.ndarray) -> None:
        self.pruned += int(gone.sum())
        kept, lost = magnitude[~gone], magnitude[gone]
        if kept.size and int(kept.min()) <= self.weakest:
            self.weakest = int(kept.min())
            self.last_kept = (tensor, start + int(np.flatnonzero(~gone & (magnitude == self.weakest))[-1]))
        if lost.size and int(lost.max()) > self.strongest:
            self.strongest = int(lost.max())
            self.first_pruned = (tensor, start + int(np.flatnonzero(gone & (magnitude == self.strongest))[0]))

    @property
    def in_order(self) -> bool:
        tied = self.strongest == self.weakest
        return self.strongest < self.weakest or (tied and self.last_kept < self.first_pruned)


def pieces(before: np.ndarray, after: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for start in range(0, before.size, PIECE):
        yield start, before[start : start + PIECE], after[start : start + PIECE]


def check(source: Path, target: Path, sparsity: float) -> str:
    """Hold every weight of the result against the source; a line that says what was found.

    Raises:
        AssertionError: a weight is wrong.
    """
    before, after = stored(source), stored(target)
    assert before.keys() == after.keys()
    # Bits of finite magnitudes are in the order of their values. Names have one digit, so that they sort as they are.
    to_prune = sorted(name for name in before if ".layers." in name and "norm" not in name)
    edge = Edge()
    for tensor, name in enumerate(to_prune):
        for start, old, new in pieces(before[name], after[name]):
            gone = new == 0
            assert np.array_equal(new[~gone], old[~gone]), f"{name}: a kept weight has changed"
            edge.add(tensor, start, old & np.uint32(0x7FFFFFFF), gone)
    total = sum(before[name].size for name in to_prune)
    assert edge.pruned == int(sparsity * total), f"{edge.pruned} of {total} weights are zero"
    assert edge.in_order, f"a pruned weight ranks above a kept one: {edge}"
    for name in before.keys() - set(to_prune):
        assert np.array_equal(before[name], after[name]), f"{name} is not one to prune"
    cut = "two equal magnitudes" if edge.strongest == edge.weakest else "two neighbouring magnitudes"
    return f"{edge.pruned:,} of {total:,} weights pruned, the cut between {cut}, all others as they were"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where the temporary folder is made")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(environment("cpu")))
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as folder:
        source, copy, target = (Path(folder) / name for name in ("source", "copy", "pruned"))
        make_checkpoint(source, options.gigabytes)
        size = sum(path.stat().st_size for path in shards(source))
        drop_from_cache(source)
        plain = seconds_of(lambda: read_and_write(source, copy))
        shutil.rmtree(copy)
        drop_from_cache(source)
        command = [sys.executable, "-m", "pruneops", "prune", str(source), "--sparsity", str(options.sparsity),
                   "--scope", "global", "--output", str(target), "--json"]  # fmt: skip
        start = time.perf_counter()
        peak = peak_of(command)
        taken = time.perf_counter() - start
        print(
            f"{size / 1e9:.2f} GB in {SHARDS} shards: pruned in {taken:.1f} s, {taken / plain:.2f} times reading and "
            f"writing the files ({plain:.1f} s); peak anonymous memory {peak / 1e9:.2f} GB",
            flush=True,
        )
        print(f"exact: {check(source, target, options.sparsity)}")


if __name__ == "__main__":
    main()
