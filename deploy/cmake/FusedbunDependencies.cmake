# Finds what the build may use and says what it took. Each optional part sets FUSEDBUN_HAS_<PART>.
set(FUSEDBUN_PYTHON_ENV ${PROJECT_SOURCE_DIR}/.venv CACHE PATH "Python environment that holds the wheels")
file(GLOB _site_packages ${FUSEDBUN_PYTHON_ENV}/lib/python3*/site-packages)
find_package(Threads REQUIRED)

# fusedbun_part(<PART> <what is missing> <condition>...): applies AUTO, ON, OFF.
macro(fusedbun_part part missing)
  set(FUSEDBUN_HAS_${part} OFF)
  if(NOT FUSEDBUN_WITH_${part} STREQUAL "AUTO" AND NOT FUSEDBUN_WITH_${part})
    message(STATUS "fusedbun: ${part} off, as asked")
  elseif(${ARGN})
    set(FUSEDBUN_HAS_${part} ON)
    message(STATUS "fusedbun: ${part} on")
  elseif(FUSEDBUN_WITH_${part} STREQUAL "AUTO")
    message(STATUS "fusedbun: ${part} off: ${missing}")
  else()
    message(FATAL_ERROR "FUSEDBUN_WITH_${part}=ON, but ${missing}")
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
endif()
find_path(FUSEDBUN_XXHASH_INCLUDE xxhash.h REQUIRED)
find_package(nlohmann_json REQUIRED)

# --- CUDA: nvcc of the wheel's CUDA, so that one process holds one CUDA runtime -------------------
set(_cuda_root ${_site_packages}/nvidia/cu13)
fusedbun_part(CUDA "FUSEDBUN_WITH_TORCH is OFF, or the wheel nvidia-cuda-nvcc is not in ${FUSEDBUN_PYTHON_ENV}"
              FUSEDBUN_WITH_TORCH AND EXISTS ${_cuda_root}/bin/nvcc)
if(FUSEDBUN_HAS_CUDA)
  set(FUSEDBUN_CUDA_ROOT ${_cuda_root})
  set(CMAKE_CUDA_COMPILER ${_cuda_root}/bin/nvcc)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # libtorch_cpu already brings the wheel's libcudart
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 and later have it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
endif()

# --- The wheel's CUDA runtime, for the step and for NCCL -------------------------------------------
set(FUSEDBUN_CUDART_LIBRARY ${_cuda_root}/lib/libcudart.so.13)
if(EXISTS ${FUSEDBUN_CUDART_LIBRARY} AND EXISTS ${_cuda_root}/include/cuda_runtime_api.h)
  add_library(fusedbun::cudart SHARED IMPORTED)
  set_target_properties(fusedbun::cudart PROPERTIES IMPORTED_LOCATION ${FUSEDBUN_CUDART_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${_cuda_root}/include)
endif()

# --- NCCL of the wheel, first on the link path ----------------------------------------------------
file(GLOB _nccl_library ${_site_packages}/nvidia/nccl/lib/libnccl.so.2 ${_cuda_root}/lib/libnccl.so.2)
file(GLOB _nccl_header ${_site_packages}/nvidia/nccl/include/nccl.h ${_cuda_root}/include/nccl.h)
fusedbun_part(NCCL "the wheel nvidia-nccl-cu13 is not in ${FUSEDBUN_PYTHON_ENV}"
              _nccl_library AND _nccl_header AND TARGET fusedbun::cudart)
if(FUSEDBUN_HAS_NCCL)
  list(GET _nccl_library 0 FUSEDBUN_NCCL_LIBRARY)
  list(GET _nccl_header 0 _nccl_header)
  cmake_path(GET _nccl_header PARENT_PATH _nccl_include)
  add_library(fusedbun::nccl SHARED IMPORTED)
  set_target_properties(fusedbun::nccl PROPERTIES IMPORTED_LOCATION ${FUSEDBUN_NCCL_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${_nccl_include} INTERFACE_LINK_LIBRARIES fusedbun::cudart)
endif()

# --- Open MPI -------------------------------------------------------------------------------------
find_package(MPI COMPONENTS C QUIET)
fusedbun_part(MPI "libopenmpi-dev is not installed" MPI_C_FOUND)
if(FUSEDBUN_HAS_MPI)
  # A name of our own, which the installed package can give without FindMPI (that needs C enabled).
  add_library(fusedbun::mpi INTERFACE IMPORTED)
  target_link_libraries(fusedbun::mpi INTERFACE MPI::MPI_C)
endif()

# --- gRPC and protobuf ----------------------------------------------------------------------------
find_package(Protobuf QUIET)
find_package(gRPC CONFIG QUIET)
fusedbun_part(CONTROL "FUSEDBUN_WITH_TORCH is OFF, or libgrpc++-dev, libprotobuf-dev or protobuf-compiler-grpc is missing"
              FUSEDBUN_WITH_TORCH AND Protobuf_FOUND AND gRPC_FOUND)
