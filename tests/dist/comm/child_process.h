#pragma once
// A child process of a test: started, signalled, waited for with a deadline, its output kept. Killed at the latest by
// the destructor, and by the kernel when the test itself dies.
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace fusedbun::comm::testing {

class ChildProcess {
 public:
  /// arguments[0] is the program, looked up in PATH. stdout and stderr go to one file.
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;  // owns the process

  void signal(int number) const;
  /// The exit code, 128 + n after signal n, -1 if it still runs after `timeout`.
  int wait(std::chrono::milliseconds timeout);
  /// What it has printed so far.
  std::string output() const;
  /// False if `text` was not printed in time.
  bool prints(const std::string& text, std::chrono::milliseconds timeout) const;

 private:
  pid_t pid_ = -1;
  int exit_code_ = -1;
  bool ended_ = false;
  std::string output_path_;
};

}  // namespace fusedbun::comm::testing
