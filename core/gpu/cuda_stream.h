#pragma once
// CudaStream: the stream of an NVIDIA GPU on which work is done in order.
//
// Thread safety: values.
#include <cstddef>

namespace fusedbun {

/// A cudaStream_t. There is no default: a stream must be named, and a literal 0 or nullptr does not name one.
class CudaStream {
 public:
  explicit CudaStream(void* handle) : handle_(handle) {}
  CudaStream(int) = delete;
  CudaStream(std::nullptr_t) = delete;
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

}  // namespace fusedbun
