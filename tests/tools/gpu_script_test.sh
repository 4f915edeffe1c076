#!/usr/bin/env bash
# tests/gpu/run.sh without a GPU: its dry run with the real tools, and all of its parts with stand-ins for the tools and
# for nvidia-smi, which take note of how they are called and print what a GPU could have.
#
#   tests/tools/gpu_script_test.sh build/release
set -euo pipefail

build=$(realpath "$1")
tool=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../gpu/run.sh")
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
command -v python3 >/dev/null || { echo "skipped: there is no python3"; exit 77; }
export PYTHONDONTWRITEBYTECODE=1

# exits STATUS REGEX ARGUMENT...: the status, and the regular expression on stdout or stderr.
exits() {
  local expected=$1 regex=$2
  shift 2
  run "$@"
  ((status == expected)) || { fail "status $status, not $expected"; return; }
  grep -qE -e "$regex" stdout stderr || fail "its output lacks: $regex"
}

# says EXPRESSION: of `parts` and `held`, the requirements, in the results.
says() {
  checks=$((checks + 1))
  python3 -c "
import json, sys
results = json.load(open('results.json'))
parts, held, about = results['parts'], results['requirements'], results['about']
sys.exit(not ($1))" 2>stderr || fail "the results do not say: $1"
}

test_usage() {
  exits 2 'no part nothing' nothing
  exits 2 'no option --nothing' --nothing
  exits 2 '--limit: a number' --limit soon
  exits 2 '--out takes a value' --out
  PATH=$scratch/empty:/usr/bin:/bin exits 77 'lists no GPU'
}

test_dry_run() {
  run --device cpu --build "$build" --out results.json parity replay sanitizer
  ((status == 0)) || fail "status $status, not 0"
  says "parts['parity']['status'] == 'passed' and len(parts['parity']['cases']) >= 8"
  says "parts['parity']['cases']['dualpipe gpt bfloat16']['figures']['gradients_bitwise_equal']"
  says "parts['replay']['cases']['dualpipe-run-bench']['figures']"
  says "all(each['holds'] is None for each in held.values())"  # nothing is shown
  says "about['device'].startswith('none')"
  exits 1 'failed: .*the part build makes it' --device cpu --build nowhere --out results.json replay
  says "parts['replay']['status'] == 'failed' and parts['parity']['status'] == 'passed'"
  exits 1 '^error: .*nowhere' --device cpu --build "$build" --out /proc/nowhere/results.json sanitizer
}

# What a GPU's tools could say. $FAKE: what goes wrong.
make_fakes() {
  mkdir -p fake/bin fake/path
  cat >fake/path/nvidia-smi <<'END'
#!/bin/bash
case $1 in
  --list-gpus) for ((gpu = 0; gpu < ${FAKE_GPUS:-1}; ++gpu)); do sleep 0.02 && echo "GPU $gpu: NVIDIA Stand-in"; done ;;
  *) echo "NVIDIA Stand-in, 580.1, 81559 MiB, 9.0" ;;
esac
END
  cat >fake/path/compute-sanitizer <<'END'
#!/bin/sh
shift 4  # --tool NAME --error-exitcode 9
[ "$FAKE" != unclean ] || exit 9
exec "$@"
END
  cat >fake/bin/dualpipe-sim <<END
#!/bin/sh
exec "$build/bin/dualpipe-sim" "\$@"
END
  cat >fake/bin/dualpipe-run <<'END'
#!/bin/bash
[[ $1 != --help ]] || { echo "--model gpt,mlp,moe --no-interleave"; exit; }
echo "${RANK:+rank $RANK of $WORLD_SIZE: }$*" >>calls
[[ ${FAKE:-} != lost || ${RANK:-} != 1 ]] || exit 1
[[ ${FAKE:-} != hang ]] || sleep 100
pair=700000
[[ " $* " != *" --no-interleave "* ]] || pair=1000000
[[ ${FAKE:-} != slow ]] || pair=900000
makespan=1000000
[[ ${FAKE:-} != inaccurate || " $* " != *" zb1p "* ]] || makespan=1040000
while (($# > 0)); do
  case $1 in
    --json) printf '{\n"check_passed": true,\n"step_ns": 1100000,\n"predicted_makespan_ns": 1000000,\n"measured_makespan_ns": %d,\n"measured_peak_memory_bytes": 1000,\n"planned_peak_memory_bytes": 1010\n}\n' $makespan >$2 ;;
    --calibrate) printf '{\n  "parts": [\n    {"forward_ns": 300000, "backward_ns": 700000, "overlapped_ns": %d}\n  ],\n  "x": 0}\n' $pair >$2 ;;
  esac
  shift
