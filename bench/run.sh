#!/usr/bin/env bash
# Times everything on the CPU, then writes the tables and the picture from all results in bench/results/, a GPU's too.
# More arguments go to pytest: `-k topk_mask --size full --benchmark-json=bench/results/full.json` adds a run at 2^28,
# whose cases replace those of cpu.json in the tables.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
results=bench/results
mkdir -p "$results" docs

"$python" -m pytest bench/bench_*.py -p no:cacheprovider --benchmark-disable-gc --benchmark-json="$results/cpu.json" \
  --benchmark-columns=median,min,rounds --benchmark-sort=name "$@"

page=()
if grep -q '<!-- bench:begin -->' README.md 2>/dev/null; then page=(--readme README.md); fi
"$python" -m bench.report "$results"/*.json --markdown docs/bench.md --picture docs/bench.png "${page[@]}"
