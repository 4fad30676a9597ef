#include "fusedbun/launcher/data/python_program.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "fusedbun/core/error.h"

extern char** environ;

namespace fusedbun::data {

extern const char* const kTokenizerScript;  // made from tokenizer.py when this is built

namespace {

namespace fs = std::filesystem;
using run_folder::Descriptor;

std::string reason(int error) {
  return std::generic_category().message(error);
}

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Both ends of a channel to the process. Unlike a pipe's, a socket's write end can be told not to raise SIGPIPE.
std::pair<Descriptor, Descriptor> channel() {
  int ends[2];
  FUSEDBUN_REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, IoError,
                   "no channel to Python: " + reason(errno));
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

pid_t spawn(const fs::path& python, const std::vector<std::string>& words, int input, int output,
            int errors) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
  pid_t pid = 0;
  const int error =
      ::posix_spawnp(&pid, python.c_str(), &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  FUSEDBUN_REQUIRE(error == 0, ConfigError,
                   "cannot start " + python.string() + ": " + reason(error) +
                       "; tokenizers need Python: FUSEDBUN_PYTHON says which");
  return pid;
}

}  // namespace

fs::path find_python(const fs::path& executable) {
  std::error_code ignored;
  if (const fs::path named = variable("FUSEDBUN_PYTHON"); !named.empty()) {
    // A bare name is searched for on PATH.
    FUSEDBUN_REQUIRE(!named.has_parent_path() || fs::is_regular_file(named, ignored), ConfigError,
                     "FUSEDBUN_PYTHON names " + named.string() + ", which is no program");
    return named;
  }
  std::vector<fs::path> environments;
  if (const fs::path active = variable("VIRTUAL_ENV"); !active.empty())
    environments.push_back(active);
  for (fs::path folder = executable.parent_path(); folder.has_relative_path();
       folder = folder.parent_path())
    environments.push_back(folder / ".venv");
  for (const fs::path& environment : environments) {
    if (fs::is_regular_file(environment / "bin/python", ignored)) return environment / "bin/python";
  }
  return "python3";
}

PythonProgram::PythonProgram(const std::vector<std::string>& arguments) {
  std::error_code ignored;
  const fs::path python = find_python(fs::read_symlink("/proc/self/exe", ignored));
  auto [input, its_input] = channel();
  auto [output, its_output] = channel();
  // A file in memory, which takes any number of warnings without being read meanwhile.
  errors_ = Descriptor(::memfd_create("python's standard error", MFD_CLOEXEC));
  FUSEDBUN_REQUIRE(errors_.is_open(), IoError, "no memory for Python's errors: " + reason(errno));
  std::vector<std::string> words = {python.string(), "-X", "utf8", "-c", kTokenizerScript};
  words.insert(words.end(), arguments.begin(), arguments.end());
  pid_ = spawn(python, words, its_input.value(), its_output.value(), errors_.value());
  input_ = std::move(input);
  output_ = std::move(output);
}

PythonProgram::~PythonProgram() {
  if (pid_ == 0) return;
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void PythonProgram::send(std::string_view message) {
  FUSEDBUN_ASSERT(message.size() <= UINT32_MAX, "32 bits say how long a message is");
  const auto bytes = static_cast<uint32_t>(message.size());
  std::string frame(reinterpret_cast<const char*>(&bytes), sizeof bytes);  // little endian
  frame += message;
  for (std::string_view rest = frame; !rest.empty();) {
    const ssize_t sent = ::send(input_.value(), rest.data(), rest.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      finish();
      throw IoError("Python has closed its input");
    }
    rest.remove_prefix(static_cast<size_t>(sent));
  }
}

size_t PythonProgram::read(char* bytes, size_t count) {
  size_t has = 0;
  while (has < count) {
    const ssize_t got = ::read(output_.value(), bytes + has, count - has);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;  // with input unread when it ended, the socket says "reset"
    has += static_cast<size_t>(got);
  }
  return has;
}

std::optional<std::string> PythonProgram::receive() {
  uint32_t bytes = 0;
  const size_t header = read(reinterpret_cast<char*>(&bytes), sizeof bytes);
  std::string message(header == sizeof bytes ? bytes : 0, '\0');
  if (header == sizeof bytes && read(message.data(), bytes) == bytes) return message;
  finish();
  FUSEDBUN_REQUIRE(header == 0, IoError, "Python has ended in the middle of a message");
  return std::nullopt;
}

void PythonProgram::finish() {
  if (pid_ == 0) return;
  input_.close();
  output_.close();
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
  if (WIFSIGNALED(status)) {
    throw DeviceError(std::string("Python was ended by SIG") + sigabbrev_np(WTERMSIG(status)) +
                      (WTERMSIG(status) == SIGKILL ? ": out of memory?" : ""));
  }
  const auto code = static_cast<ExitCode>(WEXITSTATUS(status));
  if (code == ExitCode::done) return;
  const std::string sentence = last_line();
  if (code == ExitCode::data) throw DataError(sentence);
  if (code == ExitCode::io) throw IoError(sentence);
  if (code == ExitCode::config) throw ConfigError(sentence);
  throw Error(ExitCode::unclassified, "Python failed: " + sentence);
}

std::string PythonProgram::last_line() const {
  std::string text;
  char bytes[4096];
  for (ssize_t got;
       (got = ::pread(errors_.value(), bytes, sizeof bytes, static_cast<off_t>(text.size()))) > 0;)
    text.append(bytes, static_cast<size_t>(got));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const std::string line = text.substr(text.rfind('\n') + 1);  // npos + 1 is 0
  return line.empty() ? "it said nothing" : line;
}

}  // namespace fusedbun::data
