#!/usr/bin/env bash
# From a fresh clone to the bubble and memory table, and a trace to open in Perfetto.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh tool

# Only the tool. A build that is already configured is used as it is, tests and all.
if [[ ! -f build/release/build.ninja ]]; then
  cmake --preset release -DDUALPIPE_BUILD_TESTS=OFF -DDUALPIPE_BUILD_BENCHMARKS=OFF
fi
cmake --build --preset release --parallel "$(nproc)" --target dualpipe-sim

dualpipe_sim=build/release/bin/dualpipe-sim
trace=$PWD/build/dualpipe_8ranks_20mb.trace.json

# run ARGUMENT...: shows the command, then runs it.
run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

run $dualpipe_sim table
run $dualpipe_sim simulate dualpipe --ranks 8 --microbatches 20 --gantt --trace "$trace"

cat <<END

The trace is $trace
To look at it: open https://ui.perfetto.dev and drop the file onto the page (it stays on this machine).
More: $dualpipe_sim --help
END
