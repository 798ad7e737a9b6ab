# LibTorch 2.11.0 from a Python wheel, as our own imported target: find_package(Torch) wants a CUDA
# toolkit even for CPU-only use and ignores CMAKE_CUDA_ARCHITECTURES.
#   torch::cpu   headers, libtorch_cpu and libc10
#   torch::cuda  the same plus libtorch_cuda and libc10_cuda (only with MGM_CUDA)
# Where it looks: -DTorch_DIR or $Torch_DIR (<torch>/share/cmake/Torch), then what scripts/setup.sh
# wrote down in .deps/torch_path.
if(NOT Torch_DIR AND DEFINED ENV{Torch_DIR})
  set(Torch_DIR $ENV{Torch_DIR})
endif()
if(Torch_DIR)
  get_filename_component(MGM_TORCH "${Torch_DIR}/../../.." ABSOLUTE)
elseif(EXISTS ${PROJECT_SOURCE_DIR}/.deps/torch_path)
  file(READ ${PROJECT_SOURCE_DIR}/.deps/torch_path MGM_TORCH)
  string(STRIP "${MGM_TORCH}" MGM_TORCH)
endif()
if(NOT MGM_TORCH OR NOT EXISTS ${MGM_TORCH}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LibTorch not found. Run scripts/setup.sh, or pass "
                      "-DTorch_DIR=<site-packages>/torch/share/cmake/Torch of torch 2.11.0.")
endif()
file(STRINGS ${MGM_TORCH}/version.py _torch_version REGEX "^__version__")
if(NOT _torch_version MATCHES "2\\.11\\.0")
  message(FATAL_ERROR "${MGM_TORCH} is ${_torch_version}; mgm is built and tested against torch 2.11.0.")
endif()
message(STATUS "LibTorch: ${MGM_TORCH}")
get_filename_component(MGM_SITE_PACKAGES ${MGM_TORCH}/.. ABSOLUTE)

add_library(torch_cpu_headers INTERFACE)
target_include_directories(torch_cpu_headers SYSTEM INTERFACE
  ${MGM_TORCH}/include ${MGM_TORCH}/include/torch/csrc/api/include)
target_compile_definitions(torch_cpu_headers INTERFACE USE_DISTRIBUTED AT_PER_OPERATOR_HEADERS)
target_compile_options(torch_cpu_headers INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-interference-size>
  # Without it at::parallel_for is a plain loop.
  $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
set(_torch_libs ${MGM_TORCH}/lib/libtorch_cpu.so ${MGM_TORCH}/lib/libc10.so ${MGM_TORCH}/lib/libgomp.so.1)
if(MGM_CUDA)
  find_path(MGM_NCCL_INCLUDE nccl.h
    HINTS ${MGM_SITE_PACKAGES}/nvidia/nccl/include ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} REQUIRED)
  target_include_directories(torch_cpu_headers SYSTEM INTERFACE
    ${MGM_NCCL_INCLUDE} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_definitions(torch_cpu_headers INTERFACE USE_C10D_NCCL)
  list(APPEND _torch_libs ${MGM_TORCH}/lib/libtorch_cuda.so ${MGM_TORCH}/lib/libc10_cuda.so
       ${MGM_TORCH}/lib/libtorch.so)
endif()
# --no-as-needed: libtorch_cuda registers its kernels from static initialisers, no symbol asks for it.
add_library(torch_wheel INTERFACE)
target_link_libraries(torch_wheel INTERFACE torch_cpu_headers
  -Wl,--no-as-needed ${_torch_libs} -Wl,--as-needed)
target_link_options(torch_wheel INTERFACE -Wl,-rpath,${MGM_TORCH}/lib)
