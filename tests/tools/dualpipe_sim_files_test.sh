#!/usr/bin/env bash
# The files that dualpipe-sim reads and writes: what becomes of bad, hostile and huge ones, of results that would be
# written over something else, and of those that cannot be written.
#
#   tests/tools/dualpipe_sim_files_test.sh build/release/bin/dualpipe-sim
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/sim_checks.sh"

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

# A search that is killed at any moment leaves the best that it had, whole; first the catalog's.
test_killed_search() {
  local -a search=(search -p 8 -m 24 --placement v --memory-limit 6microbatches --latency 10us --budget 1000000000)
  for wait in 0 0.02 0.1 0.3 1; do
    rm -f found.json
    "$dualpipe_sim" "${search[@]}" --threads 1 -o found.json >/dev/null 2>&1 &
    local pid=$!
    until [[ -e found.json ]] || ! kill -0 $pid; do sleep 0.01; done
    sleep $wait
    kill -KILL $pid
    wait $pid 2>/dev/null || true
    succeeds . validate found.json
  done
}

test_files
test_killed_search
test_results_apart
test_results_over_input
test_empty_names
if command -v python3 >/dev/null; then
  test_one_socket
  test_hostile_names
else
  echo "skipped: there is no python3"
fi
test_bad_input
test_bad_numbers
test_huge_input
test_output_errors
test_reports
test_culprits

echo "$checks commands, $failures failures"
((failures == 0))
