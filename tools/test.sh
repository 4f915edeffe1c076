#!/usr/bin/env bash
# Builds and passes every test, as users run the code (release) and under the sanitizers (asan). Exit status 0: all pass.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh test

jobs=$(nproc)
presets=(release asan)
for preset in "${presets[@]}"; do
  cmake --preset "$preset"
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
  sed -n '/% tests passed/,$p' "build/$preset/ctest.txt"
done
exit $status
