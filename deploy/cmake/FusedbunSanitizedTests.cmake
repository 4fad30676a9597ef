# The tests that sanitizers run over LibTorch, whose wheel is built without them: target sanitized_tests, label sanitized.
set(_fusedbun_sanitized_tests
  low_precision_test segment_step_test fusedbun_test golden_test
  comm_gloo_test comm_gloo_process_group_test
  sharded_equality_test sharded_behaviour_test step_pieces_test wire_bytes_test user_programs_test
  bucket_local_test bucket_gloo_test snapshot_test)

set(FUSEDBUN_SANITIZED_OVER_TORCH OFF)
if(FUSEDBUN_WITH_TORCH AND NOT FUSEDBUN_SANITIZE STREQUAL "off")
  set(FUSEDBUN_SANITIZED_OVER_TORCH ON)
  add_custom_target(sanitized_tests)
endif()

# fusedbun_sanitize(<target> <tests>...): how a sanitized program over LibTorch is linked, and how its tests run.
function(fusedbun_sanitize target)
  add_dependencies(sanitized_tests ${target})
  set(folder ${PROJECT_SOURCE_DIR}/tests/sanitizers)
  if(FUSEDBUN_SANITIZE STREQUAL "thread")
    target_sources(${target} PRIVATE ${folder}/openmp_edges.cpp)
    target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS} fusedbun::torch_threads)
    set(environment "TSAN_OPTIONS=suppressions=${folder}/thread.supp:second_deadlock_stack=1")
  else()
    # LibTorch's libraries define some symbols several times, which is their own.
    set(environment "ASAN_OPTIONS=detect_odr_violation=0:detect_leaks=1" "UBSAN_OPTIONS=print_stacktrace=1"
                    "LSAN_OPTIONS=suppressions=${folder}/leak.supp")
  endif()
  set_property(TEST ${ARGN} APPEND PROPERTY ENVIRONMENT ${environment})
  set_property(TEST ${ARGN} APPEND PROPERTY LABELS sanitized)
  set_property(TEST ${ARGN} PROPERTY TIMEOUT 900)
endfunction()

# fusedbun_sanitize_test(<name>): does so if <name> is in the list above.
function(fusedbun_sanitize_test name)
  if(name IN_LIST _fusedbun_sanitized_tests)
    fusedbun_sanitize(${name} ${name})
  endif()
endfunction()
