# Finds what the build may use and says what it took. Each optional part sets FUSEDBUN_HAS_<PART>.
set(FUSEDBUN_PYTHON_ENV ${PROJECT_SOURCE_DIR}/.venv CACHE PATH "Python environment that holds the wheels")
file(GLOB _site_packages ${FUSEDBUN_PYTHON_ENV}/lib/python3*/site-packages)
find_package(Threads REQUIRED)

# fusedbun_part(<PART> <found> <what is missing>): applies AUTO, ON, OFF.
macro(fusedbun_part part found missing)
  if(FUSEDBUN_WITH_${part} STREQUAL "AUTO" OR FUSEDBUN_WITH_${part})
    set(FUSEDBUN_HAS_${part} ${found})
    if(NOT ${found} AND NOT FUSEDBUN_WITH_${part} STREQUAL "AUTO")
      message(FATAL_ERROR "FUSEDBUN_WITH_${part}=ON, but ${missing}")
    endif()
  else()
    set(FUSEDBUN_HAS_${part} OFF)
  endif()
  if(FUSEDBUN_HAS_${part})
    message(STATUS "fusedbun: ${part} on")
  else()
    message(STATUS "fusedbun: ${part} off (FUSEDBUN_WITH_${part}=${FUSEDBUN_WITH_${part}}; ${missing})")
  endif()
endmacro()

# --- LibTorch, from the wheel -------------------------------------------------------------------
if(FUSEDBUN_WITH_TORCH)
  find_path(FUSEDBUN_TORCH_DIR lib/libtorch_cpu.so PATHS ${_site_packages}/torch NO_DEFAULT_PATH
            DOC "The torch folder of an installed wheel")
  include(FusedbunTorchTarget)
  # c10d's gloo header includes gloo's own, which the wheel lacks; Debian's libgloo-dev has them. Headers only:
  # the code is inside libtorch_cpu, and Debian's libgloo must never be linked beside it.
  find_path(FUSEDBUN_GLOO_INCLUDE gloo/algorithm.h REQUIRED)
  find_package(nlohmann_json REQUIRED)
endif()
find_path(FUSEDBUN_XXHASH_INCLUDE xxhash.h REQUIRED)

# --- CUDA: nvcc of the wheel's CUDA, so that one process holds one CUDA runtime -------------------
set(_cuda_root ${_site_packages}/nvidia/cu13)
if(FUSEDBUN_WITH_TORCH AND EXISTS ${_cuda_root}/bin/nvcc)
  set(_cuda ON)
else()
  set(_cuda OFF)
endif()
fusedbun_part(CUDA ${_cuda} "the wheel cuda-toolkit[nvcc] is not in ${FUSEDBUN_PYTHON_ENV}")
if(FUSEDBUN_HAS_CUDA)
  set(FUSEDBUN_CUDA_ROOT ${_cuda_root})
  set(CMAKE_CUDA_COMPILER ${_cuda_root}/bin/nvcc)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # libtorch_cpu already brings the wheel's libcudart
  enable_language(CUDA)
endif()

# --- NCCL of the wheel, first on the link path ----------------------------------------------------
file(GLOB _nccl_library ${_site_packages}/nvidia/nccl/lib/libnccl.so.2 ${_cuda_root}/lib/libnccl.so.2)
file(GLOB _nccl_header ${_site_packages}/nvidia/nccl/include/nccl.h ${_cuda_root}/include/nccl.h)
if(_nccl_library AND _nccl_header AND EXISTS ${_cuda_root}/include/cuda_runtime_api.h)
  set(_nccl ON)
else()
  set(_nccl OFF)
endif()
fusedbun_part(NCCL ${_nccl} "the wheel nvidia-nccl-cu13 is not in ${FUSEDBUN_PYTHON_ENV}")
if(FUSEDBUN_HAS_NCCL)
  list(GET _nccl_library 0 _nccl_library)
  list(GET _nccl_header 0 _nccl_header)
  cmake_path(GET _nccl_header PARENT_PATH _nccl_include)
  add_library(fusedbun::nccl SHARED IMPORTED)
  set_target_properties(fusedbun::nccl PROPERTIES IMPORTED_LOCATION ${_nccl_library}
    INTERFACE_INCLUDE_DIRECTORIES "${_nccl_include};${_cuda_root}/include"
    INTERFACE_LINK_LIBRARIES ${_cuda_root}/lib/libcudart.so.13)
endif()

# --- Open MPI -------------------------------------------------------------------------------------
find_package(MPI COMPONENTS C QUIET)
fusedbun_part(MPI ${MPI_C_FOUND} "libopenmpi-dev is not installed")

# --- gRPC and protobuf ----------------------------------------------------------------------------
find_package(Protobuf QUIET)
find_package(gRPC CONFIG QUIET)
if(FUSEDBUN_WITH_TORCH AND Protobuf_FOUND AND gRPC_FOUND)
  set(_control ON)
else()
  set(_control OFF)
endif()
fusedbun_part(CONTROL ${_control} "libgrpc++-dev, libprotobuf-dev and protobuf-compiler-grpc are not installed")
