# How tests are added. Labels: fast (the inner loop: no child processes; the default), processes, slow.
find_package(GTest REQUIRED)
include(GoogleTest)
include(FusedbunSanitizedTests)

# Headers that most tests include are read once and kept as the compiler has them: LibTorch's take it some ten seconds, GoogleTest's two.
# Of the project's own there is none among them, or each change would compile every test anew. One program owns them for all tests, which
# are compiled as it is. A test includes what it uses all the same: without this option the same sources compile.
option(FUSEDBUN_PRECOMPILE_TESTS "Precompile the headers of LibTorch and GoogleTest for the tests" ON)
set(_fusedbun_test_headers <gmock/gmock.h> <gtest/gtest.h> <algorithm> <chrono> <filesystem> <fstream> <functional> <map> <memory> <optional>
    <random> <regex> <sstream> <string> <thread> <vector>)
set(_fusedbun_torch_test_headers <ATen/ATen.h> <torch/nn/module.h> <torch/optim/optimizer.h> <torch/ordered_dict.h> <torch/serialize.h>)
if(FUSEDBUN_PRECOMPILE_TESTS)
  file(WRITE ${PROJECT_BINARY_DIR}/precompiled.cpp "")
  function(_fusedbun_precompile name libraries headers)
    add_executable(${name} ${PROJECT_BINARY_DIR}/precompiled.cpp)
    target_link_libraries(${name} PRIVATE ${libraries} fusedbun_compile GTest::gtest_main GTest::gmock)
    target_compile_features(${name} PRIVATE cxx_std_20)
    target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1> -pthread)
    target_precompile_headers(${name} PRIVATE ${headers})
  endfunction()
  _fusedbun_precompile(fusedbun_test_headers "" "${_fusedbun_test_headers}")
  if(FUSEDBUN_WITH_TORCH)
    _fusedbun_precompile(fusedbun_torch_test_headers fusedbun::torch_cpu "${_fusedbun_torch_test_headers};${_fusedbun_test_headers}")
  endif()
endif()

# Whether a target is linked with LibTorch's headers, through whatever it names.
function(_fusedbun_sees_torch target result)
  set(${result} OFF PARENT_SCOPE)
  if(target STREQUAL "fusedbun::torch_cpu")
    set(${result} ON PARENT_SCOPE)
    return()
  elseif(NOT TARGET ${target})
    return()
  endif()
  get_target_property(libraries ${target} INTERFACE_LINK_LIBRARIES)
  foreach(library IN LISTS libraries)
    _fusedbun_sees_torch("${library}" sees)
    if(sees)
      set(${result} ON PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# fusedbun_compile_as_test(<target>): what tests are made of, and programs that tests start, is compiled as they are.
function(fusedbun_compile_as_test target)
  # What is tested is optimised as users have it; the tests themselves need not be, and compile in two thirds of the time.
  # Some libraries ask for -pthread, which is a macro too; with precompiled headers all tests must have the same.
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1> -pthread)
  target_compile_options(${target} PRIVATE $<TARGET_PROPERTY:GTest::gtest,INTERFACE_COMPILE_OPTIONS>)
  if(NOT FUSEDBUN_PRECOMPILE_TESTS)
    return()
  endif()
  set(headers fusedbun_test_headers)
  get_target_property(libraries ${target} LINK_LIBRARIES)
  foreach(library IN LISTS libraries)
    _fusedbun_sees_torch(${library} sees_torch)
    if(sees_torch)
      set(headers fusedbun_torch_test_headers)
    endif()
  endforeach()
  get_target_property(type ${target} TYPE)
  if(NOT type STREQUAL "EXECUTABLE")  # the headers are compiled for programs
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIE)
  endif()
  target_precompile_headers(${target} REUSE_FROM ${headers})
endfunction()

# Tests that start processes count as two processors, so that ctest does not starve those with time-outs.
set(_fusedbun_processors_of_processes 2)

# fusedbun_add_test(<name> SOURCES ... LIBRARIES ... [TIMEOUT s] [LABELS ...] [ENVIRONMENT NAME=VALUE ...] [WHOLE]): one
# GoogleTest binary, each of its tests known to ctest as <name>.<suite>.<test>. WHOLE: the binary is one test of ctest, for
# many short tests in a program that starts slowly (LibTorch: a third of a second each).
function(fusedbun_add_test name)
  cmake_parse_arguments(arg "WHOLE" "TIMEOUT" "SOURCES;LIBRARIES;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(FUSEDBUN_SANITIZE)
    math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS fast)
  endif()
  set(processors 1)
  if("processes" IN_LIST arg_LABELS)
    set(processors ${_fusedbun_processors_of_processes})
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} fusedbun_compile GTest::gtest_main GTest::gmock)
  fusedbun_compile_as_test(${name})
  if(arg_WHOLE OR FUSEDBUN_SANITIZED_OVER_TORCH)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} PROCESSORS ${processors}
      LABELS "${arg_LABELS}" ENVIRONMENT "${arg_ENVIRONMENT}")
    if(FUSEDBUN_SANITIZED_OVER_TORCH)
      fusedbun_sanitize_test(${name})
    endif()
    return()
  endif()
  # Listing tests starts the program; with LibTorch that takes a while, so it happens when ctest runs, not in the build.
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 TEST_PREFIX "${name}."
                       TEST_LIST tests_of_${name} NO_PRETTY_VALUES)
  # Its PROPERTIES argument would take lists apart; a file that ctest reads after the discovery keeps them whole.
  set(properties ${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake)
  file(WRITE ${properties} "if(tests_of_${name})
  set_tests_properties(\${tests_of_${name}} PROPERTIES TIMEOUT ${arg_TIMEOUT} PROCESSORS ${processors}
    LABELS [==[${arg_LABELS}]==] ENVIRONMENT [==[${arg_ENVIRONMENT}]==])
endif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${properties})
endfunction()

# fusedbun_add_mpi_test(<name> RANKS 1 2 3 ... SOURCES ... LIBRARIES ... [TIMEOUT s]): runs one binary, which has its
# own main, under mpirun once per rank count.
function(fusedbun_add_mpi_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "RANKS;SOURCES;LIBRARIES" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} fusedbun_compile GTest::gtest GTest::gmock)
  foreach(ranks IN LISTS arg_RANKS)
    add_test(NAME ${name}.${ranks}ranks
             COMMAND ${MPIEXEC_EXECUTABLE} -np ${ranks} --oversubscribe $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.${ranks}ranks PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS processes
      PROCESSORS ${_fusedbun_processors_of_processes}
      ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
  endforeach()
endfunction()
