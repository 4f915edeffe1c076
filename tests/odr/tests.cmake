# No two files that are linked define one name differently: the compiler does not see it, and the linker takes either.
# GCC compares what all files define where it would optimise them as one (DUALPIPE_CHECK_ODR has it written); it stops
# before it does.
function(dualpipe_test_odr name)
  set(objects)
  foreach(target IN LISTS ARGN)
    # A precompiled header counts as an object.
    list(APPEND objects "$<FILTER:$<TARGET_OBJECTS:${target}>,EXCLUDE,[.]gch$>")
  endforeach()
  add_test(NAME odr_${name} COMMAND_EXPAND_LISTS
    COMMAND ${CMAKE_CXX_COMPILER} -O0 -flto -Wodr -Werror=odr -r -flinker-output=rel ${objects} -o odr_${name}.o)
  set_tests_properties(odr_${name} PROPERTIES LABELS odr TIMEOUT 300)
endfunction()

# That it finds one.
add_library(odr_fault OBJECT odr/one.cpp odr/other.cpp)
set_target_properties(odr_fault PROPERTIES UNITY_BUILD OFF)  # in one file the compiler would see it
dualpipe_test_odr(fault odr_fault)
set_tests_properties(odr_fault PROPERTIES PASS_REGULAR_EXPRESSION "violates the C\\+\\+ One Definition Rule")

dualpipe_test_odr(sim_tests sim_tests test_support dualpipe_sim)
if(TARGET dualpipe-sim)
  dualpipe_test_odr(sim dualpipe-sim dualpipe_tools dualpipe_sim)
endif()
if(TARGET dualpipe_exec)
  foreach(tests IN ITEMS exec_tests thread_tests)
    dualpipe_test_odr(${tests} ${tests} exec_test_support test_support dualpipe_exec dualpipe_sim)
  endforeach()
  if(TARGET dualpipe-run)
    dualpipe_test_odr(run dualpipe-run dualpipe_tools dualpipe_exec dualpipe_sim)
  endif()
  if(TARGET dualpipe_cuda)
    dualpipe_test_odr(cuda dualpipe_cuda dualpipe_exec dualpipe_sim)
  endif()
endif()
