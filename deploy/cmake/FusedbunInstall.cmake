# cmake --install, and the package that find_package(fusedbun) finds: every fusedbun_library() as fusedbun::<name>, the
# umbrella fusedbun::fusedbun, the public headers, the command.
include(CMakePackageConfigHelpers)

# What a training program links: the job, the sharded optimizer and the one-process one. Without torch, what is left.
add_library(fusedbun_umbrella INTERFACE)
add_library(fusedbun::fusedbun ALIAS fusedbun_umbrella)
set_target_properties(fusedbun_umbrella PROPERTIES EXPORT_NAME fusedbun)
if(FUSEDBUN_WITH_TORCH)
  target_link_libraries(fusedbun_umbrella INTERFACE fusedbun_job fusedbun_step fusedbun_optimizer)
else()
  target_link_libraries(fusedbun_umbrella INTERFACE fusedbun_core fusedbun_plan fusedbun_changes fusedbun_comm)
endif()

get_property(_libraries GLOBAL PROPERTY FUSEDBUN_LIBRARIES)
install(TARGETS ${_libraries} fusedbun_umbrella EXPORT fusedbunTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/fusedbun)
install(EXPORT fusedbunTargets NAMESPACE fusedbun:: DESTINATION ${_package})

# The optimizer's values, the planner's and the communicator's interface are public whole; of the parts above them,
# the one header that users include.
set(_include ${CMAKE_INSTALL_INCLUDEDIR}/fusedbun)
foreach(_folder core dist/plan)
  install(DIRECTORY ${_folder}/ DESTINATION ${_include}/${_folder} FILES_MATCHING PATTERN "*.h")
endforeach()
foreach(_header dist/comm/communicator.h dist/comm/failure.h dist/comm/work.h dist/comm/local.h dist/changes/change.h dist/changes/control_port.h
                dist/step/sharded_fusedbun.h dist/step/placement.h dist/snapshot/contents.h dist/checkpoint/digest.h
                dist/snapshot/checkpointer.h dist/job/job.h)
  cmake_path(GET _header PARENT_PATH _folder)
  install(FILES ${_header} DESTINATION ${_include}/${_folder})
endforeach()

configure_package_config_file(deploy/cmake/fusedbunConfig.cmake.in fusedbunConfig.cmake
  INSTALL_DESTINATION ${_package} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(fusedbunConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fusedbunConfig.cmake ${PROJECT_BINARY_DIR}/fusedbunConfigVersion.cmake
              deploy/cmake/FusedbunTorchTarget.cmake DESTINATION ${_package})

# The command finds its libraries where the build found them: those of the system by INSTALL_RPATH_USE_LINK_PATH, those
# of a Python environment inside the checkout, which that leaves out, by name.
if(TARGET fusedbun)
  set(_rpath)
  foreach(_part torch_cpu cudart nccl)
    if(TARGET fusedbun::${_part})
      get_target_property(_library fusedbun::${_part} IMPORTED_LOCATION)
      cmake_path(GET _library PARENT_PATH _folder)
      list(APPEND _rpath ${_folder})
    endif()
  endforeach()
  set(_programs fusedbun)
  if(TARGET fusedbun-torch)
    list(APPEND _programs fusedbun-torch)
  endif()
  set_target_properties(${_programs} PROPERTIES INSTALL_RPATH "${_rpath}" INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS ${_programs} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
