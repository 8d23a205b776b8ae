"""Tables and a picture from the JSON of benchmark runs: ``python -m bench.report bench/results/*.json``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .picture import draw
from .results import Result, Row, Run, decimal, load, span

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOT_MEASURED = "not measured"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "fails"
    ms = 1e3 * seconds
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def timed(row: Row) -> str:
    """Our time, and for how many entries."""
    return f"{milliseconds(row.ours.seconds)} ms for {row.entries / 1e6:,.0f} M"


def factor(x: float) -> str:
    return f"{x:.2f}" if x < 2 else f"{x:.1f}" if x < 20 else f"{x:,.0f}"


def size(n: int) -> str:
    """A multiple of MiB, or less than one."""
    return "< 1 MiB" if n < 2**20 else f"{n / 2**20:,.0f} MiB"


def gigabytes(row: Row, result: Result) -> str:
    return f"{row.floor_bytes / result.seconds / 1e9:.1f}" if result.seconds else "fails"


def ratios(row: Row, ends: bool = False) -> str:
    """How many times faster than each peer, the nearest first, or than the nearest and the farthest."""
    if not row.ours.seconds:
        return "fails"
    slower = {name: row.times_slower(peer) for name, peer in row.peers.items()}
    peers = sorted(slower.items(), key=lambda item: item[1] or float("inf"))
    parts = [f"{factor(times)}× {name}" if times else f"{name} fails" for name, times in peers]
    return (" to ".join([parts[0], parts[-1]]) if ends and len(parts) > 1 else ", ".join(parts)) or "–"


def peer_memory(row: Row) -> str:
    sizes = {name: result.peak_extra for name, result in row.peers.items() if result.seconds}
    return ", ".join(f"{name} {size(n)}" for name, n in sizes.items()) or "–"


def memory(row: Row) -> str:
    """Ours, and the range of the peers'."""
    peers = [result.peak_extra for result in row.peers.values() if result.seconds]
    spread = " to ".join(dict.fromkeys([size(min(peers)), size(max(peers))])) if peers else "–"
    return f"{size(row.ours.peak_extra)} ({spread})"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine(run: Run) -> str:
    """One paragraph for each machine behind a run."""
    lines = []
    for facts, copies in zip(run.machines, run.copies, strict=True):
        where = f"{facts['cpu']}, {facts['backend']['cpu_isa']}, {facts['threads']} threads"
        if run.device == "cuda":
            where = f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}"
        line = f"{where}; torch {facts['torch']}, commit {facts['commit']}; copy {span(copies)}."
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)


def short_table(runs: dict[str, Run]) -> str:
    """A whole step and its parts: one line each, with the GPU's figure beside the CPU's."""
    cpu, cuda = (runs.get(device, Run(device)) for device in ("cpu", "cuda"))
    lines = []
    for key in dict.fromkeys((row.op, row.case) for run in (cpu, cuda) for row in run.headlines()):
        row, gpu = cpu.rows.get(key), cuda.rows.get(key)
        cells = [NOT_MEASURED] * 4
        if row:
            cells = [timed(row), decimal(row.fraction(row.ours)), ratios(row, ends=True), memory(row)]
        on_gpu = f"{timed(gpu)}, {decimal(gpu.fraction(gpu.ours))}" if gpu else NOT_MEASURED
        lines.append([f"`{key[0]}`", key[1], *cells, on_gpu])
    header = ["", "", "time", "of the copy", "times faster than", "extra memory (peers')", "GPU: time, of the copy"]
    notes = [f"CPU: {machine(cpu)}" if cpu.rows else f"CPU: {NOT_MEASURED}."]
    notes.append(f"GPU: {machine(cuda)}" if cuda.rows else f"GPU: {NOT_MEASURED}.")
    legend = (
        "*Of the copy*: bytes that the operator must read and write at the least, over its time, as a fraction of the "
        "bandwidth of `dst.copy_(src)`. It can be above 1 on a CPU, whose copy also reads the lines that it writes. "
        "*Times faster than*: the nearest peer and the farthest. *Extra memory*: peak beyond what stood before the "
        "call, inputs and given outputs not counted. CPU: the best of several rounds, which took turns with the copy, "
        "and a peer's with ours; a peer of more than 3 s runs once, and is held against our median. GPU: the median of "
        "calls that follow one another, as `triton.testing.do_bench` takes them."
    )
    return "\n\n".join([table(header, lines), legend, *notes])


def full_table(run: Run, op: str) -> str:
    lines = []
    several_commits = len({facts["commit"] for facts in run.machines}) > 1
    for row in run.rows.values():
        if row.op != op:
            continue
        lines.append([
            row.case, f"{row.entries:,}", milliseconds(row.ours.seconds), gigabytes(row, row.ours),
            decimal(row.fraction(row.ours)), ratios(row), size(row.ours.peak_extra), peer_memory(row),
        ])  # fmt: skip
        if run.device == "cuda":
            lines[-1].append("–" if row.ours.alone is None else milliseconds(row.ours.alone))
        if several_commits:
            lines[-1].append(row.commit)
    header = [
        "case",
        "entries",
        "ms",
        "GB/s",
        "of the copy",
        "times faster than",
        "extra memory",
        "peers' extra memory",
    ]
    if run.device == "cuda":
        header.append("ms of one call to an idle device")
    if several_commits:
        header.append("commit")
    return f"### `{op}`\n\n{table(header, lines)}"


def full_report(runs: dict[str, Run]) -> str:
    parts = ["# Benchmarks", "![Fraction of the copy bandwidth](bench.png)"]
    for device, title in (("cpu", "CPU"), ("cuda", "GPU")):
        run = runs.get(device, Run(device))
        parts.append(f"## {title}")
        parts.append(machine(run) if run.rows else f"{title}: {NOT_MEASURED}.")
        parts += [full_table(run, op) for op in dict.fromkeys(row.op for row in run.rows.values())]
    return "\n\n".join(parts) + "\n"


def insert(page: Path, text: str) -> None:
    """Replace what stands between the two marks of a page."""
    content = page.read_text()
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise SystemExit(f"{page}: the marks {BEGIN} and {END} must each stand there once")
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files; later ones replace cases of earlier ones")
    parser.add_argument("--markdown", type=Path, help="page of all tables to write")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("--readme", type=Path, help=f"page whose short table to replace, between {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    runs = load(options.results)
    if options.markdown:
        options.markdown.write_text(full_report(runs))
    if options.picture:
        draw(runs, options.picture)
    if options.readme:
        insert(options.readme, short_table(runs))
    print(short_table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
