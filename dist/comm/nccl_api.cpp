#include "fusedbun/dist/comm/nccl_api.h"

namespace fusedbun::comm {

const NcclApi& NcclApi::real() {
  static const NcclApi table{
      .get_version = &ncclGetVersion,
      .get_unique_id = &ncclGetUniqueId,
      .comm_init_rank_config = &ncclCommInitRankConfig,
      .comm_split = &ncclCommSplit,
      .comm_finalize = &ncclCommFinalize,
      .comm_destroy = &ncclCommDestroy,
      .comm_abort = &ncclCommAbort,
      .comm_get_async_error = &ncclCommGetAsyncError,
      .get_error_string = &ncclGetErrorString,
      .get_last_error = &ncclGetLastError,
      .group_start = &ncclGroupStart,
      .group_end = &ncclGroupEnd,
      .reduce_scatter = &ncclReduceScatter,
      .reduce = &ncclReduce,
      .all_gather = &ncclAllGather,
      .broadcast = &ncclBroadcast,
      .all_reduce = &ncclAllReduce,
      .send = &ncclSend,
      .recv = &ncclRecv,
      .cuda_driver_version = &cudaDriverGetVersion,
      .cuda_runtime_version = &cudaRuntimeGetVersion,
      .cuda_get_device_count = &cudaGetDeviceCount,
      .cuda_get_device_properties = &cudaGetDeviceProperties,
      .cuda_get_device = &cudaGetDevice,
      .cuda_set_device = &cudaSetDevice,
      .cuda_stream_priority_range = &cudaDeviceGetStreamPriorityRange,
      .cuda_stream_create = &cudaStreamCreateWithPriority,
      .cuda_stream_destroy = &cudaStreamDestroy,
      .cuda_stream_wait_event = &cudaStreamWaitEvent,
      .cuda_event_create = &cudaEventCreateWithFlags,
      .cuda_event_destroy = &cudaEventDestroy,
      .cuda_event_record = &cudaEventRecord,
      .cuda_event_query = &cudaEventQuery,
      .cuda_malloc = &cudaMalloc,
      .cuda_free = &cudaFree,
      .cuda_mem_get_info = &cudaMemGetInfo,
      .cuda_thread_exchange_capture_mode = &cudaThreadExchangeStreamCaptureMode,
      .cuda_get_error_string = &cudaGetErrorString,
  };
  return table;
}

}  // namespace fusedbun::comm
