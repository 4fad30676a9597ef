#include "fusedbun/dist/comm/failure.h"

namespace fusedbun::comm {

void Failure::raise() const {
  switch (code) {
    case ExitCode::peer_lost:
      throw PeerLostError(text);
    case ExitCode::timeout:
      throw TimeoutError(text);
    case ExitCode::config:
      throw ConfigError(text);
    case ExitCode::device:
      throw DeviceError(text);
    default:
      throw Error(code, text);
  }
}

}  // namespace fusedbun::comm
