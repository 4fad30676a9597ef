# How every target of the project is compiled.

# One spelling of includes inside and outside the tree: #include "fusedbun/core/options.h".
# In the build tree `fusedbun` is a link to the source root.
set(FUSEDBUN_INCLUDE_ROOT ${PROJECT_BINARY_DIR}/include)
file(MAKE_DIRECTORY ${FUSEDBUN_INCLUDE_ROOT})
file(CREATE_LINK ${PROJECT_SOURCE_DIR} ${FUSEDBUN_INCLUDE_ROOT}/fusedbun SYMBOLIC)

find_program(FUSEDBUN_CCACHE ccache)
if(FUSEDBUN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # base_dir makes paths relative, so that two build folders of one checkout share results. What is compiled with precompiled headers is
  # kept under that sloppiness alone; no source has __TIME__.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
      CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${FUSEDBUN_CCACHE})
endif()

add_library(fusedbun_compile INTERFACE)
target_compile_options(fusedbun_compile INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Wpedantic>"
  # The host code that nvcc makes is not pedantic.
  "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler -Wall,-Wextra>"
  # Kernels evaluate the same constexpr functions as the host (core/loss_scale.h).
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
  # GCC 12 warns of overlapping copies in "text" + std::string, falsely (GCC bug 105651).
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  # The optimizer's arithmetic must give the same bits on every instruction set: no fused multiply-add.
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
if(FUSEDBUN_WARNINGS_ARE_ERRORS)
  target_compile_options(fusedbun_compile INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-Werror> "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:--Werror all-warnings>")
endif()
# Assertions name files relative to the project, not where it was built. ccache's base_dir has the same effect, and a path in
# the command line would keep two checkouts from sharing results; nvcc runs without ccache.
set(source_prefix_maps -ffile-prefix-map=${FUSEDBUN_INCLUDE_ROOT}/fusedbun/= -ffile-prefix-map=${PROJECT_SOURCE_DIR}/=)
if(NOT FUSEDBUN_CCACHE OR FUSEDBUN_JOIN_SOURCES)  # joined sources include one another by whole paths
  target_compile_options(fusedbun_compile INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${source_prefix_maps}>")
endif()
string(REPLACE ";" "," source_prefix_maps "${source_prefix_maps}")
target_compile_options(fusedbun_compile INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler ${source_prefix_maps}>")
target_include_directories(fusedbun_compile INTERFACE ${FUSEDBUN_INCLUDE_ROOT})
if(FUSEDBUN_SANITIZE STREQUAL "address")
  # Null pointers and ends of objects are the address sanitizer's to find. Calls in place of code at each access: the vector code compiles
  # in half the time.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize=null,object-size,vptr -fno-sanitize-recover=all -fno-omit-frame-pointer
                      "SHELL:--param asan-instrumentation-with-call-threshold=0")
  add_link_options(-fsanitize=address,undefined)
elseif(FUSEDBUN_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(NOT FUSEDBUN_SANITIZE STREQUAL "off")
  message(FATAL_ERROR "FUSEDBUN_SANITIZE is '${FUSEDBUN_SANITIZE}': use off, address or thread")
endif()
if(NOT FUSEDBUN_SANITIZE STREQUAL "off")
  # Instrumented code hides from GCC that std::function and std::regex are initialised.
  target_compile_options(fusedbun_compile INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
endif()

# fusedbun_library(<name> SOURCES ... [PUBLIC libs...] [PRIVATE libs...]) makes the static library
# fusedbun_<name>, known as fusedbun::<name>, installed and exported with the package.
function(fusedbun_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(fusedbun_${name} STATIC ${arg_SOURCES})
  add_library(fusedbun::${name} ALIAS fusedbun_${name})
  set_target_properties(fusedbun_${name} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(fusedbun_${name} PUBLIC cxx_std_20)
  target_include_directories(fusedbun_${name} PUBLIC
    $<BUILD_INTERFACE:${FUSEDBUN_INCLUDE_ROOT}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(fusedbun_${name} PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE}
    $<BUILD_INTERFACE:fusedbun_compile>)
  set_property(GLOBAL APPEND PROPERTY FUSEDBUN_LIBRARIES fusedbun_${name})
endfunction()
