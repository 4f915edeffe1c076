#!/usr/bin/env bash
# Installs what is missing, from the packages of Debian 12.
#
#   tools/setup.sh tool   to build dualpipe-sim
#   tools/setup.sh test   and to build and run all tests and benchmarks (the default)
#   tools/setup.sh fuzz   and to fuzz the parsers
set -euo pipefail

tool=(g++ cmake ninja-build libcli11-dev libfmt-dev nlohmann-json3-dev)
test=(libboost-test-dev libbenchmark-dev clang-format-14)
fuzz=(clang libclang-rt-14-dev)

case ${1:-test} in
  tool) wanted=("${tool[@]}") ;;
  test) wanted=("${tool[@]}" "${test[@]}") ;;
  fuzz) wanted=("${tool[@]}" "${test[@]}" "${fuzz[@]}") ;;
  *)
    echo "usage: tools/setup.sh [tool|test|fuzz]" >&2
    exit 2
    ;;
esac

if ! command -v apt-get >/dev/null; then
  echo "setup: not a Debian system. What these Debian packages hold has to be there: ${wanted[*]}"
  exit 0
fi

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

missing=()
for package in "${wanted[@]}"; do
  is_installed "$package" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all packages are installed"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "error: packages are missing, and there is no sudo. As root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

# A script must not wait for an answer, nor fail because another one is installing just now.
apt_get() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

echo "setup: installing ${missing[*]}"
apt_get update
apt_get install --yes --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: done"
