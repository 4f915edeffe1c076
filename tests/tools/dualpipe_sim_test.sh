#!/usr/bin/env bash
# dualpipe-sim as its users meet it: what it prints, where, and its exit status (0 done, 1 bad input, 2 wrong usage).
#
#   tests/tools/dualpipe_sim_test.sh build/release/bin/dualpipe-sim
set -euo pipefail

dualpipe_sim=$(realpath "$1")
goldens=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../goldens")
tool=$dualpipe_sim
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

# A CSV without what carries no meaning: empty cells, and how lines end.
cells() { tr -d '\r' <"$1" | sed -E 's/,+/,/g; s/^,//; s/,$//'; }

# generates GOLDEN ARGUMENT...: `convert ARGUMENT...` writes the golden's cells.
generates() {
  local golden=$1
  shift
  succeeds . convert "$@" --to csv
  diff <(cells "$golden") <(cells stdout) >/dev/null || fail "differs from $golden"
}

# holds JSON: stdout, white space aside, contains it.
holds() { [[ $(tr -d ' \n' <stdout) == *"$1"* ]] || fail "stdout lacks: $1"; }

test_help() {
  succeeds 'table' --help
  succeeds '^[0-9]+\.[0-9]+\.[0-9]+$' --version
  for subcommand in table simulate schedules validate convert compare; do
    succeeds "dualpipe-sim $subcommand" $subcommand --help  # its examples
  done
}

test_usage() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  fails 2 'subcommand'
  fails 2 'no-such-option' --no-such-option
  fails 2 'no-such-subcommand' no-such-subcommand
  fails 2 'no-such-option' simulate dualpipe --no-such-option
  fails 2 'SCHEDULE' simulate
  fails 2 'another' simulate "${shape[@]}" another
  fails 2 '--costs.*--forward' simulate "${shape[@]}" --costs costs.json --forward 1
  fails 2 '--to' convert "${shape[@]}"
  fails 1 'xml' convert "${shape[@]}" --to xml
  fails 2 '--lower.*--strip|--strip.*--lower' convert "${shape[@]}" --to csv --lower --strip
  fails 1 'xml' table --format xml
  fails 1 'xml' schedules --format xml
  fails 1 'pairs' table --equal pairs
  fails 2 '--trace' simulate "${shape[@]}" --trace-ranks 0 1
  fails 2 '--trace' simulate "${shape[@]}" --trace-window 0 1ms
  fails 2 '--window.*--gantt.*--svg' simulate "${shape[@]}" --window 0 1ms
  fails 2 '--window.*--gantt.*--svg' simulate "${shape[@]}" --window 0 1ms --trace t
  for option in '--svg-width 800' '--title mine' --svg-memory; do
    fails 2 '--svg' simulate "${shape[@]}" $option
    fails 2 '--svg' simulate "${shape[@]}" --gantt - $option
  done
}

test_table() {
  succeeds 'DualPipeV|dualpipev' table
  for name in 1f1b zb1p dualpipe dualpipev; do
    grep -qiE "\b$name\b" stdout || fail "stdout lacks $name"
  done
  cp stdout first
  succeeds . table
  cmp -s first stdout || fail "differs from one run to the next"
}

test_table_formats() {
  for subcommand in table schedules; do
    succeeds '^\|' $subcommand --format markdown
    succeeds '^[^,]+,' $subcommand --format csv
  done
  succeeds '^[[{]' table --format json
  check_braces
  succeeds 'interleaved' table --schedules 1f1b,interleaved --chunks 2 --equal stages --ranks 4 --microbatches 8
}

# One model on the same ranks: which schedule, and does it fit?
test_table_of_a_job() {
  succeeds '^one model on 4 ranks, 8 or 16 micro-batches, 6 GB per rank$' table -p 4 -m 8,16 --memory-limit 6GB \
    -f 1,2,2,3 -b 2,4,4,6 -w 1,2,2,3 --activation-bytes 1GB --tokens 4096 --flops 1e12,1e14 --sort memory
  for text in '^\* +[a-z0-9-]+ .* yes' 'no, [0-9.]+ GB over' 'tokens/s' 'of peak' 'imbalance'; do
    grep -qE "$text" stdout || fail "stdout lacks: $text"
  done
  "$dualpipe_sim" convert gpipe --ranks 4 --microbatches 8 --to csv -o mine.csv
  succeeds ' mine.csv ' table -p 4 -m 8 --schedules 1f1b,mine.csv
  succeeds ' full ' table -p 4 -m 8 --recompute-time 1ms --activation-bytes 1GB --recompute-activation-bytes 100MB
  succeeds ' 95% ' table -p 4 -m 8 --jitter 0.1 --seeds 20
  [[ $(COLUMNS=80 "$dualpipe_sim" table | wc -L) -le 80 ]] || fail "wider than 80 columns"
  fails 2 '--jitter' table --seeds 20
  fails 1 '--activation-bytes' table --memory-limit 6GB
  fails 1 'recompute_activation_bytes' table --recompute none
  fails 1 'most' table --recompute most --recompute-time 1ms
  fails 1 'two numbers' table --flops 1e12
  fails 1 '--tokens' table --tokens 0
  fails 1 '1f1bb' table --schedules 1f1bb
  fails 1 'must be even' table --schedules dualpipe -p 3
  fails 1 'worst' table --sort worst
  fails 1 '--width' table --width 3
}

# What is opened is closed: enough to see that a JSON text is all there.
check_braces() {
  [[ $(tr -dc '{[' <stdout | wc -c) == $(tr -dc '}]' <stdout | wc -c) ]] || fail "braces do not match"
}

