"""Plants one-line faults in csrc/cuda and csrc/math, one at a time in a copy, and sees whether the emulation's tests
catch each. Takes a minute or two for each fault, and needs no GPU.

    python tests/mutate.py [--jobs N] [NAME ...]
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 1800  # seconds that the tests may take, of which a fault may take away the end
NEEDED = ("CMakeLists.txt", "csrc", "pyproject.toml", "tests")


class Fault(NamedTuple):
    """``old`` occurs once in ``csrc/<file>`` and becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


FAULTS = [
    # Barriers.
    Fault(
        "scan: lost first barrier",
        "cuda/block_scan.cuh",
        "  __syncthreads();\n  if (lane == kWarp",
        "  if (lane == kWarp",
    ),
    Fault("scan: lost second barrier", "cuda/block_scan.cuh", "= inclusive;\n  __syncthreads();", "= inclusive;"),
    Fault(
        "counts: lost barrier after clearing", "cuda/digits.cuh", "counts[b] = 0;\n  __syncthreads();", "counts[b] = 0;"
    ),
    Fault(
        "counts: lost barrier before adding",
        "cuda/digits.cuh",
        "Count* total) {\n  __syncthreads();",
        "Count* total) {",
    ),
    Fault(
        "blocks: lost barrier before warps meet",
        "cuda/block.cuh",
        "tile, shared);\n  __syncthreads();\n  if (cut",
        "tile, shared);\n  if (cut",
    ),
    Fault(
        "blocks: lost barrier after warps have met",
        "cuda/block.cuh",
        "combine_warps(rule.reduce, cut, shared);\n    __syncthreads();",
        "combine_warps(rule.reduce, cut, shared);",
    ),
    Fault("blocks: lost barrier between tiles", "cuda/block.cuh", "  });\n  __syncthreads();\n}", "  });\n}"),
    Fault(
        "rows: lost barrier of a sum",
        "cuda/row_group.cuh",
        "sums[warp()] = own;\n    __syncthreads();",
        "sums[warp()] = own;",
    ),
    Fault(
        "rows: lost barrier of the ends",
        "cuda/row_group.cuh",
        "    }\n    __syncthreads();\n    const int lane",
        "    }\n    const int lane",
    ),
    Fault(
        "rows: lost barrier of the cells",
        "cuda/row_group.cuh",
        "    }\n    __syncthreads();\n    int own[",
        "    }\n    int own[",
    ),
    Fault("rows: sums take no turns", "cuda/row_group.cuh", "shared.sums[turn ^= 1]", "shared.sums[0]"),
    # Warps.
    Fault("N:M: shuffle where lanes have left", "cuda/nm.cuh", "base < t.numel", "base + lane < t.numel"),
    Fault("scan: one lane too few", "cuda/block_scan.cuh", "lane >= distance", "lane > distance"),
    Fault("scan: own warp counted twice", "cuda/block_scan.cuh", "if (w < warp)", "if (w <= warp)"),
    # Ends.
    Fault("vectors: skipped tail", "cuda/vector.cuh", "kVector; at < end;", "kVector; at + kVector <= end;"),
    Fault(
        "vectors: read past the end",
        "cuda/vector.cuh",
        "f(at, static_cast<int>(min64(kVector, end - at)))",
        "f(at, kVector)",
    ),
    Fault(
        "vectors: unchecked alignment",
        "cuda/vector.cuh",
        "n == kCount && is_aligned(source, v.kAlign)",
        "n == kCount",
    ),
    Fault(
        "tables: tile of the wrong tensor", "cuda/table.cuh", "first_tile[middle] <= tile", "first_tile[middle] < tile"
    ),
    # Integers.
    Fault("tiles: int for int64", "cuda/table.cuh", "f(t, tile * kTile,", "f(t, int(tile) * int(kTile),"),
    Fault(
        "N:M: 32-bit thread number",
        "cuda/nm.cuh",
        "warp = (static_cast<int64_t>(blockIdx.x) * kThreads",
        "warp = (blockIdx.x * kThreads",
    ),
    Fault("matrix: 32-bit offset", "math/geometry.h", "return row * strides.row", "return int32_t(row * strides.row)"),
    # Selection.
    Fault("order: -0 below +0", "math/order.h", "bit_cast<K>(score + T(0))", "bit_cast<K>(score)"),
    Fault("order: NaN by its bits", "math/order.h", "return score != score ? K(0) : key;", "return key;"),
    Fault("N:M and gather: later ties first", "math/group.h", "j < i", "j > i"),
    Fault("N:M: NaN before lower scores", "math/group.h", "earlier >= later || later != later", "!(earlier < later)"),
    Fault("N:M: rank of the later entry kept", "cuda/nm.cuh", "one(i) - MaskWords::one(j)", "one(i)"),
    Fault("N:M: rank across words kept", "cuda/nm.cuh", "mask.words[j / kBytes] -= MaskWords::one(j);", ";"),
    Fault("N:M: magnitudes not taken", "cuda/nm.cuh", "scores[i] = magnitude_of(scores[i]);", ";"),
    Fault(
        "N:M: one too many",
        "cuda/nm.cuh",
        "static_cast<unsigned>(n) - kGroup)",
        "static_cast<unsigned>(n) - kGroup + 1)",
    ),
    Fault(
        "N:M: last vector of a thread past the end",
        "cuda/nm.cuh",
        "* kStep + kWarp * kVector <= t.numel",
        "* kStep <= t.numel",
    ),
    Fault(
        "N:M: lower lane keeps the lower keys", "cuda/nm.cuh", "(lane & lanes / 2) == 0);", "(lane & lanes / 2) != 0);"
    ),
    Fault("N:M: keys of another lane as they are", "cuda/nm.cuh", "kReverse ? kVector - 1 - i : i", "i"),
    Fault(
        "N:M: ties of the lanes before forgotten", "cuda/nm.cuh", " - static_cast<int>((up_to - own) >> kShift);", ";"
    ),
    Fault(
        "N:M: threshold of the first lane",
        "cuda/nm.cuh",
        "lane - lane_of_group + last / kVector)",
        "lane - lane_of_group)",
    ),
    Fault("radix: prefix of another round", "math/radix.h", "(key >> shift(round - 1)) ==", "(key >> shift(round)) =="),
    Fault("selection: one tie too many", "math/radix.h", "return less + equal - k;", "return less + equal - k + 1;"),
    Fault(
        "decision: k-th key of the next digit", "cuda/digits.cuh", "wanted <= below + own[b]", "wanted < below + own[b]"
    ),
    Fault("cut: last tie of a part", "cuda/select.cuh", "wanted <= before + own", "wanted < before + own"),
    Fault("cut: one tie too many", "cuda/tile.cuh", "left-- > 0", "left-- >= 0"),
    Fault("mask: ties never kept", "cuda/select.cuh", "least(keep_ties ? threshold", "least(false ? threshold"),
    Fault("patch: ties never kept", "cuda/select.cuh", "finish.keeps_ties(number) ? 0 : 1)", "1)"),
    Fault(
        "patch: ties of the cut's own tile as before it", "cuda/select.cuh", "if (ties > 0 && ties < own) {", "if (0) {"
    ),
    Fault("patch: one tie too few", "cuda/runs.cuh", "end = w * 32 + __ffs(word);", "end = w * 32 + __ffs(word) - 1;"),
    Fault(
        "patch: ties of the tiles before not counted",
        "cuda/select.cuh",
        "before += run.count_equal(",
        "run.count_equal(",
    ),
    Fault("patch: marks of the tile before", "cuda/runs.cuh", "w += kWarp) bits[w] = 0;", "w += kWarp) bits[w] |= 0;"),
    Fault("runs: those behind the held ones left", "cuda/runs.cuh", "i = at(kHeld); i < count", "i = at(kHeld); i < 0"),
    Fault("bracket: moved outwards without room", "cuda/sample.cuh", "work.has_room_for(up_to - below) ? 1 : 0", "1"),
    Fault("sieve: ends left out", "cuda/pass.cuh", "return nearest > reach;", "return nearest >= reach;"),
    Fault("sieve: low end taken for one inside", "cuda/pass.cuh", "if (key == bracket.low) return", "if (0) return"),
    Fault("sieve: padding counted", "cuda/pass.cuh", "if (!batch.kAreWhole && begin + place >= end) return;", ""),
    Fault(
        "sieve: ties of padding counted",
        "cuda/pass.cuh",
        "sieve.ties(scores).count(batch.size(v))",
        "sieve.ties(scores).count()",
    ),
    Fault("near: place of the lane before", "cuda/pass.cuh", "% kWarp)) - 1));", "% kWarp)) / 2));"),
    Fault("near: full queue not emptied", "cuda/pass.cuh", "&& !queue.is_full()) continue;", ") continue;"),
    Fault(
        "near: looked at before it is there",
        "cuda/pass.cuh",
        "if (count_ == 0) return;\n    __syncwarp();",
        "if (count_ == 0) return;",
    ),
    Fault("pass: padding kept", "cuda/words.cuh", "n == kVector ? count() : __popc(bits(n))", "count()"),
    Fault("pass: places never taken", "cuda/pass.cuh", "count > 0 ? atomicAdd(", "count > 0 ? 0 * atomicAdd("),
    Fault(
        "pass: lost barrier between tiles",
        "cuda/pass.cuh",
        "    __syncthreads();\n  }\n  // A stage",
        "  }\n  // A stage",
    ),
    Fault("pass: a stage too few", "cuda/pass.cuh", "kStages = 4;", "kStages = 3;"),
    Fault("pass: last run not written", "cuda/pass.cuh", "if (turn_ == 0) return;", "return;"),
    Fault("pass: full stage copied", "cuda/pass.cuh", "count <= stage.kCapacity", "count <= 2 * stage.kCapacity"),
    Fault("pass: second look not counted anew", "cuda/pass.cuh", "count = again = 0;", "count = 0;"),
    Fault("bracket: overflow written", "cuda/pass.cuh", "if (first + count > work_.capacity) return;", ""),
    Fault("bracket: overflow unnoticed", "cuda/plan.cuh", "state->between) <= capacity", "state->between) >= 0"),
    Fault("bracket: miss below taken for one above", "math/search.h", "if (k <= counts.below)", "if (k < 0)"),
    Fault(
        "finish: dropped ties of the high end left",
        "cuda/select.cuh",
        "writes_dropped = at_high;",
        "writes_dropped = false;",
    ),
    Fault(
        "finish: kept ties of the low end lost", "cuda/select.cuh", "threshold == work.state->bracket.low;", "false;"
    ),
    Fault("ties: never split", "cuda/digits.cuh", "found.ties_kept() < found.equal", "false"),
    Fault("rows: padding counted", "cuda/rows.cuh", "search.next))) - row.padding()", "search.next)))"),
    Fault(
        "rows: sample past a short row", "cuda/row_scores.cuh", "kRowSample, row), row - 1)", "kRowSample, row), row)"
    ),
    Fault("rows: cells of no warp", "cuda/row_group.cuh", "place < warps() * kCount", "true"),
    Fault(
        "rows: a cell that ends the first ties",
        "cuda/row_group.cuh",
        "if (up_to > first_ties) return;",
        "if (up_to > first_ties + 1) return;",
    ),
    Fault("rows: one tie too many", "cuda/rows.cuh", "entries > 0 && others", "entries >= 0 && others"),
    Fault("rows: threshold pruned", "cuda/row_scores.cuh", "if (scores[v][i] >= from)", "if (scores[v][i] > from)"),
    Fault("pairs: places of two marks changed", "cuda/pairs.cuh", "0x6420", "0x4620"),
    Fault(
        "pairs: threshold of a negative rounded away",
        "cuda/pairs.cuh",
        "bits >> 31 != 0 ? 0",
        "bits >> 31 != 0 ? 0xffffu",
    ),
    Fault(
        "pairs: held where rows end within a vector",
        "cuda/row_scores.cuh",
        "row % kVector == 0 && reinterpret",
        "reinterpret",
    ),
    Fault("rows: ties with NaN lost", "cuda/row_scores.cuh", "at != at ? MaskWords::kOnes", "false ? MaskWords::kOnes"),
    Fault("pairs: ties with NaN lost", "cuda/row_scores.cuh", "all = at != at ? ~0u : 0u", "all = 0u"),
    Fault("pairs: marks of what is above lost", "cuda/row_scores.cuh", "above & 2 * MaskWords", "above & MaskWords"),
    Fault(
        "pairs: vectors past the row not NaN", "cuda/row_scores.cuh", "pairs[v][p] = kPairOfNan;", "pairs[v][p] = 0;"
    ),
    Fault("pairs: highest of all and not of those below", "cuda/pairs.cuh", "(pair & ~is_behind)", "pair"),
    Fault(
        "pairs: ends of one of two", "cuda/pairs.cuh", "fmaxf(first_of(highest_two), ", "fminf(first_of(highest_two), "
    ),
    Fault("rows: second of two cells in a sum lost", "cuda/row_group.cuh", "ties[v + 1] << 16 : 0", "0 : 0"),
    Fault(
        "rows: vectors enter in reverse",
        "cuda/row_scores.cuh",
        "scores[u][i] = u + 1 < kCount ? scores[u + 1][i] : next[i]",
        "scores[kCount - 1 - u][i] = u + 1 < kCount ? scores[kCount - 2 - u][i] : next[i]",
    ),
    Fault("row search: rank of the score before", "math/row_search.h", "if (count < k) {", "if (count < k - 1) {"),
    Fault(
        "row search: ended early",
        "math/row_search.h",
        ": highest_inside()) <= low",
        ": static_cast<K>(highest_inside() - 1)) <= low",
    ),
    Fault("row search: too few bits of float16", "math/row_search.h", "Dtype::f16 ? 10", "Dtype::f16 ? 9"),
    Fault(
        "rows: ties of the cut's cell lost",
        "cuda/rows.cuh",
        "group.cell(v) <= cut.cell)",
        "group.cell(v) < cut.cell)",
    ),
    Fault(
        "rows: norms from the tensor's start",
        "cuda/row_scores.cuh",
        "places.entries == t.cols ? 0 : places.begin % t.cols",
        "0",
    ),
    Fault(
        "rows: magnitudes not taken",
        "cuda/row_scores.cuh",
        "if (metric == Metric::magnitude) take_magnitudes();\n      if",
        "if",
    ),
    Fault("row search: highest score left out", "math/row_search.h", "high = static_cast<K>(last + 1)", "high = last"),
    Fault(
        "row search: NaN and -inf at once",
        "math/row_search.h",
        "static_cast<K>(~kAboveAll)",
        "static_cast<K>(~kAboveAll + 1)",
    ),
    Fault("rows: norm of another row", "cuda/rows.cu", "begin % t.cols", "0"),
    Fault(
        "digits: tile of the next tensor",
        "cuda/select.cuh",
        "end = min64(last, table.first_tile[index + 1])",
        "end = last",
    ),
    Fault(
        "gather: a lower instance not counted",
        "cuda/gather.cuh",
        "before += ranks[j] < kept",
        "before += ranks[j] <= kept",
    ),
    # Formulas.
    Fault("maximum: NaN lost", "math/metric.h", "(a > b || a != a)", "(a > b)"),
    Fault("bfloat16: half away from even", "math/dtype.h", "bits + 0x7fffu", "bits + 0x8000u"),
    Fault("blocks: rows skipped", "cuda/block.cuh", "r += cut.warps)", "r += kWarps)"),
    Fault("lines: gaps between rows read", "cuda/line.cuh", "&& strides.row == matrix.cols", ""),
    Fault("lines: one width for all", "cuda/line.cuh", "return update_line<2>(", "return update_line<4>("),
    Fault(
        "apply: any byte but 1 prunes",
        "cuda/masks.cuh",
        "mask.byte((4 * w + b) / kBytes) != 0",
        "mask.byte((4 * w + b) / kBytes) == 1",
    ),
    Fault("apply: whole tile of a misaligned mask", "cuda/masks.cuh", "is_aligned(t.mask, kVector) && ", ""),
    Fault("streams: a row too many read", "cuda/stream.cuh", "if (h < left) held[h].load", "held[h].load"),
    Fault(
        "streams: old scores of the first row for all",
        "cuda/stream.cuh",
        "task.tensor.block.n);\n    read_old();",
        "task.tensor.block.n);",
    ),
    Fault("streams: sums not cleared", "cuda/stream.cuh", "sums[i] = 0.0f;", "sums[i] += 0.0f;"),
    Fault("streams: lanes of a block left out", "cuda/stream.cuh", "lanes * kVector < m;", "2 * lanes * kVector < m;"),
    Fault("streams: every lane writes", "cuda/stream.cuh", "inside && first,", "inside,"),
    Fault(
        "streams: spans of a part too many",
        "cuda/stream.cuh",
        "(t.block.m / kSpan) - int64_t{part} * task.part_rows",
        "t.block.m / kSpan",
    ),
    Fault("parts: last one too long", "cuda/block.cuh", "min64(cut.part_rows, t.block.n - first)", "cut.part_rows"),
    Fault(
        "parts: one for all of a row", "cuda/block.cuh", "* cut.parts_across + tile.part_across", "* cut.parts_across"
    ),
    Fault("parts: 32 of 64 skipped", "cuda/block.cuh", "part += rows)", "part += 2 * rows)"),
    Fault("packing: bytes but 0 and 1", "cuda/masks.cuh", "keep.ones().bits(n)", "keep.bits(n)"),
    Fault("unpacking: the same four bits twice", "cuda/words.cuh", "bits >> (kBytes * w) & 0xfu", "bits & 0xfu"),
    Fault("words: bits of a mask in another order", "cuda/words.cuh", "0x10204080u", "0x80402010u"),
    Fault(
        "words: unchecked alignment",
        "cuda/words.cuh",
        "n == kVector && is_aligned(target, kVector)",
        "n == kVector",
    ),
    Fault("words: bits past the end", "cuda/words.cuh", "return all & ((1u << n) - 1);", "return all;"),
    Fault(
        "words: bfloat16 of a word swapped",
        "cuda/words.cuh",
        "bit_cast<float>(words[w] << 16)",
        "bit_cast<float>(words[w] & 0xffff0000u)",
    ),
    Fault("conv: wrong kernel position", "math/geometry.h", "++within == inner", "++within > inner"),
]


