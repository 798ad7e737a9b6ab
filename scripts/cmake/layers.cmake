# The layers of the tree. csrc/<name>/*.cpp becomes the library mgm_<name>; the same table drives
# tests/unit/layer_rules.py, which reads the #includes, so CMake and the rule cannot drift apart.

# How files that see torch are compiled: with the shared precompiled header, and two to a translation
# unit, since the templates of ATen's inline functions cost each one four seconds. Names in anonymous
# namespaces of neighbours must differ; the compiler says where they do not.
function(mgm_torch_sources target)
  target_precompile_headers(${target} REUSE_FROM mgm_pch)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 2)
endfunction()

# mgm_layer(name [TORCH] [LAYERS base config ...] [DEPS dep::x ...])
function(mgm_layer name)
  cmake_parse_arguments(L "TORCH" "" "LAYERS;DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/${name}/*.cpp)
  if(MGM_CUDA)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/${name}/*.cu)
    list(APPEND sources ${cuda_sources})
  endif()
  if(NOT sources)
    add_library(mgm_${name} INTERFACE)
    set(scope INTERFACE)
  else()
    add_library(mgm_${name} STATIC ${sources})
    set(scope PUBLIC)
    target_compile_options(mgm_${name} PRIVATE ${MGM_WARNINGS})
    if(L_TORCH)
      mgm_torch_sources(mgm_${name})
    endif()
  endif()
  target_include_directories(mgm_${name} ${scope} ${PROJECT_SOURCE_DIR}/csrc)
  if(L_TORCH)
    target_link_libraries(mgm_${name} ${scope} torch_wheel)
  endif()
  list(TRANSFORM L_LAYERS PREPEND mgm_)
  target_link_libraries(mgm_${name} ${scope} ${L_LAYERS} ${L_DEPS})
endfunction()

# mgm_test(name label dir libs...): one gtest binary from every *_test.cpp below dir.
function(mgm_test name label dir)
  cmake_parse_arguments(T "TORCH" "" "LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${dir}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${name} ${sources})
  target_compile_options(${name} PRIVATE ${MGM_WARNINGS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE MGM_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${T_LIBS} dep::gtest)
  if(T_TORCH)
    mgm_torch_sources(${name})
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  # Two tests at a time on two cores: threads that wait must sleep, not spin.
  set_tests_properties(${name} PROPERTIES LABELS ${label}
    ENVIRONMENT "OMP_NUM_THREADS=2;OMP_WAIT_POLICY=passive")
endfunction()