# Automatic schedules: planned for costs and a memory limit, which another schedule keeps or is refused.
test_automatic() {
  local plan=(--ranks 8 --microbatches 24 --forward 18522ns --backward 27423ns --weight 9337ns --latency 601ns
    --activation-bytes 1000 --weight-stash-bytes 366)
  succeeds '^7F0,7I0,' convert zb-auto "${plan[@]}" --memory-limit 8000B --to csv
  cp stdout first
  succeeds . convert zb-auto "${plan[@]}" --memory-limit 8microbatches --to csv
  cmp -s first stdout || fail "8 micro-batches of 1000 bytes are not 8000 bytes"
  succeeds . convert zb-auto "${plan[@]}" --to csv
  ! cmp -s first stdout || fail "the limit changes nothing"
  succeeds '"bubble_rate_span": 0.158[45]' simulate zb-auto "${plan[@]}" --memory-limit 8000B --json -
  [[ $(grep -oE '"peak_memory_bytes": *[0-9]+' stdout | grep -oE '[0-9]+$' | sort -n | tail -1) == 8000 ]] ||
    fail "the largest peak is not 8000 bytes"
  succeeds 'stream: completes' validate zbv-auto "${plan[@]}" --memory-limit 20KB
  fails 1 'the least limit that works is 1000 bytes$' convert zb-auto "${plan[@]}" --memory-limit 999B --to csv
  fails 1 'the least limit that works is 8 micro-batches$' validate zbv-auto "${plan[@]}" --memory-limit 7microbatches
  fails 1 'v-half.*the least limit that works is 10000 bytes$' simulate v-half "${plan[@]}" --memory-limit 9999
  fails 1 'the least limit that works is 24000 bytes$' convert gpipe "${plan[@]}" --memory-limit 9999 --to csv
  fails 1 '--memory-limit.*7.5' convert zb-auto "${plan[@]}" --memory-limit 7.5x --to csv
  fails 2 '--forward: .*does not depend on costs' convert 1f1b --ranks 4 --microbatches 8 --forward 2ms --to csv
  fails 2 '--latency: .*does not depend on costs' validate first --latency 2ms

  # A file of the zero-bubble authors, made for other costs.
  succeeds . convert zbv-auto --ranks 4 --microbatches 12 --forward 1000ns --backward 2000ns --weight 800ns --latency 50ns --to csv
  tr -d '\r' <"$goldens/zero_bubble/zbv_4ranks_12mb_f1000i1200w800c50.csv" | cmp -s - stdout || fail "not the authors' order"
}

test_schedules() {
  succeeds . schedules
  for name in gpipe 1f1b interleaved looped-bfs zb1p zb-h2 dualpipe dualpipev v-half v-min zb-auto zbv-auto; do
    grep -qE "(^|[^[:alnum:]-])$name([^[:alnum:]-]|\$)" stdout || fail "stdout lacks $name"
  done
}

# 1F1B: makespan (M + P - 1)(F + B) = 11 * 3 ms; rank r holds P - r activations.
test_simulate() {
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --forward 1 --backward 2 --weight 1 --json -
  for key in schedule ranks stages chains microbatches makespan_ns span_ns bubble_rate_makespan bubble_rate_span \
    per_rank rank busy_ns idle_ns peak_activations peak_memory_bytes parameters; do
    holds "\"$key\":"
  done
  holds '"makespan_ns":33000000'
  check_braces
  [[ $(grep -oE '"peak_activations": *[0-9]+' stdout | grep -oE '[0-9]+' | tr '\n' ' ') == "4 3 2 1 " ]] ||
    fail "peak activations are not 4 3 2 1"

  # Durations in any unit are the same.
  cp stdout first
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --forward 1000us --backward 2ms --weight 1000000ns --json -
  cmp -s first stdout || fail "units change the result"

  # DualPipe counts both directions: PP+1 activations, and the parameters of two stages, on every rank.
  succeeds . simulate dualpipe --ranks 8 --microbatches 20 --json -
  holds '"microbatches":20'
  [[ $(grep -oE '"peak_activations": *9\b' stdout | wc -l) == 8 ]] || fail "not 9 activations on all of 8 ranks"
  [[ $(grep -oE '"parameters": *2\b' stdout | wc -l) == 8 ]] || fail "not 2 stages on all of 8 ranks"
}

test_costs() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  # The same costs, written both ways, for a schedule that has all that they are of.
  local all=(dualpipe --ranks 4 --microbatches 8)
  succeeds . simulate "${all[@]}" --forward 1us --backward 3us --weight 1us --recompute-time 900ns \
    --overlapped 3500ns --activation-bytes 1KiB --weight-stash-bytes 16 --workspace-bytes 512 --bytes 4096 \
    --parameter-bytes 2MB --gradient-bytes 2MB --optimizer-bytes 8MB \
    --comm links --latency 500ns --bandwidth 50GB/s --launch 7ns --speed 1,1,0.5,1 --jitter 0.05 --seed 7 \
    --release-early --json -
  cp stdout first
  cat >costs.json <<'JSON'
{
  "format": "dualpipe-costs", "version": 1,
  "stages": [{"forward_ns": 1000, "backward_ns": 3000, "input_gradient_ns": 2000, "weight_gradient_ns": 1000,
              "recompute_ns": 900, "overlapped_ns": 3500,
              "activation_bytes": 1024, "weight_stash_bytes": 16, "message_bytes": 4096,
              "forward_workspace_bytes": 512, "backward_workspace_bytes": 512, "input_gradient_workspace_bytes": 512,
              "weight_gradient_workspace_bytes": 512,
              "parameter_bytes": 2000000, "gradient_bytes": 2000000, "optimizer_bytes": 8000000}],
  "communication": "links", "latency_ns": 500, "bandwidth_bytes_per_s": 5e10, "launch_ns": 7,
  "speed": [1, 1, 0.5, 1], "jitter": 0.05, "seed": 7, "release_early": true
}
JSON
  succeeds . simulate "${all[@]}" --costs costs.json --json -
  cmp -s first stdout || fail "a file of costs gives another result than the same options"

  # B of 2 ms and a recomputed 1 ms: 4 ranks, 8 micro-batches of F + B, and the bubble of 3 more.
  succeeds '"makespan_ns": 44000000\b' simulate "${shape[@]}" --recompute-time 1ms --json -

  # What is not of stages may be given besides the file, and wins.
  succeeds . simulate "${all[@]}" --costs costs.json --seed 8 --json -
  ! cmp -s first stdout || fail "--seed changes nothing"

  # One value for all stages, or one for each.
  succeeds . simulate "${shape[@]}" --forward 1ms,1ms,1ms,1ms --csv -
  cp stdout first
  succeeds . simulate "${shape[@]}" --forward 1 --csv -
  cmp -s first stdout || fail "a list of equal values differs from one value"
  fails 1 '3 stages.*has 4' simulate "${shape[@]}" --forward 1,2,3
  fails 1 '--backward: 3 values' simulate "${shape[@]}" --forward 1,2 --backward 1,2,3
  fails 1 '2 ranks.*has 4' simulate "${shape[@]}" --speed 1,2
  fails 1 '--weight' simulate "${shape[@]}" --weight 3
}

