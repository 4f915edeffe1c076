#!/usr/bin/env bash
# dualpipe-run in several processes, as its users meet it: it computes the same, and ends when one of them does not go on.
#
#   tests/tools/dualpipe_run_mpi_test.sh build/release/bin/dualpipe-run build/release/bin/dualpipe-sim mpirun
set -euo pipefail

dualpipe_run=$(realpath "$1")
dualpipe_sim=$(realpath "$2")
mpirun=$3
# As in a container: root, and fewer cores than processes.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
tool=$mpirun
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

tiny=(--microbatches 16 --hidden 8 --sequence 4 --batch 1 --steps 1 --warmup 1)

# holds REGEX FILE
holds() { grep -qE -e "$1" "$2" || fail "$2 lacks: $1"; }

# refuses REGEX ARGUMENT...: mpirun's status is not 0; the regular expression is on stderr, where mpirun has its say, too,
# and one `error:` block.
refuses() {
  local regex=$1
  shift
  within=20 run "$@"
  ((status != 0 && status != 124)) || fail "status $status"
  holds "$regex" stderr
  [[ $(grep -c '^error:' stderr) == 1 ]] || fail "not one block that starts with error:"
}

# Every schedule is checked by exec_processes, which does not start processes for each.
test_check() {
  local schedule
  for schedule in 1f1b dualpipe; do
    succeeds 'gradients bitwise equal' -n 4 "$dualpipe_run" --schedule $schedule --ranks 4 "${tiny[@]}" --dtype float64 --check
  done
  succeeds 'gradients bitwise equal' -n 8 "$dualpipe_run" --schedule zb1p --ranks 8 --microbatches 16 --model mlp \
    --hidden 8 --batch 1 --steps 1 --warmup 1 --dtype float64 --check
}

test_several_ranks_in_a_process() {
  succeeds 'gradients bitwise equal' -n 2 "$dualpipe_run" --schedule interleaved --ranks 4 --chunks 2 "${tiny[@]}" --tied \
    --dtype float64 --clip 0.1 --check
  succeeds '"transport": *"mpi"' -n 1 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --transport mpi --json -
}

# As srun --mpi=pmix starts one: it says by PMIX_RANK alone that it has, as Open MPI's mpirun does, too.
test_step_of_one_process() {
  succeeds '"transport": *"threads"' -n 1 env -u OMPI_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS=1 "$dualpipe_run" \
    --schedule 1f1b --ranks 2 "${tiny[@]}" --json -
  succeeds '"transport": *"mpi"' -n 2 env -u OMPI_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS=2 "$dualpipe_run" \
    --schedule 1f1b --ranks 2 "${tiny[@]}" --json -
}

# The same file, from processes and from threads; and processes go on with it.
test_save() {
  succeeds . -n 3 "$dualpipe_run" --schedule zb1p --ranks 4 "${tiny[@]}" --save of_processes
  tool=$dualpipe_run succeeds . --schedule zb1p --ranks 4 "${tiny[@]}" --save of_threads
  cmp -s of_processes of_threads || fail "processes saved something else than threads"
  succeeds '^ +2 +[0-9]' -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 --layers 4 "${tiny[@]}" --resume of_processes
  refuses 'cannot write .*full' -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --save /dev/full
}

# Longer than the timeout of those who wait for it: who reads the pipe takes its time.
test_slow_save() {
  mkfifo slow
  { sleep 4; cat >read_at_last; } <slow &
  local reader=$!
  succeeds . -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --timeout 1s --save slow
  wait $reader
  tool=$dualpipe_run succeeds . --schedule 1f1b --ranks 2 "${tiny[@]}" --resume read_at_last
}

