#!/usr/bin/env bash
# The rules that no compiler checks. Each violation is printed as file:line: rule.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C.UTF-8

violations=0

# violation TEXT: TEXT has a line for each place where a rule is broken.
violation() {
  [[ -z $1 ]] || { echo "$1"; violations=$((violations + $(wc -l <<<"$1"))); }
}

# forbid RULE PATTERN FILE...: no line of the files matches the extended regular expression.
forbid() {
  local rule=$1 pattern=$2
  shift 2
  violation "$(grep -HInE -e "$pattern" -- "$@" | sed -E "s|^([^:]*:[0-9]+):.*|\1: $rule|" || true)"
}

# Is FILE, a source, named by the CMakeLists.txt that builds its folder, or by a list that it includes?
is_listed() {
  local file=$1 folder=${1%%/*}
  case $file in
    tests/consumer/* | tests/fuzz/*) return 0 ;;  # lists of their own, by rule
    tests/*/*_test.cpp) grep -qhE "^ *dualpipe_test_suites\((.* )?$(test_dir "$file") (.* )?$(test_name "$file")[ )]" \
      tests/CMakeLists.txt tests/*/tests.cmake ;;
    *) grep -qhE "(^|[ (])${file#"$folder"/}([ )]|\$)" "$folder/CMakeLists.txt" $(compgen -G "$folder/*/tests.cmake") ;;
  esac
}

test_dir() { basename "$(dirname "$1")"; }
test_name() { basename "$1" _test.cpp; }

mapfile -t sources < <(find sim exec python tools tests \( -name '*.h' -o -name '*.cpp' \) | sort)
mapfile -t headers < <(find sim exec python tools tests -name '*.h' | sort)
mapfile -t tests < <(find tests -name '*_test.cpp' | sort)
mapfile -t texts < <(find . -path ./.git -prune -o -path ./build -prune -o -path './.torch*' -prune -o -path ./.venv -prune -o -type f \
  \( -name '*.h' -o -name '*.cpp' -o -name '*.py' -o -name '*.sh' -o -name '*.md' -o -name 'CMake*' -o -name '*.cmake' -o -path './.ci/*' \) -print |
  sed 's|^\./||' | sort)

forbid "a tab" $'\t' "${texts[@]}"
forbid "white space at the end of the line" '[[:space:]]$' "${texts[@]}"
forbid "unfinished work" '\<(TO[D]O|FIX[M]E|XX[X])\>' "${texts[@]}"
forbid "a path of one machine" '(^|[^[:alnum:]._~/-])/(home|root|work|Users)/' "${texts[@]}"
mapfile -t modules < <(find python tests -name '*.py' | sort)
forbid "more than 120 columns" '^.{121,}' "${sources[@]}" "${modules[@]}"
forbid "std::endl flushes: write '\\\\n'" 'std::end[l]' "${sources[@]}"

for header in "${headers[@]}"; do
  grep -qx '#pragma once' "$header" || violation "$header:1: no #pragma once"
done

for source in "${sources[@]}"; do
  is_listed "$source" || violation "$source:1: in no CMakeLists.txt"
done

for file in "${tests[@]}"; do
  suite=$(test_dir "$file")_$(test_name "$file")
  [[ $(grep -oE '^BOOST_AUTO_TEST_SUITE\(\w+' "$file" | head -n 1) == "BOOST_AUTO_TEST_SUITE($suite" ]] ||
    violation "$file:1: its first suite is not $suite"
done

# What only a library's own files include stands in a namespace of its folder (sim/CMakeLists.txt).
for header in sim/*/*.h exec/*/*.h; do
  file=${header#*/} namespace=dualpipe
  if ! sed -n '/^dualpipe_public_headers(/,/)$/p' "${header%%/*}/CMakeLists.txt" | grep -qE "^ +$file\)?\$"; then
    namespace=dualpipe::detail::${file%/*}
    forbid "a private header, in the public namespace" '^(inline )?namespace dualpipe\>[^:]' "$header"
  fi
  grep -qxF "namespace $namespace {" "$header" || violation "$header:1: has no namespace $namespace"
done

# The libraries are silent, and leave the process alone.
mapfile -t library < <(find sim exec -name '*.h' -o -name '*.cpp' | sort)
forbid "a library does not print or exit" 'std::(cout|cerr|clog|exit|abort|printf|puts)\>|\<(printf|exit)\(|(^|[^>.:[:alnum:]_])abort\(\)' "${library[@]}"

echo "${#texts[@]} files, $violations violations"
((violations == 0))