# A model of four parts with F of 1, 1, 2 and 4 ms, and B of twice as much. On 2 ranks it is cut before the last part,
# and M micro-batches take (M + 1)(F + B).
test_parts() {
  local parts=()
  for ms in 1 1 2 4; do
    parts+=('{"forward_ns": '${ms}e6', "backward_ns": '$((2 * ms))e6', "input_gradient_ns": '${ms}e6', "weight_gradient_ns": '${ms}e6'}')
  done
  (
    IFS=,
    echo '{"format": "dualpipe-costs", "version": 1, "parts": ['"${parts[*]}"']}'
  ) >parts.json
  succeeds '"makespan_ns": 108000000\b' simulate 1f1b --ranks 2 --microbatches 8 --costs parts.json --json -
  succeeds . simulate zb1p --ranks 4 --microbatches 8 --costs parts.json
  succeeds . simulate interleaved --ranks 4 --microbatches 8 --chunks 2 --costs parts.json
  succeeds . table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe,1f1b
  holds 'F&B=F+B(notmeasured)'
  succeeds . table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe,1f1b --format json
  [[ $(grep -c '"overlapped_is_assumed": true' stdout) == 1 ]] || fail "not dualpipe's F&B alone is assumed"
  succeeds 'F&B was not measured' table --costs parts.json --ranks 4 --microbatches 8 --schedules dualpipe --format csv
  succeeds . table --ranks 4 --microbatches 8 --schedules dualpipe --overlapped 3ms
  ! grep 'not measured' stdout || fail "what is given counts as measured"

  sed 's/"parts"/"cut": [1, 3], "parts"/' parts.json >cut.json
  # The first rank waits for the second, which works all the time but for the first F and the last B.
  succeeds '"makespan_ns": 171000000\b' simulate 1f1b --ranks 2 --microbatches 8 --costs cut.json --json -
  fails 1 '^error: the model is cut for 2 stages, but a chain of the schedule has 4' simulate 1f1b --ranks 4 \
    --microbatches 8 --costs cut.json
  sed 's/"parts"/"cut": [1, 2], "parts"/' parts.json >cut.json
  fails 1 '^error: cut.json: cut: it has 3 parts, but the model has 4' simulate 1f1b --ranks 2 --microbatches 8 \
    --costs cut.json
}

test_files() {
  succeeds . simulate dualpipe --ranks 4 --microbatches 8 --trace trace.json --svg gantt.svg --json result.json --csv ops.csv
  for file in trace.json gantt.svg result.json ops.csv; do
    [[ -s $file ]] || fail "$file is missing or empty"
  done
  grep -q '"traceEvents"' trace.json || fail "trace.json is not a Chrome trace"
  grep -q '<svg' gantt.svg || fail "gantt.svg is not an SVG file"

  # Output that is not a terminal has no colour. --gantt without a file is stdout.
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --gantt
  ! grep -q $'\033' stdout || fail "colours in a file"
  cp stdout first
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --gantt -
  cmp -s first stdout || fail "--gantt and --gantt - differ"
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --gantt --width 40
  ! cmp -s first stdout || fail "--width changes nothing"

  # Without colour, and in a locale that has ASCII alone, a letter for each column.
  LC_ALL=C succeeds . simulate dualpipe --ranks 4 --microbatches 8 --gantt - --width 60
  [[ $(grep -cE '^rank [0-3]  [FBIW&.-]{20,52}$' stdout) == 4 ]] || fail "not a letter for each column"
  for locale in C.UTF-8 C.utf8; do
    LC_ALL=$locale succeeds 'F0' simulate dualpipe --ranks 4 --microbatches 8 --gantt -
  done

  # A part of the time, alike in both charts and in the trace.
  shape=(1f1b --ranks 4 --microbatches 8)
  succeeds '^time +\|10 ms' simulate "${shape[@]}" --gantt - --window 10ms 20ms --svg part.svg
  grep -q 'from 10 ms to 20 ms' part.svg || fail "--window does not reach the picture"
  succeeds . simulate "${shape[@]}" --trace part.json --trace-window 10ms 20ms
  grep -q '"cat":"compute"' part.json || fail "nothing is left in the trace"
  ! grep -q '"ts":0.000,"dur":1000.000,"cat":"compute"' part.json || fail "--trace-window leaves what was before"
  succeeds . simulate "${shape[@]}" --svg wide.svg --svg-width 1500 --title 'mine & yours' --svg-memory
  grep -q ' width="1500"' wide.svg || fail "--svg-width changes nothing"
  grep -q '>mine &amp; yours<' wide.svg || fail "--title changes nothing"
  grep -q '>memory, full height: 4 activations<' wide.svg || fail "--svg-memory changes nothing"

  # A file that is there is replaced, a link stays one.
  echo old >result.json
  ln -s result.json link.json
  succeeds . simulate 1f1b --ranks 4 --microbatches 8 --json link.json
  [[ -L link.json ]] && grep -q makespan_ns result.json || fail "does not write through a link"

  # Standard output can hold one.
  fails 2 '^error: --json and --csv: only one' simulate 1f1b --ranks 4 --microbatches 8 --json - --csv -
  fails 2 '^error: --trace and --gantt: only one' simulate 1f1b --ranks 4 --microbatches 8 --trace --gantt
}

