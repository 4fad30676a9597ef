# How tests are added.
find_package(GTest REQUIRED)
include(GoogleTest)

# fusedbun_add_test(<name> SOURCES ... LIBRARIES ... [TIMEOUT s] [LABELS ...]): one GoogleTest binary, each of its
# tests known to ctest by name. Label `fast` (the default) is the inner loop: no child processes.
function(fusedbun_add_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LIBRARIES;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS fast)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} fusedbun_compile GTest::gtest_main GTest::gmock)
  # Listing tests starts the program; with LibTorch that takes a second, so it happens when ctest runs, not in the build.
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 TEST_PREFIX "${name}."
    PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}" ENVIRONMENT "${arg_ENVIRONMENT}")
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
    set_tests_properties(${name}.${ranks}ranks PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "processes"
      PROCESSORS 2 ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
  endforeach()
endfunction()
