#include "fusedbun/dist/step/device_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "fusedbun/core/gpu/device_api.h"

namespace fusedbun {

comm::ProducerStream current_stream(at::Device device) {
  if (has_device_api(device)) return comm::Stream(device_api_of(device).current_stream().handle());
  if (device.is_cpu()) return {};
  // The handle of torch's default stream is null, which is how CUDA calls it too.
  const c10::impl::VirtualGuardImpl guard(device.type());
  return comm::Stream(guard.getStream(device).native_handle());
}

void wait_for(comm::Work& work, at::Device device) {
  if (!work.pending()) return;
  if (const comm::ProducerStream stream = current_stream(device)) {
    work.wait_on(*stream);
  } else {
    work.wait();
  }
}

}  // namespace fusedbun