done
[[ ${FAKE:-} != unequal ]]
END
  cat >fake/bin/dualpipe-run-bench <<'END'
#!/bin/sh
echo "bench $*" >>calls
for each; do
  case $each in
    --benchmark_out=*) echo '{"benchmarks": [{"name": "step/gpt/hidden:64", "ratio": 1.01, "replay_ms": 2, "loop_ms": 1.98}]}' >"${each#*=}" ;;
  esac
done
END
  chmod +x fake/bin/* fake/path/*
}

on_gpu() { PATH=$scratch/fake/path:$PATH "$@"; }
parts=(parity compare replay overlap sanitizer)

test_all_parts() {
  make_fakes
  on_gpu exits 0 'F&B of moe takes at most 0.80 times F \+ B: 0.700 interleaved, 1.000 not interleaved' \
    --build fake --out results.json "${parts[@]}"
  says "about['device'] == 'NVIDIA Stand-in' and about['driver'] == '580.1'"
  says "all(each['holds'] is True for each in held.values()) and len(held) == 5"
  says "len(parts['parity']['cases']) == 21 * 3 * 2"  # the catalog, models, types
  says "'--device cuda --sm-partition' in parts['compare']['cases']['accuracy']['command']"
  says "parts['compare']['cases']['accuracy']['figures'][0]['memory_error_percent'] == 1.0"
  grep -qE -- '--schedule interleaved --ranks 4 .*--model moe .*--dtype bfloat16 .*--device cuda --check' calls ||
    fail "no parity of moe on a GPU"

  rm calls  # what has passed is not run again, unless the tools are others
  on_gpu exits 0 . --build fake --out results.json parity sanitizer
  [[ ! -e calls ]] || fail "ran again: $(head -n 1 calls)"
  echo '# another one' >>fake/bin/dualpipe-run
  on_gpu exits 0 . --build fake --out results.json sanitizer
  [[ $(wc -l <calls) == 2 ]] || fail "did not run again"
}

# A process for each GPU; all have to pass.
test_several_gpus() {
  make_fakes
  on_gpu exits 0 'skipped: it needs two GPUs, and there is one' --build fake --out results.json nccl
  rm -f calls
  FAKE_GPUS=5 on_gpu exits 0 'parity over NCCL on 4 GPUs: 42 of 42' --build fake --out results.json nccl
  [[ $(grep -cE '^rank [0-3] of 4: .*--transport nccl --check$' calls) == 168 ]] || fail "not four processes for each case"
  FAKE_GPUS=2 FAKE=lost on_gpu exits 1 'parity over NCCL on 2 GPUs: 0 of 42' --build fake --out results.json nccl
}

# Each with the name of the part that fails, and of one that does not.
test_failures() {
  make_fakes
  local fake part
  for fake in slow:overlap inaccurate:compare unequal:parity unclean:sanitizer; do
    part=${fake#*:}
    rm -f results.json
    FAKE=${fake%:*} on_gpu exits 1 . --build fake --out results.json "$part" replay
    says "parts['$part']['status'] == 'failed' and parts['replay']['status'] == 'passed'"
    says "held['$part']['holds'] is False and held['replay']['holds'] is True"
  done
  rm -f results.json
  FAKE=hang on_gpu exits 1 'not done within 1 s' --build fake --out results.json --limit 1 parity replay
  says "parts['parity']['cases']['gpipe mlp float32']['exit_status'] == 'timeout'"
  says "parts['replay']['status'] == 'passed'"
}

test_usage
test_dry_run
test_all_parts
test_several_gpus
test_failures

echo "$checks commands, $failures failures"
((failures == 0))
