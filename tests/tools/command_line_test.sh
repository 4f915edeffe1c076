#!/usr/bin/env bash
# What both tools have in common on the command line: help, suggestions, colour, locale, completion, manual page.
#
#   tests/tools/command_line_test.sh build/release/bin/dualpipe-sim
#   tests/tools/command_line_test.sh build/release/bin/dualpipe-run
set -euo pipefail

tool=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
name=${tool##*/}
subcommands=()
[[ $name != dualpipe-sim ]] || subcommands=(table simulate estimate sweep merge report schedules validate convert compare help)

# is_within COLUMNS: no line of stdout is longer, and its bytes are ASCII, so that they are columns.
is_within() {
  ! LC_ALL=C grep -nE "^.{$(($1 + 1)),}" stdout || fail "more than $1 columns"
  ! LC_ALL=C grep -nP '[^\x00-\x7f]' stdout || fail "not ASCII"
}

test_help() {
  local each
  for each in '' "${subcommands[@]}"; do
    succeeds "^Usage: $name${each:+ $each}" $each --help
    is_within 80
    COLUMNS=200 succeeds . $each --help
    is_within 80
    cp stdout wide
    COLUMNS=60 succeeds . $each --help
    is_within 60
    # Nothing but blanks and ends of lines differs, and the backslashes of commands.
    cmp -s <(tr -s ' \n\\' '\n' <wide) <(tr -s ' \n\\' '\n' <stdout) || fail "other words in 60 columns"
    output=/dev/full fails 1 'standard output: No space' $each --help
  done
  # An example stays one command.
  succeeds . --help
  sed -n '/^Examples/,/^$/p' stdout | grep -E '^ ' | sed -z 's/ \\\n *//g' | grep -vE '^  (mpirun -n [0-9]+ )?dualpipe-(sim|run) ' >left || true
  [[ ! -s left ]] || fail "not a command: $(head -n 1 left)"
}

test_help_of_subcommands() {
  local each
  for each in '' "${subcommands[@]}"; do
    succeeds . $each --help
    cp stdout expected
    succeeds . help $each
    cmp -s expected stdout || fail "help $each is not what --help prints"
  done
  fails 2 '^error: tabel: there is no such subcommand; did you mean table\?$' help tabel
}

test_suggestions_sim() {
  local shape=(-p 4 -m 8)
  fails 2 '^error: --foward: there is no such option; did you mean --forward\?$' simulate 1f1b "${shape[@]}" --foward 3ms
  fails 2 '^error: --foward: .*--forward\?$' simulate --foward=3ms  # before what is missing
  fails 2 '^error: --microbatch: .*--microbatches\?$' table --microbatch 8
  fails 2 '^error: --nothing-like-it: there is no such option; dualpipe-sim table --help lists them$' table --nothing-like-it
  fails 2 '^error: -x: there is no such option' table -x
  fails 2 '^error: --gantt: table has no such option; it is one of: simulate, explain$' table --gantt
  fails 2 '^error: --ranks: it stands behind the subcommand: table, ' --ranks 4 table
  fails 2 '^error: tabel: there is no such subcommand; did you mean table\?$' tabel
  fails 2 '^error: plot: there is no such subcommand; there are table, simulate, ' plot
  fails 2 '^error: another: it is one argument too many; simulate takes 1$' simulate 1f1b "${shape[@]}" another
  fails 2 '^error: x: it is one argument too many; schedules takes none$' schedules x
  fails 1 "^error: there is no schedule named '1f1bb'; did you mean 1f1b\? The catalog" simulate 1f1bb "${shape[@]}"
  fails 1 "^error: there is no schedule named 'DualPipe'; did you mean dualpipe\?" simulate DualPipe "${shape[@]}"
  fails 1 "^error: there is no schedule named 'zb-h1'; the catalog" simulate zb-h1 "${shape[@]}"
  fails 1 "did you mean zb1p\?" table --schedules 1f1b,zb1pp
  fails 1 "^error: --format: it is one of text, markdown, csv, json, and not 'jsn'; did you mean json\?$" table --format jsn
  fails 1 "^error: --to: it is one of csv, json, and not 'xml'$" convert 1f1b "${shape[@]}" --to xml
}

# Which argument is the schedule, where an option before it may go without a value.
test_values_left_out() {
  local shape=(-p 4 -m 8) option
  for option in --gantt --svg --json --csv --trace; do
    succeeds . simulate 1f1b "${shape[@]}" $option
    cp stdout expected
    succeeds . simulate $option 1f1b "${shape[@]}"
    cmp -s expected stdout || fail "$option before the schedule is not $option behind it"
    succeeds . simulate "${shape[@]}" $option 1f1b
    cmp -s expected stdout || fail "$option before the schedule, at the end, is not $option behind it"
    succeeds . simulate $option chart 1f1b "${shape[@]}"
    succeeds . simulate "${shape[@]}" $option=- 1f1b
    cmp -s expected stdout || fail "$option=- is not $option"
  done
  succeeds . simulate --gantt chart --json figures 1f1b "${shape[@]}"
  grep -q '^rank 0 ' chart && grep -q makespan_ns figures || fail "not both files"
  succeeds . simulate 1f1b "${shape[@]}" --gantt zb1p
  grep -q '^rank 0 ' zb1p || fail "a file has the name of a schedule, and is not written"
  printf '0F0,0B0\n1F0,1B0\n' >mine.csv
  cp mine.csv before.csv
  succeeds '^rank 0 ' simulate --gantt mine.csv
  succeeds '^rank 0 ' simulate --gantt --csv figures mine.csv
  fails 2 '^error: SCHEDULE: it may be mine.csv or figures; name it first, or write --gantt=mine.csv$' \
    simulate --gantt mine.csv --json figures
  succeeds '^rank 0 ' simulate - --gantt <mine.csv
  fails 2 'SCHEDULE is required' simulate --gantt -
  fails 2 'SCHEDULE is required' simulate --gantt
  cmp -s before.csv mine.csv || fail "has written over the schedule"
}

# is_coloured yes|no [NAME=VALUE]...: a chart on a terminal, with this environment.
is_coloured() {
  local expected=$1
  shift
  command=(simulate 1f1b -p 2 -m 2 --gantt, with "$@")
  checks=$((checks + 1))
  env TERM=xterm "$@" script -qefc "'$tool' simulate 1f1b -p 2 -m 2 --gantt -" /dev/null >stdout 2>stderr || fail "status $?"
  local found=no
  ! grep -q $'\033\[' stdout || found=yes
  [[ $found == "$expected" ]] || fail "coloured: $found"
}

test_colour() {
  is_coloured yes
  is_coloured no NO_COLOR=1
  is_coloured yes NO_COLOR=  # as if it were not set (no-color.org)
  is_coloured no CLICOLOR=0
  is_coloured yes CLICOLOR=1
  is_coloured no TERM=dumb
  is_coloured yes TERM=dumb CLICOLOR_FORCE=1
  is_coloured yes CLICOLOR=0 CLICOLOR_FORCE=1
  is_coloured no CLICOLOR=0 CLICOLOR_FORCE=0
  is_coloured no CLICOLOR_FORCE=1 NO_COLOR=1
}

# Where there is no terminal.
test_forced_colour() {
  local shape=(simulate 1f1b -p 2 -m 2)
  CLICOLOR_FORCE=1 succeeds $'\033\[' "${shape[@]}" --gantt -
  NO_COLOR=1 CLICOLOR_FORCE=1 succeeds . "${shape[@]}" --gantt -
  ! grep -q $'\033' stdout || fail "coloured"
  CLICOLOR_FORCE=1 succeeds . "${shape[@]}" --gantt chart
  ! grep -q $'\033' chart || fail "colour in a file"
}

test_width() {
  COLUMNS=40 succeeds . simulate 1f1b -p 4 -m 8 --gantt -
  cp stdout expected
  succeeds . simulate 1f1b -p 4 -m 8 --gantt - --width 40
  cmp -s expected stdout || fail "COLUMNS=40 is not --width 40"
  COLUMNS=100 succeeds . simulate 1f1b -p 4 -m 8 --gantt - --width 40
  cmp -s expected stdout || fail "--width does not win"
  succeeds . simulate 1f1b -p 4 -m 8 --gantt -
  cp stdout expected
  for value in '' 0 -3 wide 1e9 99999999999; do
    COLUMNS=$value succeeds . simulate 1f1b -p 4 -m 8 --gantt -
    cmp -s expected stdout || fail "COLUMNS=$value is not as if it were not set"
  done
}

test_locale() {
  local shape=(simulate 1f1b -p 4 -m 8 --forward 1us --backward 2us --weight 1us)
  for locale in LC_ALL=C LC_ALL=POSIX LC_ALL=de_DE.ISO-8859-1 'LC_ALL= LC_CTYPE=C LANG=C.UTF-8' 'LC_ALL= LANG=C'; do
    tool=env succeeds '^makespan +33 us ' -u LC_CTYPE -u LANG $locale "$tool" "${shape[@]}" --gantt
    ! LC_ALL=C grep -nP '[^\x00-\x7f]' stdout || fail "not ASCII with $locale"
    tool=env succeeds '' $locale "$tool" "${shape[@]}" --gantt chart
    grep -q 'µs' chart || fail "a file has no µ with $locale"
    tool=env fails 1 '^error: schedule is not|\.\.\. and [0-9]+ more|not valid' $locale "$tool" validate many.csv
    ! LC_ALL=C grep -nP '[^\x00-\x7f]' stderr || fail "an error is not ASCII with $locale"
  done
  for locale in LC_ALL=C.UTF-8 LC_ALL=en_US.utf8 'LC_ALL= LC_CTYPE=en_US.UTF-8 LANG=C' 'LC_ALL='; do
    tool=env succeeds '^makespan +33 µs ' -u LC_CTYPE -u LANG $locale "$tool" "${shape[@]}"
  done
  # Names are as they are.
  printf '0F0,0B0\n' >grün.csv
  LC_ALL=C succeeds . validate grün.csv
  LC_ALL=C succeeds '^grün: ' validate grün.csv
}

# completed REPLY WORD...: what bash offers for the last word.
completed() {
  local expected=$1
  shift
  command=(TAB behind "$@")
  checks=$((checks + 1))
  COMP_WORDS=("$name" "$@") COMP_CWORD=$# COMPREPLY=()
  _${name//-/_} 2>stderr || true
  [[ ! -s stderr ]] || fail "stderr is not empty"
  printf '%s\n' "${COMPREPLY[@]}" >stdout
  grep -qxE -e "$expected" stdout || fail "does not offer $expected"
}

# completes_only REPLY WORD...: this alone.
completes_only() {
  completed "$@"
  ((${#COMPREPLY[@]} == 1)) || fail "offers ${#COMPREPLY[@]}"
}

test_bash_completion_sim() {
  mkdir completion
  cd completion
  touch mine.csv 'with blank.csv'
  completes_only simulate si
  completes_only table tab
  completes_only --version --v
  completed compare ''
  completes_only --forward table --forw
  completes_only --gantt simulate 1f1b --ga
  completes_only markdown table --format m
  completes_only markdown table --format = m
  completed csv table --format =
  completes_only stream simulate 1f1b --comm s
  completed dualpipe simulate dualpipe
  completed dualpipev simulate dualpipe
  completed mine.csv simulate ''
  completed 'with blank.csv' simulate with
  completes_only mine.csv simulate 1f1b --costs mi
  completed mine.csv simulate 1f1b --costs =
  completes_only mine.csv simulate 1f1b --svg mi
  completes_only --trace-ranks simulate 1f1b --svg --trace-r
  completes_only 1f1b,zb1p table --schedules 1f1b,zb1
  completed interleaved table --schedules int
  completes_only json convert 1f1b --to j
  completes_only simulate help sim
  completes_only zsh --completion z
  cd ..
}

# There is a value that nobody knows.
test_bash_completion() {
  eval "$("$tool" --completion bash)"
  complete -p "$name" | grep -q -- "-F _${name//-/_} $name" || fail "is not registered"
  [[ $name != dualpipe-sim ]] || test_bash_completion_sim
  [[ $name != dualpipe-run ]] || test_bash_completion_run
  COMP_WORDS=("$name" ${subcommands[1]-} 1f1b --ranks '') COMP_CWORD=$((${#subcommands[@]} > 0 ? 4 : 3)) COMPREPLY=()
  _${name//-/_}
  ((${#COMPREPLY[@]} == 0)) || fail "offers something for a number"
}

test_bash_completion_run() {
  touch mine.csv
  completes_only mlp 1f1b --model ml
  completed dualpipe --schedule dualpipe
  completes_only zb1p zb1
  completed mine.csv mi
  completes_only mine.csv 1f1b --json mi
  completes_only bfloat16 1f1b --dtype b
  completes_only --calibrate 1f1b --cali
}

# Each shell reads its script, where it is installed.
test_completion_scripts() {
  fails 1 "^error: --completion: it is one of bash, zsh, fish, and not 'csh'" --completion csh
  for shell in bash zsh fish; do
    succeeds "$name" --completion $shell
    cp stdout script
    ! command -v $shell >/dev/null || $shell -n script 2>stderr || fail "$shell does not read it"
    output=/dev/full fails 1 'standard output: No space' --completion $shell
  done
  if command -v fish >/dev/null && [[ $name == dualpipe-sim ]]; then
    fish -c 'source script; complete -C "dualpipe-sim simulate 1f1b --comm "; complete -C "dualpipe-sim convert 1"' >stdout 2>stderr || true
    grep -q '^stream' stdout && grep -q '^1f1b' stdout || fail "fish does not complete"
  fi
}

# Its page names all that --help names, and roff has nothing to say of it.
test_man() {
  local each option
  succeeds '^\.TH ' --man
  cp stdout page
  for each in '' "${subcommands[@]}"; do
    for option in $("$tool" $each --help | grep -oE '^  (-[a-z], )?--[a-z-]+' | grep -oE -e '--.*'); do
      grep -qF "\\fB${option//-/\\-}\\fR" page || fail "lacks $option"
    done
  done
  if command -v groff >/dev/null; then
    groff -man -Tutf8 -ww page >text 2>stderr || fail "groff fails"
    [[ ! -s stderr ]] || fail "groff warns"
  fi
  if command -v mandoc >/dev/null; then
    mandoc -Tlint -Wwarning page | grep -v 'missing date' >stderr || true  # whose it would be is not known
    [[ ! -s stderr ]] || fail "mandoc warns"
  fi
}

printf '%s\n' "$(for i in {0..29}; do printf '0B%d,' $i; done)0F0" >many.csv
test_help
test_completion_scripts
test_bash_completion
test_man
if [[ $name == dualpipe-sim ]]; then
  test_help_of_subcommands
  test_suggestions_sim
  test_values_left_out
  if command -v script >/dev/null; then test_colour; else echo "skipped: there is no script(1)"; fi
  test_forced_colour
  test_width
  test_locale
fi

echo "$checks commands, $failures failures"
((failures == 0))
