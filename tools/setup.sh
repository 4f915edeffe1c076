#!/usr/bin/env bash
# Installs what is missing: packages of Debian 12, and for dualpipe-run LibTorch, into .torch/.
#
#   tools/setup.sh tool   to build dualpipe-sim
#   tools/setup.sh run    and dualpipe-run (1.3 GB; where there is an NVIDIA GPU, 6 GB)
#   tools/setup.sh test   and to build and run the tests and benchmarks (the default)
#   tools/setup.sh all    and to build with Clang, and to fuzz the parsers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=(g++ cmake ninja-build libcli11-dev libfmt-dev nlohmann-json3-dev zlib1g-dev)
run=(python3-pip libopenmpi-dev openmpi-bin)
test=(libboost-test-dev libbenchmark-dev clang-format-14)
all=(clang libclang-rt-14-dev)

case ${1:-test} in
  tool) wanted=("${tool[@]}") ;;
  run) wanted=("${tool[@]}" "${run[@]}") ;;
  test) wanted=("${tool[@]}" "${run[@]}" "${test[@]}") ;;
  all) wanted=("${tool[@]}" "${run[@]}" "${test[@]}" "${all[@]}") ;;
  *)
    echo "usage: tools/setup.sh [tool|run|test|all]" >&2
    exit 2
    ;;
esac

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

as_root=()
# A script must not wait for an answer, nor fail because another one is installing just now.
apt_get() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

install_packages() {
  if ! command -v apt-get >/dev/null; then
    echo "setup: not a Debian system. What these Debian packages hold has to be there: $*"
    return
  fi

  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    echo "setup: all packages are installed"
    return
  fi

  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "error: packages are missing, and there is no sudo. As root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}"
  apt_get update
  apt_get install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# The C++ library out of PyTorch's wheel, the two of its dependencies that libtorch_cpu.so itself loads, and headers that
# the CUDA runtime's include. Which Python the wheel is for does not matter. libtorch_cuda.so needs all others, too: CUDA's
# libraries.
torch=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-cuda-crt==13.0.88)
torch_for_cpu="${torch[*]}"
torch_for_gpu="${torch[*]} and all that they depend on"

has_gpu() {
  [[ -e /dev/nvidia0 || $(nvidia-smi --list-gpus 2>/dev/null) == *"GPU "* ]]
}

# Whether cmake/FindLibTorch.cmake finds one that is recent enough without .torch/.
has_torch() {
  [[ -n ${TORCH_ROOT:-} ]] || python3 -c '
from importlib.metadata import version
assert tuple(map(int, version("torch").split(".")[:2])) >= (2, 7)' 2>/dev/null
}

# A complete .torch holds the list of what is in it.
install_torch() {
  if has_torch; then
    echo "setup: there is a LibTorch"
    return
  fi
  local wanted=$torch_for_cpu size="540 MB" without=(--no-deps)
  if has_gpu; then
    wanted=$torch_for_gpu size="3 GB" without=()
  fi
  case $(cat .torch/installed 2>/dev/null) in
    "$wanted" | "$torch_for_gpu")
      echo "setup: LibTorch is installed in .torch/"
      return
      ;;
  esac
  local python=python3
  [[ ! -x /usr/bin/python3 ]] || python=/usr/bin/python3  # the one that has Debian's pip
  echo "setup: installing $wanted into .torch/ (a download of $size)"
  rm -rf .torch .torch.new
  "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    ${without[@]+"${without[@]}"} --no-compile --only-binary=:all: --python-version 3.11 --implementation cp --target .torch.new "${torch[@]}"
  # Not needed to build with it: Python's part.
  rm -rf .torch.new/bin .torch.new/functorch .torch.new/torchgen
  echo "$wanted" >.torch.new/installed
  mv .torch.new .torch
}

install_packages "${wanted[@]}"
case ${1:-test} in
  run | test | all) install_torch ;;
esac
echo "setup: done"
