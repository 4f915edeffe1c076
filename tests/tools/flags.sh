# For the tests that no option of a tool is ignored. Sourced by them, for checks.sh.
#
# Each option changes what the tool prints, and where it would not, it is refused, with the reason and the remedy in one
# line. Every case is told by the option; at the end is_complete fails for those that --help names and that have none.

source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

declare -A has_case=()

# passes ARGUMENT...: status 0, and nothing on stderr but notes.
passes() {
  run "$@"
  ((status == 0)) || fail "status $status, not 0"
  ! grep -qv '^note: ' stderr || fail "stderr is not empty"
}

# In what follows COMMAND is one word, which is split: a subcommand, where the tool has any, and its arguments.

# subcommand_of COMMAND: to be defined anew where there are none.
subcommand_of() { echo "${1%% *}"; }

# compared: of stdout, what is the same whenever the same runs. To be defined anew where that is not all.
compared() { cat stdout; }

# has_changed BEFORE: stdout is another one than it was.
has_changed() { [[ $(compared) != "$1" ]] || fail "prints the same without"; }

# changes COMMAND OPTION [VALUE]...: with the option it prints something else. Both succeed.
changes() {
  has_case["$(subcommand_of "$1") $2"]=1
  passes $1
  local without
  without=$(compared)
  passes $1 "${@:2}"
  has_changed "$without"
}

# mends COMMAND OPTION [VALUE]...: without the option it fails.
mends() {
  has_case["$(subcommand_of "$1") $2"]=1
  run $1
  ((status != 0)) || fail "succeeds without $2"
  passes $1 "${@:2}"
}

# varies COMMAND OPTION VALUE OTHER: the two values make a difference. Both succeed.
varies() {
  has_case["$(subcommand_of "$1") $2"]=1
  passes $1 $2 "$3"
  local without
  without=$(compared)
  passes $1 $2 "$4"
  has_changed "$without"
}

# refuses REGEX COMMAND OPTION [VALUE]...: as wrong usage, in one line that names the option; but not without it.
refuses() {
  has_case["$(subcommand_of "$2") $3"]=1
  fails 2 "^error: $3:? .*$1" $2 "${@:3}"
  [[ $(wc -l <stderr) == 1 ]] || fail "more than one line"
  passes $2
}

# is_complete COMMAND: every option that `COMMAND --help` names has its case. COMMAND as above, or empty.
is_complete() {
  local option found=0
  succeeds '^Usage' $1 --help
  sed '/^Examples/,$d' stdout | grep -oE '^ +(-[a-z], )?--[a-z-]+' | grep -oE -e '--.*' >options
  while read -r option; do
    found=$((found + 1))
    [[ -n ${has_case["$(subcommand_of "$1") $option"]-} || $option =~ ^--(help|version|completion)$ ]] || fail "no case of $1 $option"
  done <options
  ((found > 0)) || fail "names no options"
}