# Results stay apart from each other, however their file is spelled and whatever links lead there.
test_results_apart() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  mkdir folder
  echo kept >there
  ln -s there symlink
  ln there hardlink
  ln -s to_come dangling
  ln -s folder linked
  for pair in 'new ./new' 'new folder/../new' "new $PWD/new" 'folder/new linked/new' 'dangling to_come' 'new NEW' \
    'there there' 'there symlink' 'there hardlink' 'hardlink symlink'; do
    fails 2 '^error: --trace and --json: both would write' simulate "${shape[@]}" --trace ${pair% *} --json ${pair#* }
    fails 2 '^error: --svg and --gantt: both would write' simulate "${shape[@]}" --svg ${pair#* } --gantt ${pair% *}
  done
  [[ $(cat there) == kept && ! -e new && ! -e to_come ]] || fail "has written a file that it refused"
  fails 2 '^error: --trace and --csv: both' simulate "${shape[@]}" --trace - --csv /dev/stdout
  output=out fails 2 '^error: --json and standard output: both would write out' simulate "${shape[@]}" --json out
  rm out
  touch case Case
  [[ case -ef Case ]] || succeeds . simulate "${shape[@]}" --trace case --json Case
  succeeds . simulate "${shape[@]}" --trace one --json other
  succeeds . simulate "${shape[@]}" --trace /dev/null --json /dev/null
  rm -r folder linked
}

# And from what is read, but for its new form.
test_results_over_input() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  printf '0F0,0B0\n1F0,1B0\n' >schedule.csv
  cp schedule.csv before.csv
  ln -s schedule.csv link.csv
  for file in schedule.csv ./schedule.csv link.csv; do
    fails 2 '^error: --json: it would write over schedule.csv, which SCHEDULE reads' simulate schedule.csv --json $file
  done
  fails 2 '^error: --svg: it would write over schedule.csv, which SCHEDULE' simulate - --svg schedule.csv <schedule.csv
  cmp -s before.csv schedule.csv || fail "has changed what it refused to write"
  echo '{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": 1, "backward_ns": 2,
    "input_gradient_ns": 1, "weight_gradient_ns": 1}]}' >costs.json
  fails 2 '^error: --json: .*costs.json, which --costs reads' simulate "${shape[@]}" --costs costs.json --json costs.json
  trace planned "${shape[@]}"
  trace measured "${shape[@]}" --forward 2ms
  fails 2 '^error: --json: it would write over planned, which A reads' compare planned measured --json planned
  fails 2 '^error: --json: it would write over measured, which B reads' compare planned - --json measured <measured
  touch 1f1b  # a file, but the name is the catalog's
  succeeds . simulate "${shape[@]}" --json 1f1b

  run convert schedule.csv --lower --to csv --output schedule.csv
  [[ $status == 0 && $(cat schedule.csv) == 0F0,0SEND_F0,0RECV_B0,0B0* ]] || fail "does not convert in place"
  rm 1f1b schedule.csv
}

# As a service has it: what is read and what is written are two directions of one socket.
test_one_socket() {
  printf '0F0,0B0\n' >schedule.csv
  python3 -c '
import socket, subprocess, sys
ours, theirs = socket.socketpair()
ours.sendall(open("schedule.csv", "rb").read())
ours.shutdown(socket.SHUT_WR)
subprocess.run([sys.argv[1], "simulate", "-"], stdin=theirs, stdout=theirs, check=True)
theirs.close()
sys.stdout.write(ours.makefile().read())' "$tool" >stdout 2>stderr || fail "fails between the ends of a socket"
  grep -q '^makespan' stdout || fail "has written nothing into the socket"
}

test_empty_names() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  for option in --trace --svg --json --csv --gantt --costs --forward --comm; do
    fails 2 "^error: $option: the value is empty" simulate "${shape[@]}" $option ''
    fails 2 "^error: $option: the value is empty" simulate "${shape[@]}" $option= --release-early
  done
  fails 2 '^error: --output: the value is empty' convert "${shape[@]}" --to csv --output ''
  fails 2 'empty' simulate ''
  fails 2 'empty' compare ''
}

# Names of any bytes, of files and in them: what is written can be read, and a terminal is told nothing.
test_hostile_names() {
  local names=(escape$'\e[31m' csi$'\xc2\x9b31m' latin$'\xfc' $'\xff\xfe' none$'\xef\xbf\xbf' $'\xef\xbf\xbe' \
    surrogate$'\xed\xa0\x80' cut$'\xe2\x82' $'\x01\x7f' two$'\n'lines turned$'\xe2\x80\xae' '&<">' $'\xce\xbc\xe6\x95\xb0')
  for name in "${names[@]}"; do
    printf '0F0,0B0\n1F0,1B0\n' >"$name.csv"
    succeeds . simulate "$name.csv" --svg picture --json figures --trace trace
    is_quiet stdout
    is_xml picture
    succeeds . validate "$name.csv"
    is_quiet stdout
    succeeds . convert "$name.csv" --to json
    is_quiet stdout
    cp stdout named.json
    succeeds . simulate named.json --svg picture --json -
    is_quiet stdout
    is_json stdout
    is_xml picture
    is_json figures
    succeeds . compare trace trace
    cp trace "$name"
    succeeds . compare "$name" "$name"
    is_quiet stdout
    rm "$name.csv" "$name"
    fails 1 'cannot be opened' simulate "$name.csv"
    is_quiet stderr
    fails 2 . simulate 1f1b --ranks 2 --microbatches 2 "$name"
    is_quiet stderr
  done
  for escape in '\u001b[31m' '\u009b31m' '\uffff' '\u202e'; do
    printf '{"format": "dualpipe-schedule", "version": 1, "name": "%s", "ranks": 1, "micro_batches": 1, "chains": [[0]],
      "weights": [0], "ops": [["0F0"]]}' "$escape" >named.json
    succeeds . simulate named.json --svg picture
    is_quiet stdout
    is_xml picture
    succeeds . convert named.json --to json
    is_quiet stdout
    grep -qF "\"$escape\"" stdout || fail "has lost the name $escape"
  done
}

