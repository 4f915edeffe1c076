# Python, and nanobind as that Python has it installed, with which Python's modules are built.
#
#   Python_EXECUTABLE    the Python that is to import them: the one that installs the package, or .venv's (tools/setup.sh
#                        python), or the python3 in PATH
#   nanobind_add_module()

if(NOT DEFINED Python_EXECUTABLE AND EXISTS ${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python)
  cmake_path(SET Python_EXECUTABLE NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python)
endif()
set(_python_components Interpreter Development.Module)
if(NOT CMAKE_VERSION VERSION_LESS 3.26)
  set(_python_components ${_python_components} OPTIONAL_COMPONENTS Development.SABIModule)
endif()
find_package(Python 3.10 QUIET COMPONENTS ${_python_components})

if(Python_FOUND)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
    OUTPUT_VARIABLE _nanobind_dir
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
  if(_nanobind_dir)
    find_package(nanobind 3.1 CONFIG QUIET PATHS ${_nanobind_dir} NO_DEFAULT_PATH)
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Nanobind
  REQUIRED_VARS nanobind_DIR Python_EXECUTABLE
  REASON_FAILURE_MESSAGE "it takes Python 3.10 or newer, with its headers and nanobind. To get it: tools/setup.sh python")