def copy_tree(target):
    for name in NEEDED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target / name, ignore=ignored) if source.is_dir() else shutil.copy(source, target)


def run_tests(tree):
    """The first test that fails and what it says, or None."""
    env = {**os.environ, "PRUNEOPS_EMULATION_SEED": "1", "PYTHONPATH": str(ROOT), "HYPOTHESIS_PROFILE": "no_shrinking",
           "CMAKE_BUILD_PARALLEL_LEVEL": "1"}  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-k", "not cpu",
               *map(str, sorted((tree / "tests/emulation").glob("test_emulated_*.py")))]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"no end within {LONGEST} s"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed is None or "cmake --build" in done.stdout:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    reason = re.search(r"^E +(.*)", done.stdout, re.MULTILINE)
    # Of a refusal, from the source line on; the kernel's full name fills the table.
    what = re.sub(r".*, (?=\w+\.cuh?:\d+: )|^_emulation\.Refusal: kernel ", "", reason[1]) if reason else ""
    return f"{failed[1].rpartition('::')[2]}: {what[:160]}"


def plant(tree, fault):
    path = tree / "csrc" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.old!r} occurs {text.count(fault.old)} times in {fault.file}, not once")
    path.write_text(text.replace(fault.old, fault.new))
    return lambda: path.write_text(text)


def try_fault(fault, trees):
    """Prints the line of the table; whether the fault was caught."""
    start = time.monotonic()
    tree = trees.get()
    restore = plant(tree, fault)
    try:
        failure = run_tests(tree)
    finally:
        restore()
        trees.put(tree)
    print(f"| {fault.name} | {fault.file} | {failure or 'MISSED'} | {time.monotonic() - start:.0f} s |", flush=True)
    return failure is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="faults at a time (processors)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only faults whose name contains one of these")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if not args.names or any(name in fault.name for name in args.names)]
    trees = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        for number in range(args.jobs):
            tree = Path(folder, str(number))
            tree.mkdir()
            copy_tree(tree)
            trees.put(tree)
        for fault in chosen:  # before an hour has gone
            plant(tree, fault)()
        if failure := run_tests(tree):
            sys.exit(f"mutate: the tests fail without a fault: {failure}")
        caught = sum(pool.map(try_fault, chosen, [trees] * len(chosen)))
    print(f"{caught} of {len(chosen)} faults caught")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
