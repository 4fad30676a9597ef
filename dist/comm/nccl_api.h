#pragma once
// NcclApi: the functions of NCCL and of the CUDA runtime that the NCCL backend calls, as a table. The real one is
// filled from the linked libraries; tests put a double in its place that records calls and returns errors at will, so
// call order and error paths are tested on machines without a GPU.
//
// Invariants: every entry is set.
//
// Thread safety: as the libraries; the table itself is constant.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <memory>

#include "fusedbun/dist/comm/nccl.h"
#include "fusedbun/dist/comm/nccl_probe.h"

namespace fusedbun::comm {

struct NcclApi {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&ncclCommSplit) comm_split;
  decltype(&ncclCommFinalize) comm_finalize;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclReduce) reduce;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclBroadcast) broadcast;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) recv;

  decltype(&cudaDriverGetVersion) cuda_driver_version;
  decltype(&cudaRuntimeGetVersion) cuda_runtime_version;
  decltype(&cudaGetDeviceCount) cuda_get_device_count;
  cudaError_t (*cuda_get_device_properties)(cudaDeviceProp* properties, int device);
  decltype(&cudaGetDevice) cuda_get_device;
  decltype(&cudaSetDevice) cuda_set_device;
  decltype(&cudaDeviceGetStreamPriorityRange) cuda_stream_priority_range;
  decltype(&cudaStreamCreateWithPriority) cuda_stream_create;
  decltype(&cudaStreamDestroy) cuda_stream_destroy;
  decltype(&cudaStreamWaitEvent) cuda_stream_wait_event;
  decltype(&cudaEventCreateWithFlags) cuda_event_create;
  decltype(&cudaEventDestroy) cuda_event_destroy;
  decltype(&cudaEventRecord) cuda_event_record;
  decltype(&cudaEventQuery) cuda_event_query;
  cudaError_t (*cuda_malloc)(void** data, size_t bytes);
  decltype(&cudaFree) cuda_free;
  decltype(&cudaMemGetInfo) cuda_mem_get_info;
  decltype(&cudaThreadExchangeStreamCaptureMode) cuda_thread_exchange_capture_mode;
  decltype(&cudaGetErrorString) cuda_get_error_string;

  static const NcclApi& real();
};

/// connect_nccl with a table of the caller's, which outlives the communicator.
std::unique_ptr<Communicator> connect_nccl(const NcclOptions& options, Communicator& host,
                                           const NcclApi& api);
NcclProbe probe_nccl(const NcclApi& api);

}  // namespace fusedbun::comm
