#!/usr/bin/env bash
# How runs of dualpipe-run end: with a fault, a full disk, a signal, nobody who reads; what they leave, and how the next
# run goes on from there.
#
#   tests/tools/dualpipe_run_ends_test.sh build/release/bin/dualpipe-run build/release/bin/dualpipe-sim
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/run_checks.sh"

test_resume() {
  local whole_model=(--microbatches 4 --layers 4 --hidden 8 --sequence 4 --batch 1 --warmup 0)
  local one_chain=("${whole_model[@]}" --clip 0.1)
  succeeds 'median of 6' --schedule 1f1b --ranks 2 "${one_chain[@]}" --steps 6 --save whole
  succeeds 'median of 3' --schedule 1f1b --ranks 2 "${one_chain[@]}" --steps 3 --save legs
  succeeds '^ +3 ' --schedule dualpipev --ranks 1 "${one_chain[@]}" --steps 1 --resume legs --save legs
  succeeds 'check +passed: losses bitwise equal, gradients bitwise equal' --schedule zb1p --ranks 4 "${one_chain[@]}" \
    --steps 2 --resume legs --save legs --save-every 1 --check
  same whole legs
  succeeds '"first_step": 6,' --schedule dualpipe --ranks 2 "${whole_model[@]}" --eval --resume legs --json -
  fails 1 "legs: its parameters are float32, but this run's are float64; use --dtype float32 or bfloat16" --schedule 1f1b \
    --ranks 2 "${one_chain[@]}" --dtype float64 --resume legs
  succeeds '^ +6 ' --schedule 1f1b --ranks 2 "${one_chain[@]}" --dtype bfloat16 --resume legs
  head -c 1000 legs >cut
  fails 1 'cut: .*cut short' --schedule 1f1b --ranks 2 "${one_chain[@]}" --resume cut
}

test_full_disk() {
  succeeds 'median of 2' "${shape[@]}" --save saved
  cp saved before
  after_steps=1 fails 1 'cannot write /dev/full: No space left' "${shape[@]}" --save /dev/full
  (
    ulimit -f 4  # KiB
    "$dualpipe_run" "${shape[@]}" --save saved >stdout 2>stderr && exit 1
    grep -q '^error: cannot write saved: File too large' stderr
  ) || fail "a full disk"
  checks=$((checks + 1))
  same saved before
  [[ -z $(compgen -G 'saved?*') ]] || fail "left a file behind"
}

# is_left_by_kill PID FILE ARGUMENT...: what a kill of the process leaves of the FILE that it saves again and again (see
# sim/report/output_file.h): the last that was complete, and perhaps the next one, complete as well, under the name that
# it has before it takes the place of the last. Runs with ARGUMENT... go on with either.
is_left_by_kill() {
  local part=$2.$1.part left file
  left=$(compgen -G "$2?*" || true)
  [[ -z $left || $left == "$part" ]] || fail "left more behind than $part: $left"
  for file in "$2" $left; do succeeds 'median of 1' "${@:3}" --warmup 0 --steps 1 --resume "$file"; done
  rm -f "$2"?*
}

# Saves take most of the time of such a run, so that some of the kills come in the middle of one.
test_killed_while_saving() {
  local large=(--schedule 1f1b --ranks 2 --microbatches 2 --model mlp --hidden 128 --batch 1)
  local delay pid
  for delay in 0.01 0.02 0.03 0.05 0.08; do
    rm -f saved
    command=("${large[@]}" --save saved, killed)
    checks=$((checks + 1))
    "$dualpipe_run" "${large[@]}" --steps 100000 --save saved --save-every 1 >stdout 2>stderr &
    pid=$!
    until [[ -e saved ]] || ! kill -0 $pid; do sleep 0.01; done
    sleep $delay
    kill -KILL $pid
    wait $pid 2>/dev/null || true
    is_left_by_kill $pid saved "${large[@]}"
  done
  cp saved "saved.$pid.part"  # as after a kill before the move, for which the ones above need luck
  is_left_by_kill $pid saved "${large[@]}"
}

