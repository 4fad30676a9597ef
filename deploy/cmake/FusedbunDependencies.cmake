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

# --- LibTorch: the environment's wheel, or the one that `python3` has --------------------------------
if(FUSEDBUN_WITH_TORCH)
  find_path(FUSEDBUN_TORCH_DIR lib/libtorch_cpu.so PATHS ${_site_packages}/torch NO_DEFAULT_PATH
            DOC "The torch folder of an installed wheel")
  find_program(_python3 python3 NO_CACHE)
  if(NOT FUSEDBUN_TORCH_DIR AND _python3)
    execute_process(
      COMMAND ${_python3} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE _torch_of_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_path(FUSEDBUN_TORCH_DIR lib/libtorch_cpu.so PATHS ${_torch_of_python} NO_DEFAULT_PATH)
  endif()
  include(FusedbunTorchTarget)
  # The CUDA wheels that a torch wheel asks for lie beside it.
  cmake_path(GET FUSEDBUN_TORCH_DIR PARENT_PATH _site_packages)
  # c10d's gloo header includes gloo's own, which the wheel lacks; Debian's libgloo-dev has them. Headers only:
  # the code is inside libtorch_cpu, and Debian's libgloo must never be linked beside it.
  find_path(FUSEDBUN_GLOO_INCLUDE gloo/algorithm.h REQUIRED)
endif()
find_path(FUSEDBUN_XXHASH_INCLUDE xxhash.h REQUIRED)
find_package(nlohmann_json REQUIRED)
# With it ranks prove to one another that they belong to one job; without it several ranks run without heartbeats.
find_package(OpenSSL COMPONENTS Crypto)
if(OPENSSL_FOUND)
  set(FUSEDBUN_HAS_OPENSSL TRUE)
else()
  set(FUSEDBUN_HAS_OPENSSL FALSE)
endif()

# --- CUDA's compiler: the wheel's nvcc, or the one on the PATH if it is of the same CUDA ---------------
set(_cuda_wheels ${_site_packages}/nvidia/cu13)
find_program(FUSEDBUN_NVCC nvcc PATHS ${_cuda_wheels}/bin NO_DEFAULT_PATH DOC "CUDA's compiler")
find_program(FUSEDBUN_NVCC nvcc)
set(_cuda_root ${_cuda_wheels})
if(FUSEDBUN_NVCC AND NOT EXISTS ${_cuda_wheels}/bin/nvcc)
  file(REAL_PATH ${FUSEDBUN_NVCC} _nvcc)
  cmake_path(GET _nvcc PARENT_PATH _cuda_root)
  cmake_path(GET _cuda_root PARENT_PATH _cuda_root)
endif()
# One process holds one CUDA runtime: the one that LibTorch's CUDA half loads, which is the wheel's where there is one.
find_file(FUSEDBUN_CUDART_LIBRARY libcudart.so.13 PATHS ${_cuda_wheels}/lib ${_cuda_root}/lib64 ${_cuda_root}/lib
          NO_DEFAULT_PATH DOC "CUDA 13's runtime")
find_path(FUSEDBUN_CUDART_INCLUDE cuda_runtime_api.h PATHS ${_cuda_root}/include ${_cuda_wheels}/include
          NO_DEFAULT_PATH DOC "Headers of the CUDA of FUSEDBUN_NVCC")
if(FUSEDBUN_CUDART_INCLUDE)
  file(STRINGS ${FUSEDBUN_CUDART_INCLUDE}/cuda_runtime_api.h _cudart_version REGEX "#define CUDART_VERSION +13")
endif()
if(FUSEDBUN_CUDART_LIBRARY AND _cudart_version)
  add_library(fusedbun::cudart SHARED IMPORTED)
  set_target_properties(fusedbun::cudart PROPERTIES IMPORTED_LOCATION ${FUSEDBUN_CUDART_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${FUSEDBUN_CUDART_INCLUDE})
endif()
fusedbun_part(CUDA "FUSEDBUN_WITH_TORCH is OFF, or nvcc or libcudart of CUDA 13 is neither in ${_cuda_wheels} nor on the PATH"
              FUSEDBUN_WITH_TORCH AND FUSEDBUN_NVCC AND TARGET fusedbun::cudart)
if(FUSEDBUN_HAS_CUDA)
  set(CMAKE_CUDA_COMPILER ${FUSEDBUN_NVCC})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # fusedbun::cudart
  enable_language(CUDA)
  if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 and later have it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
endif()

# --- NCCL: the wheel's, which LibTorch loads too, or the system's ----------------------------------------
find_file(FUSEDBUN_NCCL_LIBRARY libnccl.so.2 PATHS ${_site_packages}/nvidia/nccl/lib ${_cuda_wheels}/lib NO_DEFAULT_PATH)
find_path(FUSEDBUN_NCCL_INCLUDE nccl.h PATHS ${_site_packages}/nvidia/nccl/include ${_cuda_wheels}/include NO_DEFAULT_PATH)
find_file(FUSEDBUN_NCCL_LIBRARY libnccl.so.2 PATHS ${_cuda_root}/lib64 /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE} /usr/lib64 /usr/local/lib)
find_path(FUSEDBUN_NCCL_INCLUDE nccl.h PATHS ${_cuda_root}/include)
fusedbun_part(NCCL "NCCL or CUDA 13's runtime is neither in ${_site_packages}/nvidia nor in the system"
              FUSEDBUN_NCCL_LIBRARY AND FUSEDBUN_NCCL_INCLUDE AND TARGET fusedbun::cudart)
if(FUSEDBUN_HAS_NCCL)
  add_library(fusedbun::nccl SHARED IMPORTED)
  set_target_properties(fusedbun::nccl PROPERTIES IMPORTED_LOCATION ${FUSEDBUN_NCCL_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${FUSEDBUN_NCCL_INCLUDE} INTERFACE_LINK_LIBRARIES fusedbun::cudart)
endif()

# --- Open MPI -------------------------------------------------------------------------------------
if(FUSEDBUN_WITH_MPI)  # AUTO counts as true
  find_package(MPI COMPONENTS C QUIET)
endif()
fusedbun_part(MPI "libopenmpi-dev is not installed" MPI_C_FOUND)
if(FUSEDBUN_HAS_MPI)
  # A name of our own, which the installed package can give without FindMPI (that needs C enabled).
  add_library(fusedbun::mpi INTERFACE IMPORTED)
  target_link_libraries(fusedbun::mpi INTERFACE MPI::MPI_C)
endif()

# --- gRPC and protobuf ----------------------------------------------------------------------------
if(FUSEDBUN_WITH_CONTROL)
  find_package(Protobuf QUIET)
  find_package(gRPC CONFIG QUIET)
endif()
fusedbun_part(CONTROL "libgrpc++-dev, libprotobuf-dev or protobuf-compiler-grpc is missing" Protobuf_FOUND AND gRPC_FOUND)

# --- Metrics for Prometheus: of the command alone --------------------------------------------------
# prometheus-cpp's own HTTP server (civetweb) is not used: its threads have stacks of 100 KiB, of which the thread-local variables of
# LibTorch take so much that an error page ends the process.
if(FUSEDBUN_WITH_PROMETHEUS AND FUSEDBUN_BUILD_LAUNCHER)
  find_package(prometheus-cpp CONFIG QUIET)
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(httplib QUIET IMPORTED_TARGET cpp-httplib)
  endif()
endif()
fusedbun_part(PROMETHEUS "prometheus-cpp-dev or libcpp-httplib-dev is not installed, or FUSEDBUN_BUILD_LAUNCHER is OFF"
              prometheus-cpp_FOUND AND httplib_FOUND)
