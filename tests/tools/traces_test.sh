#!/usr/bin/env bash
# The samples in traces/ are what the tool writes today: traces_test.sh DUALPIPE_SIM
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

"$root/traces/rebuild.sh" "$1" "$folder"
status=0
for sample in "$folder"/*; do
  cmp "$sample" "$root/traces/${sample##*/}" || status=1
done
((status == 0)) || echo "error: traces/ is out of date; run traces/rebuild.sh and look at the result" >&2
exit $status
