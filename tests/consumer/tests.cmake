# Builds and runs the consumer both ways. It has the compiler flags of this build, since a library with sanitizers needs
# them in its users too, but is not optimised, and has no symbols, which would take a fifth of the time.
set(consumer_dir ${PROJECT_BINARY_DIR}/consumer)

add_test(NAME consumer_clean COMMAND ${CMAKE_COMMAND} -E rm -rf ${consumer_dir})
add_test(NAME consumer_install
  COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --config $<CONFIG> --prefix ${consumer_dir}/prefix)

# dualpipe_consumer_test(NAME TARGET OPTION...): builds the target, and runs it.
function(dualpipe_consumer_test name target)
  add_test(NAME consumer_${name}
    COMMAND ${CMAKE_CTEST_COMMAND}
      --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumer ${consumer_dir}/${name}
      --build-generator ${CMAKE_GENERATOR}
      --build-noclean
      --build-target ${target}
      --build-options
        -DCMAKE_BUILD_TYPE=Debug
        -DCMAKE_CXX_FLAGS_DEBUG=
        -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
        -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER}
        "-DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}"
        ${ARGN}
      --test-command ${target})
  set_tests_properties(consumer_${name} PROPERTIES LABELS consumer TIMEOUT 600)
endfunction()

dualpipe_consumer_test(find_package consumer -DCMAKE_PREFIX_PATH=${consumer_dir}/prefix)
if(TARGET dualpipe::exec)
  dualpipe_consumer_test(exec exec_consumer -DCMAKE_PREFIX_PATH=${consumer_dir}/prefix -DWITH_EXEC=ON)
  set_tests_properties(consumer_exec PROPERTIES FIXTURES_REQUIRED consumer_install)
endif()
# Compiles the whole library once more, which takes longer than all other tests: not in every build.
if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  dualpipe_consumer_test(add_subdirectory consumer -DDUALPIPE_SOURCE_DIR=${PROJECT_SOURCE_DIR})
  set_tests_properties(consumer_add_subdirectory PROPERTIES FIXTURES_REQUIRED consumer_clean)
endif()

set_tests_properties(consumer_clean PROPERTIES LABELS consumer FIXTURES_SETUP consumer_clean)
set_tests_properties(consumer_install PROPERTIES
  LABELS consumer FIXTURES_SETUP consumer_install FIXTURES_REQUIRED consumer_clean)
set_tests_properties(consumer_find_package PROPERTIES FIXTURES_REQUIRED consumer_install)
