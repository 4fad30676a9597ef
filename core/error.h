#pragma once
// The project's two kinds of errors.
//
// 1. The caller or the world is at fault (a bad option, a lost rank, a full disk): a typed exception derived from
//    Error, thrown by FUSEDBUN_REQUIRE or directly. Its message is one sentence: what, where, which rank, what to do.
//    Its exit code is what the `fusedbun` command exits with.
// 2. Our own bug: FUSEDBUN_ASSERT prints the broken condition and aborts. It stays on in release builds; inner
//    loops use none.
//
// Thread safety: all of it may be used from any thread.
#include <stdexcept>
#include <string>

namespace fusedbun {

/// Exit codes of every command (sysexits.h where it has one). The launcher restarts a rank only after those that
/// `is_restartable` names.
enum class ExitCode : int {
  done = 0,
  unclassified = 1,
  usage = 64,        ///< bad flag or syntax
  data = 65,         ///< bad data or checkpoint
  unavailable = 69,  ///< address or run folder in use, or unreachable
  internal = 70,     ///< our bug
  device = 71,       ///< device, driver, out of memory
  io = 74,           ///< I/O error
  left_early = 75,   ///< left before the end on request (drain, signal): run me again
  peer_lost = 76,    ///< another rank died or stopped answering
  permission = 77,   ///< not allowed
  config = 78,       ///< bad value, or ranks that disagree at start
  diverged = 79,     ///< ranks hold different state
  timeout = 124,     ///< a wait ran out of time
};

/// Base of all exceptions that say that the caller or the world is at fault.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// An Error whose exit code is part of its type, so that it can be caught by kind.
template <ExitCode kCode>
class ErrorOf : public Error {
 public:
  explicit ErrorOf(const std::string& message) : Error(kCode, message) {}
};
using UsageError = ErrorOf<ExitCode::usage>;
using DataError = ErrorOf<ExitCode::data>;
using UnavailableError = ErrorOf<ExitCode::unavailable>;
using DeviceError = ErrorOf<ExitCode::device>;
using IoError = ErrorOf<ExitCode::io>;
using PeerLostError = ErrorOf<ExitCode::peer_lost>;
using PermissionError = ErrorOf<ExitCode::permission>;
using ConfigError = ErrorOf<ExitCode::config>;
using DivergedError = ErrorOf<ExitCode::diverged>;
using TimeoutError = ErrorOf<ExitCode::timeout>;

/// Prints "fusedbun: our bug: <sentence> (<condition>) at file:line" on stderr and aborts.
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line,
                                   const std::string& sentence);

}  // namespace fusedbun

/// Throws `ErrorType(message)` unless `condition` holds. The message expression is evaluated only then.
#define FUSEDBUN_REQUIRE(condition, ErrorType, message) \
  do {                                                  \
    if (!(condition)) throw ErrorType(message);         \
  } while (false)

/// Aborts with a sentence unless `condition` holds: a broken invariant of ours.
#define FUSEDBUN_ASSERT(condition, sentence)                                                    \
  do {                                                                                          \
    if (!(condition)) ::fusedbun::assertion_failed(#condition, __FILE__, __LINE__, (sentence)); \
  } while (false)
