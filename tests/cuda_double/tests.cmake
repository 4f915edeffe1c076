# A GPU on the host (gpu.h), for the tests that need one. LD_PRELOAD puts the runtime in place of CUDA's, which LibTorch
# looks for in a folder of its own; the kernels are found before LibTorch's by LD_LIBRARY_PATH.
set(_double_folder ${PROJECT_BINARY_DIR}/cuda_double)

add_library(cuda_double_runtime SHARED
  cuda_double/gpu.cpp
  cuda_double/gpu.h
  cuda_double/run.h
  cuda_double/runtime.cpp)
target_link_libraries(cuda_double_runtime PRIVATE dualpipe::sim fmt::fmt-header-only)
target_link_options(cuda_double_runtime PRIVATE
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cuda_double/runtime.map)
set_target_properties(cuda_double_runtime PROPERTIES OUTPUT_NAME cudart SOVERSION 13
  LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cuda_double/runtime.map)

add_library(cuda_double_torch SHARED cuda_double/torch.cpp)
target_link_libraries(cuda_double_torch PRIVATE cuda_double_runtime LibTorch::LibTorch ${LibTorchCuda_c10_cuda_LIBRARY})
set_target_properties(cuda_double_torch PROPERTIES OUTPUT_NAME torch_cuda)

set(_double_libraries cuda_double_runtime cuda_double_torch)
if(TARGET LibTorch::Nccl)
  add_library(cuda_double_nccl SHARED cuda_double/nccl.cpp exec/nccl_core.cpp exec/nccl_core.h)
  target_include_directories(cuda_double_nccl SYSTEM PRIVATE ${LibTorchCuda_NCCL_INCLUDE_DIR})
  target_link_libraries(cuda_double_nccl PRIVATE cuda_double_runtime fmt::fmt-header-only)
  set_target_properties(cuda_double_nccl PROPERTIES OUTPUT_NAME nccl SOVERSION 2)
  list(APPEND _double_libraries cuda_double_nccl)
endif()

foreach(_target IN LISTS _double_libraries)
  target_include_directories(${_target} PRIVATE ${PROJECT_SOURCE_DIR} ${DUALPIPE_INCLUDE_DIR})
  target_include_directories(${_target} SYSTEM PRIVATE ${LibTorchCuda_INCLUDE_DIR} ${LibTorchCuda_crt_INCLUDE_DIR})
  target_compile_features(${_target} PRIVATE cxx_std_20)
  set_target_properties(${_target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${_double_folder})
  dualpipe_warnings(${_target})
  add_dependencies(gpu_tests ${_target})
endforeach()

dualpipe_test_executable(cuda_double_tests fmt::fmt)
target_sources(cuda_double_tests PRIVATE cuda_double/gpu.cpp)
dualpipe_test_suites(cuda_double_tests cuda_double gpu)

# Not under sanitizers, which have to be loaded first.
if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  function(dualpipe_test_on_double name)
    add_test(NAME cuda_double_${name} COMMAND ${ARGN})
    set_tests_properties(cuda_double_${name} PROPERTIES LABELS cuda_double TIMEOUT 300 ENVIRONMENT
      "LD_PRELOAD=$<TARGET_FILE:cuda_double_runtime>;LD_LIBRARY_PATH=${_double_folder};OMP_NUM_THREADS=1;BOOST_TEST_COLOR_OUTPUT=no")
  endfunction()
  dualpipe_test_on_double(cuda gpu_tests --run_test=gpu_cuda)
  dualpipe_test_on_double(train gpu_tests --run_test=gpu_train)

  if(TARGET cuda_double_nccl)
    target_sources(gpu_tests PRIVATE cuda_double/ranks.cpp)
    dualpipe_test_on_double(nccl gpu_tests --run_test=gpu_nccl)
    dualpipe_test_on_double(ranks gpu_tests --run_test=cuda_double_ranks)
  endif()

  target_sources(gpu_tests PRIVATE cuda_double/race.cpp)
  dualpipe_test_on_double(race_without_a_wait gpu_tests --run_test=cuda_double_race/without_a_wait)
  set_tests_properties(cuda_double_race_without_a_wait PROPERTIES
    PASS_REGULAR_EXPRESSION "add on stream [0-9]+ reads memory that aten::fill_ on stream [0-9]+ wrote")
  dualpipe_test_on_double(race_of_memory gpu_tests --run_test=cuda_double_race/with_memory_that_went_back_too_early)
  set_tests_properties(cuda_double_race_of_memory PROPERTIES
    PASS_REGULAR_EXPRESSION "fill_ on stream [0-9]+ writes memory that aten::add on stream [0-9]+ read")

  dualpipe_test_on_double(run dualpipe-run --schedule dualpipe --ranks 2 --microbatches 6 --model moe --hidden 16
    --steps 1 --warmup 1 --device cuda --copy --sm-partition --check)
  set_tests_properties(cuda_double_run PROPERTIES
    PASS_REGULAR_EXPRESSION "gradients bitwise equal(.|\n)*device: double of CUDA")
endif()
