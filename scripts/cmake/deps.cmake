# Third-party libraries. Every one is found the same way, as a header and a library, first under
# MGM_DEPS_DIR (an unpacked SDK bundle, see scripts/bundle.sh --sdk) and then on the system, so that
# a host without the Debian packages builds with the same lines.
set(MGM_DEPS_DIR "" CACHE PATH "Unpacked SDK bundle holding include/ and lib/ of the dependencies")

# mgm_dep(NAME header [library ...]) creates the target dep::NAME.
function(mgm_dep name header)
  find_path(MGM_${name}_INCLUDE ${header} HINTS ${MGM_DEPS_DIR}/include NO_CACHE)
  if(NOT MGM_${name}_INCLUDE)
    message(FATAL_ERROR "${name}: header <${header}> not found. Run scripts/setup.sh, which names the "
                        "missing packages, or pass -DMGM_DEPS_DIR=<SDK bundle>.")
  endif()
  add_library(dep_${name} INTERFACE)
  add_library(dep::${name} ALIAS dep_${name})
  target_include_directories(dep_${name} SYSTEM INTERFACE ${MGM_${name}_INCLUDE})
  foreach(lib ${ARGN})
    find_library(MGM_${name}_${lib} NAMES ${lib} HINTS ${MGM_DEPS_DIR}/lib NO_CACHE)
    if(NOT MGM_${name}_${lib})
      message(FATAL_ERROR "${name}: library '${lib}' not found. Run scripts/setup.sh.")
    endif()
    target_link_libraries(dep_${name} INTERFACE ${MGM_${name}_${lib}})
  endforeach()
endfunction()

mgm_dep(yaml_cpp yaml-cpp/yaml.h yaml-cpp)
mgm_dep(json nlohmann/json.hpp)
mgm_dep(simdjson simdjson.h simdjson)
mgm_dep(cli11 CLI/CLI.hpp)
mgm_dep(fmt fmt/format.h fmt)
mgm_dep(spdlog spdlog/spdlog.h spdlog)
mgm_dep(sentencepiece sentencepiece_processor.h sentencepiece)
mgm_dep(jpeg jpeglib.h jpeg)
mgm_dep(png png.h png)
mgm_dep(webp webp/decode.h webp webpdemux)
mgm_dep(xxhash xxhash.h xxhash)
target_compile_definitions(dep_spdlog INTERFACE SPDLOG_COMPILED_LIB SPDLOG_FMT_EXTERNAL)
target_link_libraries(dep_spdlog INTERFACE dep::fmt)
find_package(Threads REQUIRED)