test_failures() {
  run "${tiny_mlp[@]}" --optimizer sgd --learning-rate 1e30 --trace trace --json figures --save saved
  ((status == 1)) || fail "status $status, not 1"
  grep -qE '^error: rank 1, 1F[0-9]: the loss is' stderr || fail "stderr lacks the loss that is no number"
  # What was done until then is there.
  grep -qE '^ +0 +[0-9.]+ +warm-up$' stdout || fail "stdout lacks the first step"
  holds '"failure": "rank 1, 1F' figures
  if grep -q '^saved after step 0' stdout; then
    [[ -s saved ]] || fail "has not saved what it says"
  else
    grep -q '^not saved: .* has -\?\(nan\|inf\)' stdout || fail "does not say that it has not saved"
  fi
  reads_back trace  # the other rank may have come to the end of the step
  fails 1 'rank 1.*1F0.*rank 0' "${timed[@]}" --forward 2s --timeout 100ms --trace trace
  is_trace trace
}

# An error before the run, and one after it, when it turns out that the result cannot be written.
test_output_errors() {
  local long=("${timed[@]}" --forward 20ms --steps 1000)
  for option in --trace --json --calibrate; do
    fails 1 'no-such-folder/file.*No such' "${long[@]}" $option no-such-folder/file
    fails 1 'is a folder' "${long[@]}" $option .
    after_steps=1 fails 1 '/dev/full: No space' "${shape[@]}" $option /dev/full
  done
  output=/dev/full fails 1 'standard output: No space' "${shape[@]}"
  after_steps=1 fails 1 '/dev/full: No space' "${shape[@]}" --compare --trace /dev/full --json json
}

# More tokens than any address space has room for.
test_out_of_memory() {
  fails 1 "rank 0 failed in 0F0: .*can't allocate memory" --schedule 1f1b --ranks 2 --microbatches 4 --hidden 8 \
    --sequence 1048576 --batch 1073741824 --trace trace
  is_trace trace
  local large=(--schedule 1f1b --ranks 2 --microbatches 4 --model mlp --hidden 16777216)
  fails 1 "rank [01] failed: .*can't allocate memory" "${large[@]}"
  [[ $(wc -l <stderr) == 1 ]] || fail "more than one line"
  fails 1 "can't allocate memory" "${large[@]}" --check
  [[ $(wc -l <stderr) == 1 ]] || fail "more than one line"
}

# reads_back FILE: it is valid, and a run of the schedule.
reads_back() {
  if command -v python3 >/dev/null; then python3 -m json.tool "$1" >/dev/null 2>stderr || fail "$1 is no JSON"; fi
  "$dualpipe_sim" simulate 1f1b --ranks 2 --microbatches 4 --trace planned >/dev/null
  "$dualpipe_sim" compare planned "$1" >stdout 2>stderr || fail "$1 is not read back"
}

# is_trace FILE: it reads back, and holds a part of what the schedule plans.
is_trace() {
  reads_back "$1"
  holds '^planned has [0-9]+ ops? that the other run did not come to'
}

# A line comes as its step ends, also into a pipe: long before the end of the run. What ended it, and what it has done,
# are in the files.
test_steps_as_they_end() {
  command=(--save saved --json figures, interrupted after some steps)
  checks=$((checks + 1))
  rm -f saved figures steps
  mkfifo steps
  "$dualpipe_run" "${tiny_mlp[@]}" --warmup 1 --steps 100000000 --save saved --json figures >steps 2>stderr &
  local pid=$! line
  exec 3<steps
  : >stdout
  for _ in 1 2 3 4 5 6; do
    read -r -t 30 line <&3 || fail "no line within 30 s"
    echo "$line" >>stdout
  done
  grep -qE '^step +loss +time$' stdout || fail "has no head"
  grep -qE '^1 +[0-9.]+ +[0-9.]+ (ns|µs|ms|s)$' stdout || fail "has no measured step"
  kill -INT $pid
  cat <&3 >>stdout
  exec 3<&-
  status=0
  wait $pid || status=$?
  ((status == 1)) || fail "status $status, not 1"
  grep -q '^error: .*interrupted' stderr || fail "stderr lacks: interrupted"
  holds '"failure": ".*interrupted' figures
  holds '"first_step": 0' figures
  local last
  last=$(sed -n 's/^saved after step \([0-9]*\), the last whole one$/\1/p' stdout)
  [[ -n $last && -s saved ]] || { fail "was not saved"; return; }
  succeeds "^ +$((last + 1)) " "${tiny_mlp[@]}" --warmup 0 --steps 1 --resume saved
}

