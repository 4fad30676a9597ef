#include "fusedbun/dist/step/broadcast_changes.h"

#include "fusedbun/core/error.h"

namespace fusedbun {

std::vector<changes::ChangeEntry> broadcast_changes(comm::Communicator& host,
                                                    changes::ControlPort* port, int64_t after,
                                                    int64_t up_to) {
  std::vector<changes::ChangeEntry> entries;
  if (host.rank() == 0) {
    FUSEDBUN_ASSERT(port != nullptr, "rank 0 announced a change, so it has a control port");
    entries = port->entries(after, up_to);
  }
  int64_t count = static_cast<int64_t>(entries.size());
  host.broadcast(comm::Buffer::of(std::span(&count, 1)), 0).wait();
  entries.resize(count);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(changes::ChangeEntry));
  if (bytes > 0) host.broadcast({entries.data(), bytes, comm::DataType::u8}, 0).wait();
  return entries;
}

}  // namespace fusedbun
