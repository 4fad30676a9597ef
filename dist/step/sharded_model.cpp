#include "fusedbun/dist/step/sharded_model.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace fusedbun {

void wait_for(comm::Work& work, at::Device device) {
  if (!work.pending()) return;
  if (device.is_cpu()) {
    work.wait();
    return;
  }
  const c10::impl::VirtualGuardImpl guard(device.type());
  work.wait_on(comm::Stream(guard.getStream(guard.getDevice()).native_handle()));
}

}  // namespace fusedbun