# is_quiet FILE: of UTF-8, in which lines end, and nothing else is a control character.
is_quiet() {
  iconv -f utf-8 -t utf-32le "$1" >/dev/null 2>&1 || fail "$1 is no UTF-8"
  ! LC_ALL=C grep -qP '[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80\xae' "$1" || fail "$1 has a control character"
}
is_xml() { python3 -c 'import sys, xml.dom.minidom as xml; xml.parse(sys.argv[1])' "$1" || fail "$1 is no XML"; }
is_json() { python3 -c 'import json, sys; json.load(open(sys.argv[1], encoding="utf-8"))' "$1" || fail "$1 is no JSON"; }

test_convert() {
  generates "$goldens/deepseek/dualpipe_8ranks_20mb.csv" dualpipe --ranks 8 --microbatches 20
  generates "$goldens/deepseek/dualpipev_4ranks_10mb.csv" dualpipev --ranks 4 --microbatches 10
  generates "$goldens/pytorch/1f1b_4ranks_8mb.csv" 1f1b --ranks 4 --microbatches 8
  generates "$goldens/pytorch/interleaved_1f1b_4ranks_8mb_v2.csv" interleaved --ranks 4 --microbatches 8 --chunks 2

  # CSV to JSON and back.
  succeeds . convert "$goldens/deepseek/dualpipe_4ranks_8mb.csv" --chains 2 --to json
  cp stdout schedule.json
  generates "$goldens/deepseek/dualpipe_4ranks_8mb.csv" schedule.json

  # Through a pipe, with and without communication.
  for arguments in '' --lower; do
    for format in csv json; do
      succeeds . convert 1f1b --ranks 4 --microbatches 8 --to $format $arguments
      cp stdout piped
      succeeds 'all kept' validate - <piped
      succeeds '"makespan_ns": *33000000' simulate - --json - <piped
      succeeds '^0F0,0F1,' convert - --to csv --strip <piped
    done
  done
  # Blanks before a file's first character, and a byte order mark.
  { printf '\xef\xbb\xbf'; cat schedule.json; } >marked.json
  { printf '\n\n  '; cat schedule.json; } >indented.json
  for file in marked.json indented.json; do
    generates "$goldens/deepseek/dualpipe_4ranks_8mb.csv" $file
  done
}

test_validate() {
  succeeds . validate "$goldens/pytorch/zbv_4ranks_8mb.csv"
  succeeds . validate "$goldens/pytorch/1f1b_4ranks_8mb_comms.csv"
  succeeds . validate "$goldens/deepseek/dualpipe_4ranks_8mb.csv" --chains 2

  printf '0F0,0B0\n1B0,1F0\n' >backward_first.csv
  run validate backward_first.csv
  ((status == 1)) || fail "status $status, not 1"
  grep -q '1B0' stdout stderr || fail "does not name 1B0"
}

test_bad_input() {
  fails 1 'no-such-file.csv' simulate no-such-file.csv
  fails 1 'no-such-schedule.*dualpipe' simulate no-such-schedule --ranks 4 --microbatches 8
  fails 1 'folder' simulate .
  fails 1 '--ranks and --microbatches' simulate 1f1b --ranks 4
  fails 1 'M|micro' simulate dualpipe --ranks 8 --microbatches 3
  fails 1 'micro-batches.*1000000000' simulate 1f1b --ranks 4 --microbatches 1000000000
  fails 1 '65534 ranks.*ops' simulate 1f1b --ranks 65534 --microbatches 16777216
  fails 1 'stage 0: 86400000000000 ns at the speed 1e-06 of rank 0' \
    simulate 1f1b -p 2 -m 2 --forward 86400s --backward 86400s --weight 0 --speed 1e-6,1e-6
  fails 1 'telepathy' simulate 1f1b --ranks 4 --microbatches 8 --comm telepathy

  printf '0F0,0B0\n1F0,what\n' >cell.csv
  fails 1 'cell.csv:2: column 2.*what' simulate cell.csv
  printf '0F0,0B0\n1F0,2BW2\n' >old.csv
  fails 1 'old.csv:2: column 2.*older PyTorch' simulate old.csv --letters new
  printf '{"format": "dualpipe-schedule", "version": 1, "na' >truncated.json
  fails 1 'truncated.json' simulate truncated.json
  : >empty.csv
  fails 1 'empty.csv' simulate empty.csv
  fails 2 'own shape' simulate cell.csv --ranks 4
  fails 2 '--chains' simulate 1f1b --ranks 4 --microbatches 8 --chains 2
  fails 1 '--trace-ranks' simulate 1f1b --ranks 4 --microbatches 8 --trace --trace-ranks 3 4
  fails 1 '--trace-window' simulate 1f1b --ranks 4 --microbatches 8 --trace --trace-window now later
  fails 1 '^error: --trace-window: it begins at 33 ms, and the run ends at 33 ms$' \
    simulate 1f1b --ranks 4 --microbatches 8 --trace --trace-window 33ms 40ms
  fails 1 '^error: --window: it begins at 33 ms, and the run ends at 33 ms$' \
    simulate 1f1b --ranks 4 --microbatches 8 --gantt --window 33ms 40ms
  fails 1 '^error: --window: the end must be after the begin$' \
    simulate 1f1b --ranks 4 --microbatches 8 --svg --window 3ms 3ms
  fails 1 '--window' simulate 1f1b --ranks 4 --microbatches 8 --gantt --window now later
  fails 1 '--width' simulate 1f1b --ranks 4 --microbatches 8 --gantt --width 1
  fails 1 '--svg-width' simulate 1f1b --ranks 4 --microbatches 8 --svg --svg-width 1
}

