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
    case ExitCode::usage:
      throw UsageError(text);
    case ExitCode::data:
      throw DataError(text);
    case ExitCode::unavailable:
      throw UnavailableError(text);
    case ExitCode::io:
      throw IoError(text);
    case ExitCode::permission:
      throw PermissionError(text);
    case ExitCode::diverged:
      throw DivergedError(text);
    default:
      throw Error(code, text);
  }
}

}  // namespace fusedbun::comm
