#!/usr/bin/env bash
# How well costs that were measured on one schedule predict others: calibrated on 1F1B with 8 micro-batches, then 1F1B and
# four other schedules with 8 and 32. 1F1B has no pairs: how long F&B takes is taken from DualPipe with 8.
#
#   tools/accuracy.sh [--rounds N] [--run DUALPIPE_RUN] [--of step|makespan] [--time-limit PERCENT]
#                     [--memory-limit PERCENT] [--json FILE] [--quick] [-- OPTION...]
#
#   schedule   M  predicted  measured   error  peak memory
#   1f1b       8   500.0 ms  505.0 ms   -1.0%        +0.1%
#   …
#
# OPTION...: dualpipe-run's, of model, ranks and machine, instead of a GPT on 2 ranks with one thread each. Times are
# those of a step (the predicted makespan, and what a step of the calibration took besides its makespan: the optimizer,
# mostly), or makespans. Each of the 5 rounds calibrates anew and then runs every case once, so that all cases see the
# machine in the same moods; printed are the medians over the rounds, of the error too. The memory is that of the rank
# which is furthest off. --quick: only 1F1B and DualPipe with 8, to try the script. Exit status 1 where a time is off by
# more than 5 %, or a peak by more than 2 %, unless said otherwise.
#
# It takes about 2 minutes a round. The machine must be quiet, and have a core for each rank.
set -euo pipefail
rounds=5
run=$(dirname "${BASH_SOURCE[0]}")/../build/release/bin/dualpipe-run
of=step
time_limit=5
memory_limit=2
json=/dev/null
options=(--model gpt --ranks 2 --threads-per-rank 1 --layers 8 --hidden 256 --heads 4 --sequence 64 --batch 4
  --vocabulary 1024)
cases=(1f1b:8 gpipe:8 zb1p:8 zb-h2:8 dualpipe:8 1f1b:32 gpipe:32 zb1p:32 zb-h2:32 dualpipe:32)
while (($# > 0)); do
  case $1 in
    --rounds) rounds=$2 ;;
    --run) run=$2 ;;
    --of) of=$2 ;;
    --time-limit) time_limit=$2 ;;
    --memory-limit) memory_limit=$2 ;;
    --json) json=$2 ;;
    --quick)
      cases=(1f1b:8 dualpipe:8)
      shift
      continue
      ;;
    --)
      options=("${@:2}")
      break
      ;;
    *)
      sed -n '5,6s/^# *//p' "${BASH_SOURCE[0]}" >&2
      exit 2
      ;;
  esac
  shift 2
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# numbers KEY FILE: its values, one a line; figure: the first of them.
numbers() { sed -nE "s/^ *\"$1\": ([0-9]+),?\$/\1/p" "$2"; }
figure() { numbers "$@" | sed -n 1p; }

# with_pairs COSTS PAIRS: the costs, each part with the F&B that it has in PAIRS.
with_pairs() {
  awk '
    match($0, /"overlapped_ns": [0-9]+/) && NR == FNR { pair[++pairs] = substr($0, RSTART, RLENGTH) }
    NR == FNR { next }
    /^    \{/ && ++part <= pairs { sub(/"activation_bytes"/, pair[part] ", &") }
    { print }' "$2" "$1"
}

# A line for each case: its name, predicted and measured time, and the error of the memory in percent.
for ((round = 1; round <= rounds; ++round)); do
  "$run" --schedule 1f1b --microbatches 8 "${options[@]}" --warmup 9 --steps 5 --calibrate "$work/costs" \
    --json "$work/calibration" >/dev/null
  "$run" --schedule dualpipe --microbatches 8 "${options[@]}" --warmup 3 --steps 5 --calibrate "$work/pairs" >/dev/null
  with_pairs "$work/costs" "$work/pairs" >"$work/costs_with_pairs"
  outside=0
  measured=measured_makespan_ns
  if [[ $of == step ]]; then
    outside=$(($(figure step_ns "$work/calibration") - $(figure measured_makespan_ns "$work/calibration")))
    measured=step_ns
  fi
  for each in "${cases[@]}"; do
    schedule=${each%:*}
    "$run" --schedule "$schedule" --microbatches "${each#*:}" "${options[@]}" --warmup 3 --steps 5 \
      --costs "$work/costs_with_pairs" --json "$work/result" >/dev/null
    memory=$(paste <(numbers planned_peak_memory_bytes "$work/result") <(numbers measured_peak_memory_bytes "$work/result") |
      awk '{ error = 100 * ($1 / $2 - 1); if (error^2 >= worst^2) worst = error } END { print worst }')
    echo "$each $(($(figure predicted_makespan_ns "$work/result") + outside)) $(figure $measured "$work/result") $memory"
  done
  [[ ! -t 2 ]] || echo "round $round of $rounds is done" >&2
done >"$work/lines"

awk -v time_limit="$time_limit" -v memory_limit="$memory_limit" -v json="$json" '
  function median(list, count,    i, j, value) {
    for (i = 2; i <= count; ++i) {
      value = list[i]
      for (j = i - 1; j >= 1 && list[j] > value; --j) list[j + 1] = list[j]
      list[j + 1] = value
    }
    return list[int((count + 1) / 2)]
  }
  function median_of(name, figure,    i, list) {
    for (i = 1; i <= count[name]; ++i) list[i] = figures[name, figure, i]
    return median(list, count[name])
  }
  {
    if (!count[$1]++) names[++cases] = $1
    figures[$1, "predicted", count[$1]] = $2 / 1e6
    figures[$1, "measured", count[$1]] = $3 / 1e6
    figures[$1, "error", count[$1]] = 100 * ($2 / $3 - 1)
    figures[$1, "memory", count[$1]] = $4
  }
  END {
    print "schedule   M  predicted  measured   error  peak memory"
    for (i = 1; i <= cases; ++i) {
      name = names[i]
      split(name, parts, ":")
      error = median_of(name, "error")
      memory = median_of(name, "memory")
      printf "%-8s  %2d  %6.1f ms %6.1f ms  %+5.1f%%  %+10.2f%%\n", parts[1], parts[2], median_of(name, "predicted"),
        median_of(name, "measured"), error, memory
      printf "%s{\"schedule\": \"%s\", \"microbatches\": %d, \"predicted_ms\": %.4f, \"measured_ms\": %.4f, " \
        "\"time_error_percent\": %.3f, \"memory_error_percent\": %.3f}", i == 1 ? "[" : ",\n ", parts[1], parts[2],
        median_of(name, "predicted"), median_of(name, "measured"), error, memory >json
      if (error^2 > time_limit^2 || memory^2 > memory_limit^2) off = 1
    }
    print "]" >json
    exit off
  }' "$work/lines"