test_calibration() {
  succeeds '"latency_ns"' -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --calibrate -
  # On a busy machine it may be that small messages take as long as large ones, which is a bandwidth of 0; not each time.
  local bandwidth='"communication": "links", "latency_ns": [0-9]+, "bandwidth_bytes_per_s": [1-9]' try
  for try in 2 3 4; do
    if grep -qE "$bandwidth" stdout; then return; fi
    run "${command[@]}"
  done
  holds "$bandwidth" stdout
}

test_bad_input() {
  refuses '4 processes, but only 2 ranks.*-n 2' -n 4 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}"
  refuses 'different command lines: --seed' -n 1 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --seed 1 : \
    -n 1 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --seed 2
  # One that finds out late, while the other waits for it: it does not wait for its timeout.
  mkfifo late
  { sleep 1; echo 0F0,nonsense; } >late &
  refuses "late:1: .*'nonsense'" -n 1 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" : \
    -n 1 "$dualpipe_run" --schedule ./late
  refuses 'SCHEDULE -: standard input is not there for all 2 processes' -n 2 "$dualpipe_run" --schedule -
  refuses '--timeout: .*nonsense' -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --timeout nonsense
  refuses 'no schedule named' -n 2 "$dualpipe_run" --schedule none --ranks 2 "${tiny[@]}"
}

# Each process runs in a folder of its own, as on a machine with a disk of its own. What they find under one name must be
# the same, whatever it is the name of.
test_files_of_several_machines() {
  local nodes=(-n 2 bash -c 'cd "node$OMPI_COMM_WORLD_RANK" && exec "$0" "$@"' "$dualpipe_run")
  local gpt=("${nodes[@]}" --schedule 1f1b --ranks 2 "${tiny[@]}")
  mkdir node0 node1
  printf '\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0\6\0\0\0' | tee node0/tokens >node1/tokens
  succeeds . "${gpt[@]}" --data tokens
  printf '\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0\7\0\0\0' >node1/tokens
  local crc='checksum [0-9a-f]{8}'
  refuses "^error: --data: the processes do not find the same file; .* rank 0: tokens: 6 tokens, $crc; rank 1: tokens: 6 tokens, $crc\$" \
    "${gpt[@]}" --data tokens
  rm node1/tokens
  refuses '^error: --data: .* rank 0: tokens: 6 tokens, .*; rank 1: tokens: cannot be opened: No such file' \
    "${gpt[@]}" --data tokens

  local threads=(--schedule 1f1b --ranks 2 "${tiny[@]}")
  (cd node0 && "$dualpipe_run" "${threads[@]}" --save saved >/dev/null)
  cp node0/saved node1/saved
  succeeds '^ +2 +[0-9]' "${gpt[@]}" --resume saved
  (cd node1 && "$dualpipe_run" "${threads[@]}" --learning-rate 0.5 --save saved >/dev/null)
  refuses "^error: --resume: the processes do not find the same file; .* rank 0: saved: 2 steps, $crc; rank 1: saved: 2 steps, $crc\$" \
    "${gpt[@]}" --resume saved
  refuses '^error: --resume: the processes' "${gpt[@]}" --resume saved --eval
  rm node1/saved
  refuses '^error: --resume: .*; rank 1: saved: cannot be opened: No such file' "${gpt[@]}" --resume saved
  refuses '^error: saved: cannot be opened: No such file' "${gpt[@]}" --resume saved --check

  printf '0F0,0B0\n1F0,1B0\n' >node0/schedule.csv
  printf '0F0,0I0,0W0\n1F0,1B0\n' >node1/schedule.csv
  refuses '^error: .*the ops of the schedule' "${nodes[@]}" --schedule schedule.csv "${tiny[@]:2}"
  local costs='{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 1000, "backward_ns": 2000,
    "input_gradient_ns": 1000, "weight_gradient_ns": 1000}]'
  echo "$costs}" >node0/costs
  echo "$costs, \"latency_ns\": 5}" >node1/costs
  local timed=("${nodes[@]}" --schedule 1f1b --ranks 2 --microbatches 4 --model timed --costs costs)
  refuses '^error: .*--link-delay' "${timed[@]}"
  echo "${costs/1000/1001}}" >node1/costs
  refuses '^error: .*the durations of the ops' "${timed[@]}"
}

