#!/usr/bin/env bash
# Everything that only a GPU can tell, in under ten minutes and without a download: correctness, the tests marked
# cuda, compute-sanitizer, benchmarks. Needs Python with torch and NumPy; what else is missing is skipped and said.
set -u -o pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu_check.sh [--library FILE] [--output DIR] [--limit SECONDS] [--dry-run]
  --library FILE    compiled library to use; without it the one in pruneops/, or one built for the present GPU
  --output DIR      where logs and JSON go (default: $OUT, or else out/gpu_check)
  --limit SECONDS   for all stages together (default 580)
  --dry-run         the same stages on the CPU, at sizes that take seconds
PYTHON names the interpreter (default: python3). Ends with 0 where every stage passed or was skipped.
TEXT
}

library="" output="${OUT:-out/gpu_check}" limit=580 device=cuda size=default
while [ $# -gt 0 ]; do
  case "$1" in
    --library | --output | --limit)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
      case "$1" in --library) library=$(realpath -- "$2") ;; --output) output=$2 ;; --limit) limit=$2 ;; esac
      shift 2 ;;
    --dry-run) device=cpu size=smoke; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown argument: $1" >&2; usage >&2; exit 2 ;;
  esac
done
if [ -n "$library" ] && [ ! -f "$library" ]; then echo "no such library: $library" >&2; exit 2; fi

mkdir -p -- "$output" && output=$(cd -- "$output" && pwd) || exit 2
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
SECONDS=0
summary="$output/summary.txt"
: >"$summary"
failures=0

note() { printf '%-22s %-8s %5s s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$summary"; }
left() { echo $((limit - SECONDS)); }
has_module() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

# stage NAME SECONDS COMMAND...: runs within its limit and what is left of the whole; goes on after a failure.
stage() {
  local name=$1 most=$2 began=$SECONDS log="$output/$1.log" status
  shift 2
  if [ "$(left)" -lt 5 ]; then
    note "$name" FAIL 0 "no time left"
    failures=$((failures + 1))
    return 1
  fi
  if [ "$most" -gt "$(left)" ]; then most=$(left); fi
  echo "--- $name"
  timeout --kill-after=10 "$most" "$@" >"$log" 2>&1
  status=$?
  tail -n 5 -- "$log"
  if [ $status -eq 0 ]; then
    note "$name" ok $((SECONDS - began)) ""
    return 0
  fi
  failures=$((failures + 1))
  case $status in
    124 | 137) note "$name" TIMEOUT $((SECONDS - began)) "after $most s; see $name.log" ;;
    *) note "$name" FAIL $((SECONDS - began)) "exit code $status; see $name.log" ;;
  esac
  return 1
}

skip() { note "$1" skipped 0 "$2"; }

describe_machine() {
  if command -v nvidia-smi >/dev/null; then nvidia-smi || return; fi
  "$python" -m bench.environment --device "$device"
}

build() {
  local arch
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return
  TORCH_CUDA_ARCH_LIST="$arch" FORCE_CUDA=1 "$python" setup.py build_ext --inplace
}

place_library() {
  if [ -n "$library" ]; then
    # Renamed into place: a library that some process has loaded is not written into.
    cp -- "$library" pruneops/_C.abi3.so.new && mv -- pruneops/_C.abi3.so.new pruneops/_C.abi3.so || return
  elif [ "$device" = cuda ] && ! compgen -G 'pruneops/_C*.so' >/dev/null; then
    build || return
  fi
  "$python" -m bench.environment --device "$device" --native
}

# The four tools side by side: each takes one processor, and little of the GPU.
every_sanitizer() {
  local tool pids=() failed=0
  for tool in memcheck racecheck initcheck synccheck; do
    # The caching allocator would hide accesses beyond a tensor.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$python" -m bench.check --device cuda --entries 20000 >"$output/$tool.log" 2>&1 &
    pids+=($!)
  done
  for tool in memcheck racecheck initcheck synccheck; do
    wait "${pids[0]}" && echo "$tool: clean" || { echo "$tool: exit code $?; see $tool.log" && failed=1; }
    pids=("${pids[@]:1}")
  done
  return $failed
}

sanitize() {
  if [ "$device" = cpu ]; then skip sanitizers "dry run"; return; fi
  sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | head -n 1)
  if [ -z "$sanitizer" ]; then skip sanitizers "compute-sanitizer is not installed"; return; fi
  export sanitizer output
  stage sanitizers 150 bash -c every_sanitizer
}

run_tests() {
  if ! has_module pytest; then skip tests "pytest is not installed; see check"; return; fi
  local only=(-m "cuda and not large" -q --continue-on-collection-errors -p no:cacheprovider)
  if [ "$device" = cpu ]; then only+=(--collect-only); fi
  if [ "$device" = cuda ] && has_module xdist; then only+=(-n 8); fi
  stage tests 150 "$python" -m pytest tests "${only[@]}"
}

# DRAM throughput as the hardware counts it, of the three main kernels.
profile() {
  if [ "$device" = cpu ]; then skip ncu "dry run"; return; fi
  local ncu case
  ncu=$(command -v ncu || compgen -G '/usr/local/cuda*/bin/ncu' | head -n 1)
  if [ -z "$ncu" ]; then skip ncu "ncu is not installed"; return; fi
  local cases=('update_scores_-snip momentum, fp32' 'update_block_scores_-4x1, fp32' 'topk_mask-random, keep 50 %, fp32')
  for case in "${cases[@]}"; do
    stage "ncu-${case%%-*}" 40 "$ncu" --csv --clock-control none --kernel-name-base demangled --kernel-name regex:pruneops --launch-count 6 \
      --metrics gpu__time_duration.sum,dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed \
      "$python" -m bench --device cuda --only "$case" --contender pruneops
  done
}

benchmark() {
  local budget=$(($(left) - 100))  # for what still runs, what profiles and what reports
  if [ "$budget" -gt 330 ]; then budget=330; fi
  if [ "$budget" -lt 10 ]; then budget=10; fi
  stage bench $((budget + 45)) "$python" -m bench --device "$device" --size "$size" --budget "$budget" \
    --output "$output/$device.json"
}

report() {
  if [ ! -f "$output/$device.json" ]; then skip report "no results"; return; fi
  local picture=()
  if has_module matplotlib; then picture=(--picture "$output/bench.png"); fi
  stage report 30 "$python" -m bench.report "$output/$device.json" --markdown "$output/bench.md" "${picture[@]}"
}

# What a stage runs is its own process, so that it can be stopped.
export python device library
export -f describe_machine build place_library every_sanitizer

stage machine 60 bash -c describe_machine || { echo "no usable device or torch" >&2; exit 1; }
stage library 300 bash -c place_library || { echo "no usable library" >&2; exit 1; }
stage check 60 "$python" -m bench.check --device "$device"
run_tests
sanitize
benchmark
profile
report

echo
cat -- "$summary"
echo "$failures of the stages failed; $SECONDS s in all; results in $output"
[ "$failures" -eq 0 ]