test_bad_numbers() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  for number in -1 nan inf 1e400 99999999999999999999 123456789012345678901234567890 1x ' '; do
    for option in --forward --latency --bytes --jitter --seed --speed; do
      fails 1 "^error: .*${option#--}" simulate "${shape[@]}" $option "$number"
    done
    fails 1 '^error: --ranks: ' simulate 1f1b --ranks "$number" --microbatches 8
    fails 1 '^error: --microbatches: ' simulate 1f1b --ranks 4 --microbatches "$number"
  done
  for number in -1 nan inf 1e400 1x; do
    fails 1 '^error: --bandwidth: ' simulate "${shape[@]}" --bandwidth $number
  done
  for option in --latency --jitter --forward --comm --costs; do
    fails 2 "$option.*empty" simulate "${shape[@]}" $option ''
  done

  local stage='"backward_ns": 2, "input_gradient_ns": 1, "weight_gradient_ns": 1'
  for number in -1 NaN Infinity 1e400 1.5 99999999999999999999 '"1"' null; do
    printf '{"format": "dualpipe-costs", "version": 1, "stages": [{"forward_ns": %s, %s}]}' "$number" "$stage" >costs.json
    fails 1 'costs.json' simulate "${shape[@]}" --costs costs.json
  done
  for number in -1 1.5 1000000000 99999999999999999999; do
    printf '{"format": "dualpipe-schedule", "version": 1, "name": "x", "ranks": 1, "micro_batches": %s,
             "chains": [[0]], "weights": [0], "ops": [["0F0"]]}' $number >schedule.json
    fails 1 'schedule.json.*micro_batches|micro-batches' simulate schedule.json
  done
}

# What is made to exhaust us.
test_huge_input() {
  local four_gigabytes=4294967296
  truncate -s $four_gigabytes nul.csv
  fails 1 'nul.csv:1: column 1.*128 characters' simulate nul.csv
  fails 1 'nul.csv' simulate 1f1b --ranks 4 --microbatches 8 --costs nul.csv
  rm nul.csv
  for character in a '"' ' ' 9; do
    fails 1 'standard input:1: column 1.*128 characters' simulate - < <(endless "$character")
  done
  fails 1 'standard input' simulate - < <(printf '{"name": "' && endless a)
  fails 1 'standard input' simulate - < <(printf '{' && endless ' ')
  for bracket in '[' '{"ops": [[' '{"ops":'; do
    { yes "$bracket" || true; } 2>/dev/null | head -n 200000 | tr -d '\n' >nested.json
    fails 1 'nested.json' simulate nested.json
    fails 1 'nested.json' simulate 1f1b --ranks 4 --microbatches 8 --costs nested.json
  done
}

# endless CHARACTER: 4 GB of it, or what anybody reads of that.
endless() { yes "$1" 2>/dev/null | tr -d '\n' 2>/dev/null | head -c 4294967296 2>/dev/null || true; }

# What cannot be written is an error, and an error leaves no file behind.
test_output_errors() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  for option in --trace --svg --json --csv --gantt; do
    fails 1 '/dev/full: No space' simulate "${shape[@]}" $option /dev/full
    fails 1 'no/such/folder' simulate "${shape[@]}" $option no/such/folder/file
    fails 1 'folder' simulate "${shape[@]}" $option .
  done
  fails 1 '/dev/full: No space' convert "${shape[@]}" --to csv --output /dev/full
  mkdir locked
  chmod 555 locked
  [[ -w locked ]] || fails 1 'locked/file: Permission denied' simulate "${shape[@]}" --json locked/file

  # A disk that fills up half way.
  printf '#!/usr/bin/env bash\nulimit -f 8\nexec %q "$@"\n' "$dualpipe_sim" >on_small_disk
  chmod +x on_small_disk
  echo kept >there.json
  for file in there.json new.json; do
    tool=./on_small_disk fails 1 "(^| |/)$file: File too large" simulate 1f1b --ranks 32 --microbatches 64 --trace $file
  done
  [[ $(cat there.json) == kept ]] || fail "changed a file it could not write"
  [[ ! -e new.json ]] || fail "left a file behind"

  printf '{' >broken.json
  fails 1 . simulate broken.json --trace left_behind.json --svg left_behind.svg
  [[ -z $(compgen -G 'left_behind*') ]] || fail "left a file behind"

  for arguments in table schedules "simulate ${shape[*]}" "simulate ${shape[*]} --json -" "validate ${shape[*]}" \
    "convert ${shape[*]} --to csv" "convert ${shape[*]} --to json"; do
    output=/dev/full fails 1 'standard output: No space' $arguments
  done
}

# trace FILE ARGUMENT...: writes a trace of `simulate ARGUMENT...`.
trace() {
  local file=$1
  shift
  "$dualpipe_sim" simulate "$@" --trace "$file" >/dev/null
}

