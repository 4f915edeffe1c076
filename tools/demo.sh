#!/usr/bin/env bash
# From a fresh clone to the bubble and memory table, and traces to open in Perfetto.
#
#   tools/demo.sh       the simulator; and, where CMake finds LibTorch, the same program with real tensors
#   tools/demo.sh run   both: installs LibTorch into .torch/ (a download of 540 MB, and a build of some minutes)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what=${1:-tool}
if [[ $what != tool && $what != run ]]; then
  echo "usage: tools/demo.sh [run]" >&2
  exit 2
fi
tools/setup.sh "$what"

# A build that is already configured is used as it is. What is switched off here would stay off for tools/test.sh; only
# the tools are built in any case.
if [[ ! -f build/release/build.ninja ]]; then
  cmake --preset release
elif [[ $what == run ]]; then
  cmake build/release  # LibTorch may not have been there yet
fi

build() { cmake --build --preset release --parallel "$(nproc)" --target "$1"; }

# run ARGUMENT...: shows the command, then runs it.
run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

dualpipe_sim=build/release/bin/dualpipe-sim
dualpipe_run=build/release/bin/dualpipe-run
planned=$PWD/build/dualpipe_8ranks_20mb.trace.json
measured=$PWD/build/dualpipe_2ranks_8mb.trace.json

build dualpipe-sim
run $dualpipe_sim table
run $dualpipe_sim simulate dualpipe --ranks 8 --microbatches 20 --gantt --trace "$planned"
printf '\nThe trace is %s\n' "$planned"

if cmake --build --preset release --target help | grep '^dualpipe-run: ' >/dev/null; then
  printf '\nNow with real tensors:\n'
  build dualpipe-run
  run $dualpipe_run --schedule dualpipe --ranks 2 --microbatches 8 --model gpt --warmup 9 --steps 5 --compare --trace "$measured"
  printf '\nThe trace of both, planned and measured, is %s\n' "$measured"
else
  printf '\nTo run a schedule with real tensors, beside its plan: tools/demo.sh run (a download of 540 MB)\n'
fi

cat <<END

To look at a trace: open https://ui.perfetto.dev and drop the file onto the page (it stays on this machine).
More: $dualpipe_sim --help
END
