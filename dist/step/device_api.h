#pragma once
// DeviceApi: everything that buckets do with memory on the device where the parameters are. On a GPU each call is work for the current
// stream, and only norm() waits for it.
//
// Thread safety: none of its own; a bucket's calls come one after the other.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace fusedbun {

/// Elements that are copied from one place in a device's memory to another: addresses, because a tensor for each piece costs more than
/// copying a short one.
struct DeviceCopy {
  const void* from;
  void* to;
  int64_t elements;
};

struct DeviceMemory {
  void* start;
  int64_t bytes;
};

/// A point in the work of one stream.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
};

class DeviceApi {
 public:
  virtual ~DeviceApi() = default;

  /// One-dimensional, zeroed.
  virtual at::Tensor allocate(int64_t elements, at::ScalarType type) = 0;
  virtual void zero(std::span<const DeviceMemory> memory) = 0;
  /// All of one type.
  virtual void copy(std::span<const DeviceCopy> copies, at::ScalarType type) = 0;
  /// Copies some pieces of `gradient`, contiguous, to where elements are of type `to`. Returns on CPUs whether every g·g of them is finite, in the arithmetic's type; on a GPU true,
  /// and 1 is added to `device_nonfinite` (float32 scalar) if one is not.
  virtual bool intake(const at::Tensor& gradient, std::span<const DeviceCopy> pieces,
                      at::ScalarType to, at::Tensor& device_nonfinite) = 0;
  /// The same test of a whole gradient, of any type and strides, without a copy.
  virtual bool squares_are_finite(const at::Tensor& gradient, at::Tensor& device_nonfinite) = 0;
  /// The 2-norm, in float64. The host waits for it.
  virtual double norm(const at::Tensor& memory) = 0;

  /// What the current stream has been given so far; null where work is done at once.
  virtual std::unique_ptr<DeviceEvent> record() = 0;
  /// The current stream goes on after that.
  virtual void wait_for(const DeviceEvent& event) = 0;
};

/// The one for tensors on `device`, which lives as long as the program.
DeviceApi& device_api(at::Device device);

}  // namespace fusedbun