# 1F1B, all twice as long: a start is off by what it was planned at. Rank 0's last backward is planned at 33 - 2 ms, that
# of rank 3 at 3 + 8 * 3 - 2 ms.
test_compare() {
  local shape=(1f1b --ranks 4 --microbatches 8)
  trace planned "${shape[@]}" --activation-bytes 1MiB
  trace measured "${shape[@]}" --activation-bytes 2MiB --forward 2ms --backward 4ms --weight 2ms
  succeeds '^makespan +33 ms +66 ms +200\.00%$' compare planned measured
  grep -qE '^planned +planned$' stdout || fail "does not name the planned run"
  grep -qE '^all .* 31 ms  0B7 of rank 0$' stdout || fail "does not name the worst op"
  grep -qE '^rank 3 .* 25 ms  3B7$' stdout || fail "does not name the worst op of rank 3"
  grep -qE '^ +0 .* 4 +4 +4 MiB +8 MiB$' stdout || fail "does not have the peaks of rank 0"
  succeeds '"measured_makespan_ns": 66000000,' compare planned - --json - <measured
  check_braces
  succeeds '^makespan' compare planned measured --json difference
  grep -q '"planned_makespan_ns": 33000000,' difference || fail "difference lacks the makespan"
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned planned
  gzip <planned >compressed
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned compressed
  succeeds '^all +0 ns +0 ns +0 ns  0F0 of rank 0$' compare planned - <compressed
}

# Two schedules are what simulate says of each; one under two costs, too.
test_compare_schedules() {
  local shape=(--ranks 4 --microbatches 8)
  succeeds '^ +1f1b +zb1p +zb1p / 1f1b *$' compare 1f1b zb1p "${shape[@]}"
  grep -qE '^makespan +33 ms +27 ms +81\.82%' stdout || fail "does not have both makespans"
  grep -qE '^only in 1f1b: [0-9]+ B \(0B' stdout || fail "does not say what only 1f1b runs"
  grep -qE '^rank +busy 1f1b +zb1p +idle 1f1b +zb1p' stdout || fail "does not have both side by side"
  succeeds '"planned_makespan_ns": 33000000,' compare 1f1b zb1p "${shape[@]}" --json -
  check_braces
  "$dualpipe_sim" convert zb1p "${shape[@]}" --to csv >mine.csv
  "$dualpipe_sim" convert zb1p "${shape[@]}" --to json >mine.json
  succeeds '^makespan +27 ms +33 ms' compare mine.csv 1f1b  # which has the shape of the file
  succeeds '^all +0 ns +0 ns +0 ns' compare mine.csv mine.json
  succeeds '^makespan +27 ms +33 ms' compare - 1f1b <mine.csv
  # One model: each of the two stages of a rank has half of its share.
  succeeds '^makespan +33 ms +28.5 ms' compare 1f1b interleaved "${shape[@]}" --chunks 2
  grep -q 'has 4 stages, interleaved 8' stdout || fail "does not say that the stages differ"

  local entry='"forward_ns": 1000000, "backward_ns": 2000000, "input_gradient_ns": 1000000, "weight_gradient_ns": 1000000'
  echo '{"format": "dualpipe-costs", "version": 1, "parts": [{'"$entry"'}]}' >fast.json
  sed 's/000000/000001/g' fast.json >slow.json
  succeeds '^ +fast +slow +slow / fast *$' compare zb1p "${shape[@]}" --costs fast.json --costs slow.json
  succeeds '^ +1f1b, fast +zb1p, slow ' compare 1f1b zb1p "${shape[@]}" --costs fast.json --costs slow.json
  succeeds '^ +1f1b +zb1p ' compare 1f1b zb1p "${shape[@]}" --costs fast.json
  fails 2 'no more' compare zb1p "${shape[@]}" --costs fast.json --costs slow.json --costs fast.json
  fails 2 '--costs.*--forward' compare zb1p 1f1b "${shape[@]}" --costs fast.json --forward 1ms
}

# Files as people have them, of issues and forums. Each runs, or its error is what its owner needs.
test_reports() {
  local reports=$goldens/reports
  for file in megatron1829_group_size_P4V2M9N5 pytorch_get_schedule_ops_gpipe_P2M4 torchtitan_custom_schedule; do
    succeeds '^stream: completes$' validate "$reports/$file.csv"
    succeeds '^makespan' simulate "$reports/$file.csv"
    for format in csv json; do succeeds . convert "$reports/$file.csv" --to $format; done
  done
  succeeds '^pytorch_get_schedule_ops_gpipe_P2M4: .* 16 ops, 16 messages$' validate \
    "$reports/pytorch_get_schedule_ops_gpipe_P2M4.csv"

  run validate "$reports/megatron1829_group_size_P4V2M8N2.csv"
  [[ $status == 1 ]] || fail "status $status, not 1"
  grep -q '^rank 0 cannot run 4F3 (op 7): it waits for 3F3 on rank 3$' stderr || fail "does not tell the cycle"
  fails 1 'rank 0 cannot run 4F3' simulate "$reports/megatron1829_group_size_P4V2M8N2.csv"
  run validate "$reports/pytorch172833_interleaved_recv_before_use.csv"
  grep -q '^stream: hangs$' stdout || fail "does not hang as NCCL does"
  grep -q '^latency: completes$' stdout || fail "hangs without need"
  succeeds '^makespan' simulate "$reports/pytorch172833_interleaved_recv_before_use.csv"
  fails 1 'rank 1 cannot end 1SEND_F0' simulate "$reports/pytorch172833_interleaved_recv_before_use.csv" --comm stream
  for subcommand in validate simulate 'convert --to csv'; do
    fails 1 "primus1003_1f1b_no_clamp_P4M2.csv:1: column 4: '0B-1'.* count from 0" $subcommand \
      "$reports/primus1003_1f1b_no_clamp_P4M2.csv"
  done

  local old=$reports/pytorch_old_letters_zb1p_P2V2M8.csv
  succeeds "^rules: all kept$" validate "$old"
  [[ $(grep -c "PyTorch's old letters" stdout) == 1 ]] || fail "does not say once that the letters are old"
  succeeds "PyTorch's old letters" simulate "$old"
  succeeds '^rules: all kept$' validate "$old" --letters old
  ! grep -q -e --letters stdout || fail "says what its user said"
  run convert "$old" --to csv
  [[ $status == 0 && $(head -c 31 stdout) == 0F0,0F1,2F0,2F1,2I0,2W0,0F2,2I1 ]] || fail "does not write the current letters"
  grep -q "^note: .*old letters" stderr || fail "does not say that the letters were old"
  run validate "$old" --letters new
  [[ $status == 1 && $(grep -c -e --letters stderr) == 0 ]] || fail "remarks on what its user said"
  fails 2 '--letters: it is for CSV files' validate 1f1b --ranks 2 --microbatches 4 --letters old
  fails 1 'a JSON file has the current letters' validate <("$dualpipe_sim" convert "$old" --to json 2>/dev/null) --letters old
}

