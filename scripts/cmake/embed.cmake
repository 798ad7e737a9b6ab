# YAML that ships inside the binary: chat templates and configs/base. embed.cmake writes one .cpp with
# the files as string literals; csrc/base/embedded.h declares the look-up.
file(GLOB_RECURSE _embed_files CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/configs/base/*.yaml ${PROJECT_SOURCE_DIR}/configs/templates/*.yaml)
set(_embed_cpp ${CMAKE_BINARY_DIR}/embedded.cpp)
add_custom_command(OUTPUT ${_embed_cpp}
  COMMAND ${CMAKE_COMMAND} -DOUT=${_embed_cpp} -DROOT=${PROJECT_SOURCE_DIR}/configs
          "-DFILES=${_embed_files}" -P ${PROJECT_SOURCE_DIR}/scripts/cmake/embed_write.cmake
  DEPENDS ${_embed_files} ${PROJECT_SOURCE_DIR}/scripts/cmake/embed_write.cmake VERBATIM)
add_library(mgm_embedded STATIC ${_embed_cpp})
target_include_directories(mgm_embedded PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
