# LibTorch's part for CUDA, with the headers of CUDA and, where it is there, NCCL: all of the Torch that
# find_package(LibTorch) has found before.
#
#   LibTorch::Cuda          imported target: c10_cuda, torch_cuda, cudart
#   LibTorch::Nccl          imported target, if NCCL was found
#   LibTorchCuda_MISSING    what is not there, in words; empty if all is
#   LibTorchCuda_INCLUDE_DIR, LibTorchCuda_NCCL_INCLUDE_DIR
#
# CUDA's headers are looked for where pip puts them, in nvidia/cu13 (or cu12) next to torch, then in the CUDA toolkit. The
# driver (libcuda.so.1) is not needed: it is there only on machines with a GPU.

get_filename_component(_torch_root "${LibTorch_INCLUDE_DIR}" DIRECTORY)
set(LibTorchCuda_MISSING)
set(_torch_pip_roots ${_torch_root}/../nvidia/cu13 ${_torch_root}/../nvidia/cuda_runtime)
find_package(CUDAToolkit QUIET)

foreach(_library IN ITEMS c10_cuda torch_cuda)
  find_library(LibTorchCuda_${_library}_LIBRARY ${_library} PATHS ${_torch_root}/lib NO_DEFAULT_PATH)
  mark_as_advanced(LibTorchCuda_${_library}_LIBRARY)
  if(NOT LibTorchCuda_${_library}_LIBRARY)
    list(APPEND LibTorchCuda_MISSING "lib${_library}.so (this LibTorch is for the CPU)")
  endif()
endforeach()

find_path(LibTorchCuda_INCLUDE_DIR cuda_runtime_api.h
  PATHS ${_torch_pip_roots} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include NO_DEFAULT_PATH)
# pip installs no libcudart.so without a version.
find_library(LibTorchCuda_cudart_LIBRARY NAMES libcudart.so.13 libcudart.so.12 cudart
  PATHS ${_torch_pip_roots} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib NO_DEFAULT_PATH)
find_path(LibTorchCuda_NCCL_INCLUDE_DIR nccl.h
  PATHS ${_torch_root}/../nvidia/nccl ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
find_library(LibTorchCuda_nccl_LIBRARY NAMES libnccl.so.2 nccl
  PATHS ${_torch_root}/../nvidia/nccl ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib)
# pip has these in a package of their own.
find_path(LibTorchCuda_crt_INCLUDE_DIR crt/host_defines.h
  PATHS ${_torch_pip_roots} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
mark_as_advanced(LibTorchCuda_INCLUDE_DIR LibTorchCuda_crt_INCLUDE_DIR LibTorchCuda_cudart_LIBRARY LibTorchCuda_NCCL_INCLUDE_DIR
  LibTorchCuda_nccl_LIBRARY)
if(NOT LibTorchCuda_INCLUDE_DIR OR NOT EXISTS "${LibTorchCuda_INCLUDE_DIR}/cuda.h")
  list(APPEND LibTorchCuda_MISSING "CUDA's headers (cuda.h, cuda_runtime_api.h)")
endif()
if(NOT LibTorchCuda_crt_INCLUDE_DIR)
  list(APPEND LibTorchCuda_MISSING "CUDA's header crt/host_defines.h (pip's nvidia-cuda-crt)")
endif()
if(NOT LibTorchCuda_cudart_LIBRARY)
  list(APPEND LibTorchCuda_MISSING "libcudart.so")
endif()
list(JOIN LibTorchCuda_MISSING ", " LibTorchCuda_MISSING)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorchCuda
  REQUIRED_VARS LibTorchCuda_torch_cuda_LIBRARY LibTorchCuda_c10_cuda_LIBRARY LibTorchCuda_INCLUDE_DIR
    LibTorchCuda_crt_INCLUDE_DIR LibTorchCuda_cudart_LIBRARY
  REASON_FAILURE_MESSAGE "${LibTorchCuda_MISSING}")

if(LibTorchCuda_FOUND AND NOT TARGET LibTorch::Cuda)
  add_library(LibTorch::Cuda INTERFACE IMPORTED)
  target_include_directories(LibTorch::Cuda SYSTEM INTERFACE
    ${LibTorchCuda_INCLUDE_DIR} ${LibTorchCuda_crt_INCLUDE_DIR})
  # Kept though nothing refers to it: it registers its kernels when it is loaded. What it needs in turn may be missing
  # where this is built, but not where it runs.
  target_link_libraries(LibTorch::Cuda INTERFACE LibTorch::LibTorch ${LibTorchCuda_c10_cuda_LIBRARY}
    ${LibTorchCuda_cudart_LIBRARY})
  target_link_options(LibTorch::Cuda INTERFACE
    -Wl,--push-state,--no-as-needed ${LibTorchCuda_torch_cuda_LIBRARY} -Wl,--pop-state -Wl,--allow-shlib-undefined)
endif()
if(LibTorchCuda_NCCL_INCLUDE_DIR AND LibTorchCuda_nccl_LIBRARY AND NOT TARGET LibTorch::Nccl)
  add_library(LibTorch::Nccl INTERFACE IMPORTED)
  target_include_directories(LibTorch::Nccl SYSTEM INTERFACE ${LibTorchCuda_NCCL_INCLUDE_DIR})
  target_link_libraries(LibTorch::Nccl INTERFACE ${LibTorchCuda_nccl_LIBRARY})
endif()
