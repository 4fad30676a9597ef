#pragma once
// PythonProgram: a Python process that runs tokenizer.py, whose text is part of this binary. Tokenizers are files that Hugging Face's
// `tokenizers` package reads, and chat templates are Jinja2's; both are Python's to run.
//
// Messages go to its standard input and come from its standard output: 32 bits, little endian, that say how many bytes follow, then
// those. The script exits with 0; for what the caller or the data is to blame, with 65, 74 or 78, and one sentence as the last line of its
// standard error.
//
// Thread safety: none.
#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::data {

/// The first there is of: $FUSEDBUN_PYTHON; $VIRTUAL_ENV/bin/python; .venv/bin/python in a folder above `executable`; python3, which
/// is searched for on PATH. Throws ConfigError if $FUSEDBUN_PYTHON names no program.
std::filesystem::path find_python(const std::filesystem::path& executable);

class PythonProgram {
 public:
  /// Starts `tokenizer.py arguments...`. Throws ConfigError if there is no Python.
  explicit PythonProgram(const std::vector<std::string>& arguments);
  /// Kills the process if it still runs.
  ~PythonProgram();
  PythonProgram(const PythonProgram&) = delete;  // owns a process

  /// Sends one message. Throws as finish() does if the process has ended. It reads a whole message before it answers.
  void send(std::string_view message);
  /// The next message; nothing once the process has ended well. Throws as finish() does if it has not.
  std::optional<std::string> receive();
  /// Closes its standard input, lets it end, and waits for that. Throws DataError, IoError or ConfigError with its sentence, for
  /// exit codes 65, 74 and 78; DeviceError if a signal ended it; else Error with the last line that it wrote.
  void finish();
  pid_t pid() const { return pid_; }  ///< 0 once it has ended

 private:
  size_t read(char* bytes, size_t count);
  std::string last_line() const;

  pid_t pid_ = 0;
  run_folder::Descriptor input_, output_, errors_;
};

}  // namespace fusedbun::data