# Each of them would run all ranks.
test_threads() {
  within=20 run -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --transport threads
  ((status == 2)) || fail "status $status, not 2"
  holds '^error: --transport threads: mpirun has started 2 processes.*--transport mpi' stderr
}

# With so high a rate the parameters overflow in a step whose loss is still a number.
test_save_that_is_not_finite() {
  local train=(-n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 --microbatches 16 --model mlp --hidden 8 --batch 1 --steps 1
    --warmup 0 --optimizer sgd)
  succeeds . "${train[@]}" --learning-rate 1e3 --save finite
  cp finite before
  refuses "^error: rank [01]: tensor '.*' has (nan|inf) at element 0 of 256 after step 1, so that finite was not saved again" \
    "${train[@]}" --resume finite --learning-rate 1e30 --save finite
  cmp -s finite before || fail "the last save is gone"
}

test_loss_that_is_no_number() {
  refuses 'rank 1, 1F0: the loss is -?nan in step 1' -n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" \
    --optimizer sgd --learning-rate 1e30 --trace nan.json
  is_partial_trace nan.json
}

# is_partial_trace FILE: valid, and of a run that began.
is_partial_trace() {
  holds '"0F0"' "$1"
  "$dualpipe_sim" compare "$1" "$1" >/dev/null 2>compared || fail "$1 cannot be read: $(head -n 1 compared)"
  [[ -z $(compgen -G '*.part') ]] || fail "left a file behind"
}