# What is wrong is named, and not all that is right.
test_culprits() {
  local good=$'0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1\n2F0,2B0,2F1,2B1\n'
  told() {  # told TEXT ERROR: that is all that is wrong with the file
    printf '%s' "$1" >file.csv
    fails 1 "$2" validate file.csv
    (($(wc -l <stderr) <= 2)) || fail "tells more than one thing"
  }
  told "${good/0F1/0F1,0F2}" '^  micro-batch 2 occurs only as 0F2 on rank 0;'
  told "${good/0F1/0F1,0F800}" '^  micro-batch 800 occurs only as 0F800 on rank 0;'
  told "${good}3F0" '^  stage 3 occurs only as 3F0 on rank 3;'
  told "${good/0F1/0F1,2F0}" '^  rank 0, op 2, 2F0: stage 2 is held by rank 2$'
  told "${good/0F1/0F1,0F1}" '^  rank 0, op 2, 0F1: runs a second time$'
  told "${good}0F0" 'rank 3 \(line 4\) holds no stage: its only op, 0F0, is of stage 0, which rank 0 \(line 1\) runs'
  told "${good/0F1,/}" '^  rank 0, 0F1: runs nowhere on its rank$'
  told "${good/0F1/0F1,0SEND_F0}" '^  rank 0, slot 2, 0SEND_F0: is a message'
  "$dualpipe_sim" convert dualpipe --ranks 4 --microbatches 8 --to csv >file.csv
  fails 1 'as two chains, which DualPipe has, it is valid: say --chains 2$' validate file.csv
  [[ $(grep -c chains stderr) == 1 ]] || fail "says more than once"
  sed -i 's/^0F0/0F0,0F0/' file.csv
  run validate file.csv
  ! grep -q -e --chains stderr || fail "says --chains where that is not all"
}

test_compare_errors() {
  "$dualpipe_sim" convert 1f1b --ranks 2 --microbatches 4 --to csv >two.csv
  "$dualpipe_sim" convert 1f1b --ranks 4 --microbatches 8 --to csv >four.csv
  trace one 1f1b --ranks 2 --microbatches 4
  trace other gpipe --ranks 2 --microbatches 4
  trace larger 1f1b --ranks 4 --microbatches 8
  trace part 1f1b --ranks 2 --microbatches 4 --trace-ranks 1 1
  trace window 1f1b --ranks 2 --microbatches 4 --trace-window 4ms 9ms
  fails 2 'A is required' compare
  fails 2 'empty' compare one ''
  fails 2 'third' compare one one third
  fails 1 '^error: one: it has one run' compare one
  fails 1 '^error: no-such-file: cannot be opened: No such file' compare one no-such-file
  fails 1 'rank 0 runs 0B0 as its op 2 in one, rank 0 runs 0F2 as its op 2 in other$' compare one other
  fails 1 'one has 2 ranks, larger has 4 ranks' compare one larger
  fails 1 '^error: part: rank 0 is missing' compare one part
  fails 1 'as its op 0 in window; ' compare one window
  head -c 1000 one >cut
  fails 1 '^error: cut:[0-9]+:[0-9]+: syntax error' compare one cut
  fails 1 '^error: cut:[0-9]+:[0-9]+: syntax error' compare cut one
  fails 1 '^error: standard input:1:1: syntax error' compare one - </dev/null
  gzip <one | head -c 500 >cut
  fails 1 '^error: cut: the compressed file ends in the middle' compare one cut
  echo '{"schemaVersion": 1, "traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 7, "tid": 7}]}' >pytorch
  fails 1 '^error: pytorch: not a trace of dualpipe-sim or dualpipe-run' compare pytorch one
  "$dualpipe_sim" convert 1f1b --ranks 2 --microbatches 4 --to json >schedule
  fails 1 '^error: schedule: "traceEvents" is missing: it is a schedule, and one is not' compare schedule one
  fails 1 '^error: 1f1b: "traceEvents" is missing: it is a schedule' compare one 1f1b
  fails 2 '^error: --forward: it does nothing with traces' compare one one --forward 2ms
  fails 2 '^error: --ranks: it does nothing with traces' compare one one --ranks 4
  fails 1 '^error: 1f1b: a schedule is compared with another one' compare 1f1b --ranks 2 --microbatches 4
  fails 1 'two.csv has 2 ranks, four.csv 4' compare two.csv four.csv
  fails 1 'standard input.*an event of more than 64 MiB' compare one - < <(printf '{"traceEvents":[{"ph":"' && endless a)
  fails 1 '/dev/full: No space' compare one one --json /dev/full
  fails 1 'no/such/folder' compare one one --json no/such/folder/file
  output=/dev/full fails 1 'standard output: No space' compare one one
}

test_help
test_usage
test_table
test_table_formats
test_table_of_a_job
test_schedules
test_automatic
test_simulate
test_costs
test_parts
test_files
test_results_apart
test_results_over_input
test_empty_names
if command -v python3 >/dev/null; then
  test_one_socket
  test_hostile_names
else
  echo "skipped: there is no python3"
fi
test_convert
test_validate
test_bad_input
test_bad_numbers
test_huge_input
test_output_errors
test_compare
test_compare_schedules
test_compare_errors
test_reports
test_culprits

echo "$checks commands, $failures failures"
((failures == 0))
