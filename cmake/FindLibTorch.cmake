# LibTorch for the CPU: c10 and torch_cpu alone. (Torch's own package needs a CUDA toolkit if Torch was built with CUDA.)
#
#   LibTorch::LibTorch   imported target
#   LibTorch_VERSION
#   LibTorch_OF_PYTHON   the folder of the torch that Python imports, whichever is found; empty where it has none
#
# Looked for, in this order: CMAKE_PREFIX_PATH or TORCH_ROOT (a folder that holds lib/ and include/, or torch/, or Torch's
# share/cmake in it), the torch of Python_EXECUTABLE or of the python3 in PATH, and .torch/, where tools/setup.sh installs
# it. A Python package is built with what it will meet: .torch/ is no part of that.

set(_torch_hints ${TORCH_ROOT} $ENV{TORCH_ROOT} ${CMAKE_PREFIX_PATH})
if(NOT SKBUILD)
  set(_torch_of_project ${CMAKE_CURRENT_LIST_DIR}/../.torch)
endif()

# Where Python would import torch from, if it is recent enough. Torch itself is not loaded.
find_program(LibTorch_PYTHON NAMES python3 python)
mark_as_advanced(LibTorch_PYTHON)
set(LibTorch_OF_PYTHON)
set(_torch_python ${LibTorch_PYTHON})
if(Python_EXECUTABLE)
  set(_torch_python ${Python_EXECUTABLE})
endif()
# pip hides the packages of the environment from what it builds, by PYTHONPATH, which -E ignores.
foreach(_flag IN ITEMS "" -E)
  if(_torch_python AND NOT LibTorch_OF_PYTHON AND (SKBUILD OR NOT _flag))
    execute_process(
      COMMAND ${_torch_python} ${_flag} -c [=[
from importlib.metadata import version
from importlib.util import find_spec
assert tuple(map(int, version("torch").split(".")[:2])) >= (2, 7)
print(find_spec("torch").submodule_search_locations[0], end="")
]=]
      OUTPUT_VARIABLE LibTorch_OF_PYTHON
      ERROR_QUIET)
  endif()
endforeach()

set(_torch_roots)
foreach(_root IN LISTS _torch_hints LibTorch_OF_PYTHON _torch_of_project)
  list(APPEND _torch_roots ${_root} ${_root}/torch ${_root}/../..)
endforeach()

# All of one Torch.
find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h PATHS ${_torch_roots} PATH_SUFFIXES include NO_DEFAULT_PATH)
get_filename_component(_torch_root "${LibTorch_INCLUDE_DIR}" DIRECTORY)
foreach(_library IN ITEMS c10 torch_cpu)
  find_library(LibTorch_${_library}_LIBRARY ${_library} PATHS ${_torch_root}/lib NO_DEFAULT_PATH)
  mark_as_advanced(LibTorch_${_library}_LIBRARY)
endforeach()
mark_as_advanced(LibTorch_INCLUDE_DIR)

set(LibTorch_VERSION)
if(EXISTS "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
  set(_torch_version_file "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
else()
  set(_torch_version_file "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include/torch/version.h")
endif()
if(EXISTS "${_torch_version_file}")
  file(STRINGS "${_torch_version_file}" _torch_version_line REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX MATCHALL "[0-9]+" LibTorch_VERSION "${_torch_version_line}")
  list(JOIN LibTorch_VERSION . LibTorch_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_torch_cpu_LIBRARY LibTorch_c10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION)

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
    ${LibTorch_INCLUDE_DIR} ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include)
  target_link_libraries(LibTorch::LibTorch INTERFACE ${LibTorch_torch_cpu_LIBRARY} ${LibTorch_c10_LIBRARY})
endif()
