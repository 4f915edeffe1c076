#!/usr/bin/env bash
# Rebuilds the samples of this folder:
#
#   traces/rebuild.sh [DUALPIPE_SIM [FOLDER]]     with build/release's tool and into traces/, unless named
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sim=${1:-$root/build/release/bin/dualpipe-sim}
folder=${2:-$root/traces}

network=(--latency 20us --bandwidth 50GB/s --bytes 32MiB)
memory=(--activation-bytes 1GiB --parameter-bytes 2GiB --gradient-bytes 128MiB)

"$sim" simulate 1f1b --ranks 4 --microbatches 8 "${network[@]}" "${memory[@]}" --comm links \
  --trace "$folder/1f1b_4ranks_8mb_links.json" >/dev/null
"$sim" simulate dualpipe --ranks 4 --microbatches 8 --overlapped 2.5ms "${network[@]}" "${memory[@]}" \
  --weight-stash-bytes 512MiB --comm stream \
  --trace "$folder/dualpipe_4ranks_8mb_stream.json" >/dev/null
"$sim" simulate dualpipe --ranks 8 --microbatches 20 --overlapped 2.5ms \
  --svg "$folder/dualpipe_8ranks_20mb.svg" >/dev/null
