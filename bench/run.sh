#!/usr/bin/env bash
# Times every operator on the CPU at 2^26 entries, in under ten minutes on two free cores, then writes the tables and the
# picture from all results in bench/results/, a GPU's too. The main cases stand beside every peer that takes seconds at
# the most, the others beside the fastest. `--size full` is 2^28 entries and every peer in every case.
# More arguments go to pytest: `-k topk_mask --size full --benchmark-json=bench/results/full.json` adds a run at 2^28,
# whose cases replace those of cpu.json in the tables. PYTHONPATH=build/neural_compressor adds its peers (`make bench`).
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
