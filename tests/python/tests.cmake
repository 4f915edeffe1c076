# Each tests/python/<name>_test.py is a test python_<name>, run by the Python that the package was built for, from the
# build folder.
execute_process(COMMAND ${Python_EXECUTABLE} -c "import numpy, pytest"
  RESULT_VARIABLE no_pytest OUTPUT_QUIET ERROR_QUIET)
if(no_pytest)
  message(STATUS "Left out: tests of the Python package, which need pytest and NumPy. To get them: tools/setup.sh python")
endif()

# dualpipe_python_tests(PART NAME...): those of the modules dualpipe._PART.
function(dualpipe_python_tests part)
  if(no_pytest OR NOT TARGET _${part})
    return()
  endif()
  foreach(name IN LISTS ARGN)
    add_test(NAME python_${name}
      COMMAND ${Python_EXECUTABLE} -m pytest -p no:cacheprovider -q -rs
        ${CMAKE_CURRENT_SOURCE_DIR}/python/${name}_test.py)
    set_tests_properties(python_${name} PROPERTIES LABELS python TIMEOUT 600
      ENVIRONMENT "PYTHONPATH=${PROJECT_BINARY_DIR}/python;PYTHONDONTWRITEBYTECODE=1;HF_HUB_OFFLINE=1;DUALPIPE_SIM=$<TARGET_FILE:dualpipe-sim>")
  endforeach()
endfunction()

dualpipe_python_tests(sim docs errors package schedule sweep table timeline torch)
dualpipe_python_tests(exec compat deepseek examples faults lightning pipeline pytorch split trainer training weights)