# breaks NAME SIGNAL WHOM ARGUMENT...: starts three ranks, sends the signal to one of them, or to mpirun, in the middle of
# their work, and waits for the end of all. Leaves stderr, $status, and the trace NAME.json. At the end of a step a rank
# waits for the others and is in no op: so a step has many micro-batches, and that is less than a hundredth of it.
breaks() {
  local name=$1 signal=$2 whom=$3
  shift 3
  command=("$name")
  checks=$((checks + 1))
  "$mpirun" "$@" -n 3 "$dualpipe_run" --schedule 1f1b --ranks 3 --microbatches 256 --model timed --forward 10ms --backward 20ms \
    --steps 1000 --timeout 2s --trace "$name.json" >stdout 2>stderr &
  local mpirun_pid=$! processes=()
  while ((${#processes[@]} < 3)) && kill -0 $mpirun_pid 2>/dev/null; do
    sleep 0.1
    mapfile -t processes < <(pgrep -P $mpirun_pid -x dualpipe-run | sort -n)
  done
  until_busy "${processes[@]}"
  if [[ $whom == mpirun ]]; then kill "-$signal" $mpirun_pid; else kill "-$signal" "${processes[$whom]}"; fi
  local begin=$SECONDS
  status=0
  wait $mpirun_pid || status=$?
  ((SECONDS - begin <= 8)) || fail "ended after $((SECONDS - begin)) s"
  sleep 0.2
  local process
  for process in "${processes[@]}"; do
    if is_running "$process"; then fail "process $process is left running"; fi
  done
}

# Not a zombie that nobody has waited for.
is_running() { grep -qs '^State:.[^Z]' "/proc/$1/status"; }

test_interrupt() {
  breaks interrupted INT mpirun
  ((status != 0)) || fail "status 0"
  holds 'error: the run was interrupted in step [0-9]+: rank 0 in [0-9A-Z_]+.*rank 2 in ' stderr
  is_partial_trace interrupted.json
}

# As where a terminal closes.
test_hangup() {
  breaks hung_up HUP mpirun
  ((status != 0)) || fail "status 0"
  holds 'error: the run was interrupted in step [0-9]+: rank 0 in [0-9A-Z_]+.*rank 2 in ' stderr
  is_partial_trace hung_up.json
}

# Rank 1 has ended before MPI knows of it, with a status that mpirun has nothing against.
absent=(-n 2 sh -c '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || exit 0; exec "$@"' sh)

test_process_that_does_not_start() {
  refuses '^error: MPI has not connected the processes within 10 s: one of them has ended already' "${absent[@]}" \
    "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --timeout 1s
}

test_interrupt_at_the_start() {
  command=("${absent[@]}" "$dualpipe_run")
  checks=$((checks + 1))
  "$mpirun" "${command[@]}" --schedule 1f1b --ranks 2 "${tiny[@]}" >stdout 2>stderr &
  local mpirun_pid=$! process=
  until process=$(pgrep -P $mpirun_pid -x dualpipe-run); do sleep 0.1; done
  until grep -qs libmpi "/proc/$process/maps" && (($(ls "/proc/$process/task" | wc -l) > 3)); do sleep 0.1; done
  sleep 1
  kill -INT $mpirun_pid
  local begin=$SECONDS
  status=0
  wait $mpirun_pid || status=$?
  ((status != 0)) || fail "status 0"
  ((SECONDS - begin <= 8)) || fail "ended after $((SECONDS - begin)) s"
  holds '^error: the run was interrupted while its processes started' stderr
}

test_killed_rank() {
  breaks killed KILL 1
  ((status != 0)) || fail "status 0"
  holds 'error: .*(rank [02] in|rank [02] failed in)' stderr
  holds 'no answer from rank 1' stderr
  is_partial_trace killed.json
}

# Where the launcher does not end the others they do it themselves.
test_killed_rank_without_help() {
  breaks killed_alone KILL 1 --enable-recovery
  holds 'error: rank [02] failed in [0-9A-Z_]+: nothing came from rank 1 for [0-9A-Z_]+ within 2 s' stderr
  is_partial_trace killed_alone.json
}

test_rank_that_stops_answering() {
  breaks stopped STOP 1
  ((status != 0)) || fail "status 0"
  holds 'error: rank [02] failed in [0-9A-Z_]+: nothing came from rank 1 for [0-9A-Z_]+ within 2 s' stderr
  holds 'no answer from rank 1' stderr
  is_partial_trace stopped.json
}

# The last thing that rank 0 writes is read when rank 1 has done its work, but does not come to the end of MPI any more.
test_rank_that_stops_at_the_end() {
  command=(-n 2 "$dualpipe_run" --schedule 1f1b --ranks 2 "${tiny[@]}" --timeout 2s --calibrate calibrated --trace last)
  checks=$((checks + 1))
  mkfifo last
  "$mpirun" "${command[@]}" >stdout 2>stderr &
  local mpirun_pid=$! processes
  until [[ -e calibrated ]] || ! kill -0 $mpirun_pid; do sleep 0.1; done
  sleep 0.5
  mapfile -t processes < <(pgrep -P $mpirun_pid -x dualpipe-run | sort -n)
  kill -STOP "${processes[1]}"
  timeout 10 cat last >trace || fail "no trace"
  local begin=$SECONDS
  while is_running "${processes[0]}" && ((SECONDS - begin < 20)); do sleep 0.2; done
  ((SECONDS - begin < 20)) || fail "rank 0 waits for good"
  kill -KILL "${processes[1]}" 2>/dev/null || true
  wait $mpirun_pid || true
}

test_check
test_several_ranks_in_a_process
test_step_of_one_process
test_save
test_slow_save
test_calibration
test_bad_input
test_files_of_several_machines
test_threads
test_save_that_is_not_finite
test_loss_that_is_no_number
test_interrupt
test_hangup
test_process_that_does_not_start
test_interrupt_at_the_start
test_killed_rank
test_killed_rank_without_help
test_rank_that_stops_answering
test_rank_that_stops_at_the_end

echo "$checks commands, $failures failures"
((failures == 0))
