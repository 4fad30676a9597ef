# How tests are added. Labels: fast (the inner loop: no child processes; the default), processes, slow.
find_package(GTest REQUIRED)
include(GoogleTest)
include(FusedbunSanitizedTests)

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
  # What is tested is optimised as users have it; the tests themselves need not be, and compile in two thirds of the time.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
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