# Without a warm-up, whose steps run I and W of the passes by themselves now and then, as the plan does not.
test_interrupt() {
  local signal
  # A terminal that closes sends one SIGHUP, and its shell another: that is no wish for an end at once.
  for signal in INT TERM 'HUP HUP'; do interrupts $signal; done
}

# interrupts SIGNAL...: one after the other, in the midst of a run. Ops are long: so it is in the midst of a step, too.
interrupts() {
  command=(--model timed --trace partial, interrupted by "$*")
  checks=$((checks + 1))
  rm -f partial
  "$dualpipe_run" "${timed[@]}" --forward 200ms --warmup 0 --steps 1000 --trace partial >stdout 2>stderr &
  local pid=$! signal
  until_busy $pid
  for signal in "$@"; do
    kill "-$signal" $pid || true  # it may be gone, where it should not
    sleep 0.01
  done
  status=0
  wait $pid || status=$?
  ((status == 1)) || { fail "status $status, not 1"; return; }
  grep -q '^error: .*interrupted' stderr || fail "stderr lacks: interrupted"
  holds '"0F0"' partial
  [[ -z $(compgen -G '*.part') ]] || fail "left a file behind"
  is_trace partial
}

test_nohup() {
  command=(--model timed, nohup)
  checks=$((checks + 1))
  (trap '' HUP; exec "$dualpipe_run" "${timed[@]}" --forward 20ms --warmup 0 --steps 4) >stdout 2>stderr &
  local pid=$!
  until_busy $pid
  kill -HUP $pid
  status=0
  wait $pid || status=$?
  ((status == 0)) || fail "status $status, not 0"
}

# Nobody reads the text: an end without a word, as of any tool; what goes to files is there by then.
test_closed_pipe() {
  command=(--trace whole, piped into nothing)
  checks=$((checks + 1))
  rm -f status
  { "$dualpipe_run" "${timed[@]}" --steps 1 --trace whole 2>stderr || echo $? >status; } | true || true
  [[ $(cat status) == $((128 + 13)) ]] || fail "status $(cat status), not 141"
  [[ ! -s stderr ]] || fail "stderr is not empty"
  "$dualpipe_sim" compare whole whole >/dev/null 2>stderr || fail "the trace is not whole"
}

# until_idle PID: until it has run no more for a while.
until_idle() {
  local before=- now=
  until [[ $now == "$before" ]]; do
    before=$now
    sleep 0.5
    now=$(cut -d ' ' -f 14,15 "/proc/$1/stat")  # its processor time
  done
}

# What it is at cannot be broken off: nobody reads the pipe that it saves to.
test_second_interrupt() {
  command=(--save pipe, interrupted twice)
  checks=$((checks + 1))
  mkfifo pipe
  "$dualpipe_run" "${shape[@]}" --save pipe >stdout 2>stderr &
  local pid=$!
  until_busy $pid
  until_idle $pid
  kill -INT $pid
  sleep 0.3
  kill -INT $pid
  { sleep 5; kill -KILL $pid; } 2>/dev/null &
  local guard=$!
  status=0
  wait $pid 2>/dev/null || status=$?
  kill $guard 2>/dev/null || true
  ((status == 128 + 2)) || fail "status $status, not 130"
}

test_resume
test_full_disk
test_killed_while_saving
test_failures
test_output_errors
test_out_of_memory
test_interrupt
test_steps_as_they_end
test_nohup
test_closed_pipe
test_second_interrupt

echo "$checks commands, $failures failures"
((failures == 0))
