#pragma once
// Failure: why a communicator is broken. The first one wins, and every later wait tells it.
//
// A value and not an exception_ptr: each thread that tells it throws an exception of its own.
//
// Thread safety: a value.
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {

struct Failure {
  ExitCode code = ExitCode::peer_lost;
  std::string text;
  bool told_by_peer = false;  ///< `text` names the rank that failed first

  /// Throws the Error type that belongs to `code`.
  [[noreturn]] void raise() const;
};

}  // namespace fusedbun::comm
