# fusedbun::torch_cpu: LibTorch's CPU half as one imported target, from an installed torch wheel.
#
# find_package(Torch) of a CUDA wheel insists on a CUDA toolkit even for CPU use; this does not. It defines no
# target named `torch`, so it lives beside a user's own find_package(Torch). Used by the build and by the
# installed package. Input: FUSEDBUN_TORCH_DIR (the wheel's `torch` folder). Sets FUSEDBUN_TORCH_VERSION.
if(TARGET fusedbun::torch_cpu)
  return()
endif()
if(NOT EXISTS "${FUSEDBUN_TORCH_DIR}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "no LibTorch in '${FUSEDBUN_TORCH_DIR}': set FUSEDBUN_TORCH_DIR to the torch folder of a wheel "
                      "(./deploy/quickstart.sh installs one into .venv)")
endif()
file(READ "${FUSEDBUN_TORCH_DIR}/version.py" _fusedbun_torch_version)
string(REGEX MATCH "__version__ = '([0-9]+\\.[0-9]+)" _ "${_fusedbun_torch_version}")
set(FUSEDBUN_TORCH_VERSION ${CMAKE_MATCH_1})
if(FUSEDBUN_TORCH_VERSION VERSION_LESS 2.11 OR FUSEDBUN_TORCH_VERSION VERSION_GREATER 2.15)
  message(WARNING "torch ${FUSEDBUN_TORCH_VERSION} was not tried; 2.11 to 2.15 are")
endif()

find_package(Threads REQUIRED)
add_library(fusedbun::c10 SHARED IMPORTED)
set_target_properties(fusedbun::c10 PROPERTIES IMPORTED_LOCATION "${FUSEDBUN_TORCH_DIR}/lib/libc10.so")
add_library(fusedbun::torch_cpu SHARED IMPORTED)
set_target_properties(fusedbun::torch_cpu PROPERTIES
  IMPORTED_LOCATION "${FUSEDBUN_TORCH_DIR}/lib/libtorch_cpu.so"
  INTERFACE_INCLUDE_DIRECTORIES
    "${FUSEDBUN_TORCH_DIR}/include;${FUSEDBUN_TORCH_DIR}/include/torch/csrc/api/include"
  INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO"
  INTERFACE_LINK_LIBRARIES "fusedbun::c10;Threads::Threads")

# at::parallel_for is a template over OpenMP: without -fopenmp the code that calls it runs on one thread and nobody says so.
# The wheel's own libgomp, because a second one in the process would have threads of its own.
add_library(fusedbun::torch_threads INTERFACE IMPORTED)
file(GLOB _fusedbun_gomp "${FUSEDBUN_TORCH_DIR}/lib/libgomp*.so*" "${FUSEDBUN_TORCH_DIR}.libs/libgomp*.so*")
list(GET _fusedbun_gomp 0 _fusedbun_gomp)
set_target_properties(fusedbun::torch_threads PROPERTIES
  INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CXX>:-fopenmp>"
  INTERFACE_LINK_LIBRARIES "fusedbun::torch_cpu;${_fusedbun_gomp}")
