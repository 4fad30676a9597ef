#include "nccl_double.h"

#include <gtest/gtest.h>

#include <thread>

namespace fusedbun::comm::testing {
namespace {

NcclDouble* current = nullptr;

// Distinct addresses that stand for handles; nobody looks behind them.
template <class Handle>
Handle new_handle() {
  static char room[4096];
  static std::atomic<size_t> used = 0;
  return reinterpret_cast<Handle>(&room[1 + used++ % 4095]);
}

std::string collective(size_t count, ncclDataType_t type) {
  const char* const name = type == ncclFloat32 ? "f32" : type == ncclUint8 ? "u8" : "other";
  return "count " + std::to_string(count) + ", " + name;
}

// NCCL's operations of one root are given valid places on all ranks.
std::string places(const void* source, const void* target) {
  if (source == nullptr || target == nullptr) return ", null";
  return source == target ? ", in place" : "";
}

ncclResult_t nccl(const std::string& entry, const std::string& arguments = "") {
  return static_cast<ncclResult_t>(current->record(entry, arguments));
}
cudaError_t cuda(const std::string& entry, const std::string& arguments = "") {
  return static_cast<cudaError_t>(current->record(entry, arguments));
}

ncclResult_t close(const std::string& entry) {
  --current->communicators;
  return nccl(entry);
}

ncclResult_t open(const std::string& entry, const std::string& arguments, ncclComm_t* comm) {
  const ncclResult_t result = nccl(entry, arguments);
  if (result == ncclSuccess || result == ncclInProgress) {
    *comm = new_handle<ncclComm_t>();
    ++current->communicators;
  }
  return result;
}

template <class Handle>
cudaError_t make(const std::string& entry, Handle* handle) {
  const cudaError_t result = cuda(entry);
  if (result != cudaSuccess) return result;
  *handle = new_handle<Handle>();
  ++current->resources;
  return result;
}

cudaError_t destroy(const std::string& entry) {
  --current->resources;
  return cuda(entry);
}

NcclApi make_nccl_table() {
  NcclApi api{};
  api.get_version = [](int* version) {
    *version = current->nccl_version;
    return ncclSuccess;
  };
  api.get_unique_id = [](ncclUniqueId*) { return nccl("get_unique_id"); };
  api.comm_init_rank_config = [](ncclComm_t* comm, int size, ncclUniqueId, int rank,
                                 ncclConfig_t* config) {
    EXPECT_EQ(config->blocking, 0);
    return open("comm_init_rank_config", std::to_string(rank) + " of " + std::to_string(size),
                comm);
  };
  api.comm_split = [](ncclComm_t, int color, int key, ncclComm_t* part, ncclConfig_t*) {
    if (color == NCCL_SPLIT_NOCOLOR) return nccl("comm_split", "none");
    return open("comm_split", "key " + std::to_string(key), part);
  };
  api.comm_finalize = [](ncclComm_t) { return nccl("comm_finalize"); };
  api.comm_destroy = [](ncclComm_t) { return close("comm_destroy"); };
  api.comm_abort = [](ncclComm_t) {
    std::this_thread::sleep_for(current->abort_takes);
    return close("comm_abort");
  };
  api.comm_get_async_error = [](ncclComm_t, ncclResult_t* state) {
    *state = current->async_state.load();
    return ncclSuccess;
  };
  api.get_error_string = [](ncclResult_t) { return "the double's error"; };
  api.get_last_error = [](ncclComm_t) { return "its detail"; };
  api.group_start = [] { return nccl("group_start"); };
  api.group_end = [] { return nccl("group_end"); };
  api.reduce_scatter = [](const void*, void*, size_t count, ncclDataType_t type, ncclRedOp_t,
                          ncclComm_t,
                          cudaStream_t) { return nccl("reduce_scatter", collective(count, type)); };
  api.reduce = [](const void* source, void* target, size_t count, ncclDataType_t type, ncclRedOp_t,
                  int root, ncclComm_t, cudaStream_t) {
    return nccl("reduce", collective(count, type) + ", root " + std::to_string(root) +
                              places(source, target));
  };
  api.all_gather = [](const void*, void*, size_t count, ncclDataType_t type, ncclComm_t,
                      cudaStream_t) { return nccl("all_gather", collective(count, type)); };
  api.broadcast = [](const void* source, void* target, size_t count, ncclDataType_t type, int root,
                     ncclComm_t, cudaStream_t) {
    return nccl("broadcast", collective(count, type) + ", root " + std::to_string(root) +
                                 places(source, target));
  };
  api.all_reduce = [](const void*, void*, size_t count, ncclDataType_t type, ncclRedOp_t op,
                      ncclComm_t, cudaStream_t) {
    return nccl("all_reduce", collective(count, type) + (op == ncclSum ? ", sum" : ", max"));
  };
  api.send = [](const void*, size_t count, ncclDataType_t type, int peer, ncclComm_t,
                cudaStream_t) {
    return nccl("send", collective(count, type) + ", to " + std::to_string(peer));
  };
  api.recv = [](void*, size_t count, ncclDataType_t type, int peer, ncclComm_t, cudaStream_t) {
    return nccl("recv", collective(count, type) + ", from " + std::to_string(peer));
  };
  return api;
}

void add_cuda_table(NcclApi& api) {
  api.cuda_driver_version = [](int* version) {
    *version = current->driver_version;
    return cudaSuccess;
  };
  api.cuda_runtime_version = [](int* version) {
    *version = 13000;
    return cudaSuccess;
  };
  api.cuda_get_device_count = [](int* count) {
    *count = current->device_count;
    return *count >= 0 ? cudaSuccess : static_cast<cudaError_t>(-*count);
  };
  api.cuda_get_device_properties = [](cudaDeviceProp* properties, int device) {
    properties->uuid.bytes[0] = static_cast<char>(0xa0 + device);
    return cuda("get_device_properties");
  };
  api.cuda_get_device = [](int* device) {
    *device = 0;
    return cudaSuccess;
  };
  api.cuda_set_device = [](int device) { return cuda("set_device", std::to_string(device)); };
  api.cuda_stream_priority_range = [](int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  };
  api.cuda_stream_create = [](cudaStream_t* stream, unsigned flags, int priority) {
    EXPECT_EQ(flags, cudaStreamNonBlocking);
    EXPECT_EQ(priority, -5);
    return make("stream_create", stream);
  };
  api.cuda_stream_destroy = [](cudaStream_t) { return destroy("stream_destroy"); };
  api.cuda_stream_wait_event = [](cudaStream_t stream, cudaEvent_t, unsigned) {
    return cuda("stream_wait_event", current->name_of(stream));
  };
  api.cuda_event_create = [](cudaEvent_t* event, unsigned flags) {
    EXPECT_EQ(flags, cudaEventDisableTiming);
    return make("event_create", event);
  };
  api.cuda_event_destroy = [](cudaEvent_t) { return destroy("event_destroy"); };
  api.cuda_event_record = [](cudaEvent_t event, cudaStream_t stream) {
    return current->record_event(event, stream);
  };
  api.cuda_event_query = [](cudaEvent_t event) {
    return current->is_reached(event) ? cudaSuccess : cudaErrorNotReady;
  };
  api.cuda_malloc = [](void** data, size_t) { return make("malloc", data); };
  api.cuda_free = [](void*) { return destroy("free"); };
  api.cuda_mem_get_info = [](size_t* free, size_t* total) {
    *free = size_t{1} << 29;
    *total = size_t{80} << 30;
    return cudaSuccess;
  };
  api.cuda_thread_exchange_capture_mode = [](cudaStreamCaptureMode*) { return cudaSuccess; };
  api.cuda_get_error_string = [](cudaError_t) { return "the double's CUDA error"; };
}

}  // namespace

NcclDouble::NcclDouble() : api_(make_nccl_table()) {
  add_cuda_table(api_);
  current = this;
}

NcclDouble::~NcclDouble() {
  current = nullptr;
}

std::string NcclDouble::name_of(cudaStream_t stream) const {
  const auto known = streams.find(stream);
  return known == streams.end() ? "own" : known->second;
}

cudaError_t NcclDouble::record_event(cudaEvent_t event, cudaStream_t stream) {
  const std::string name = name_of(stream);
  const cudaError_t result = cuda("event_record", name);
  const std::lock_guard lock(mutex_);
  if (name == "own") operation_of_[event] = ++operations_;
  return result;
}

bool NcclDouble::is_reached(cudaEvent_t event) {
  const std::lock_guard lock(mutex_);
  return events_are_reached && operation_of_[event] <= operations_ended;
}

int NcclDouble::record(const std::string& entry, const std::string& arguments) {
  const std::lock_guard lock(mutex_);
  calls.push_back(arguments.empty() ? entry : entry + "(" + arguments + ")");
  const auto failure = failures.find(entry);
  if (failure == failures.end()) return 0;
  const int code = failure->second;
  failures.erase(failure);
  return code;
}

}  // namespace fusedbun::comm::testing
