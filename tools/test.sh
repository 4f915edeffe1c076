#!/usr/bin/env bash
# Builds DualPipe and passes its tests. Exit status 0: all pass.
#
#   tools/test.sh       as users run the code: the preset release
#   tools/test.sh all   the builds that this leaves out: without optimisation, under the sanitizers of addresses and of
#                       undefined behaviour (debug), under that of data races (tsan), and by Clang (clang)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

presets=(release)
needed=test
case ${1:-} in
  "") ;;
  all)
    presets=(debug tsan clang)
    needed=all
    ;;
  *)
    echo "usage: tools/test.sh [all]" >&2
    exit 2
    ;;
esac

tools/setup.sh "$needed"

jobs=$(nproc)
for preset in "${presets[@]}"; do
  cmake --preset "$preset" -DDUALPIPE_BUILD_TESTS=ON
  cmake --build --preset "$preset" --parallel "$jobs"
done

# All presets are tested even if one fails, and the summaries stand together at the end.
status=0
for preset in "${presets[@]}"; do
  printf '\nTests of %s\n' "$preset"
  ctest --preset "$preset" --parallel "$jobs" 2>&1 | tee "build/$preset/ctest.txt" || status=1
done

for preset in "${presets[@]}"; do
  printf '\nSummary of %s\n' "$preset"
  # pytest's own, which ctest keeps to itself where all pass.
  sed -nE 's/^(=+ )?([0-9]+ (passed|failed|skipped|error)\>.* in [0-9.]+s.*)/pytest: \2/p' \
    "build/$preset/Testing/Temporary/LastTest.log"
  sed -n '/% tests passed/,$p' "build/$preset/ctest.txt"
done
exit $status
