#!/usr/bin/env bash
# After the tests, ctest says how many of those that need a GPU were skipped, and why.
#
#   tests/gpu/skipped.sh build/release/tests/gpu_tests TEST...
set -euo pipefail

gpu_tests=$1
shift
[[ -x $gpu_tests ]] || exit 0
why=$("$gpu_tests" --run_test=gpu_cuda/a_device_is_on_the_gpu 2>/dev/null | sed -n 's/^skipped: //p') || true
[[ -z $why ]] || echo "GPU tests: $# skipped ($*): $why"
