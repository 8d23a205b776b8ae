#!/usr/bin/env bash
# Times everything on the CPU, then writes the tables and the picture. More arguments go to pytest, such as
# `--size full` or `-k update_scores`. The results of a GPU in bench/results/ are shown beside those of the CPU.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
results=bench/results
mkdir -p "$results" docs

"$python" -m pytest bench/bench_*.py -q -p no:cacheprovider --benchmark-disable-gc --benchmark-json="$results/cpu.json" \
  --benchmark-columns=median,min,rounds --benchmark-sort=name "$@"

page=()
if grep -q '<!-- bench:begin -->' README.md 2>/dev/null; then page=(--readme README.md); fi
"$python" -m bench.report "$results"/*.json --markdown docs/bench.md --picture docs/bench.png "${page[@]}"
