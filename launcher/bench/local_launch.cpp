#include "fusedbun/launcher/bench/local_launch.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/torch_program.h"

namespace fusedbun::bench {
namespace {

/// An empty file of our own, gone with the object.
class ReportFile {
 public:
  ReportFile()
      : path_((std::filesystem::temp_directory_path() / "fusedbun-bench-XXXXXX").string()) {
    const int fd = ::mkstemp(path_.data());
    FUSEDBUN_REQUIRE(fd >= 0, IoError, "cannot make " + path_ + ": " + std::strerror(errno));
    ::close(fd);
  }
  ~ReportFile() { std::filesystem::remove(path_); }
  ReportFile(const ReportFile&) = delete;

  const std::string& path() const { return path_; }
  Json read() const {
    std::ifstream file(path_);
    return Json::parse(file);
  }

 private:
  std::string path_;
};

/// stdout belongs to the report, so the child's goes to stderr.
int run(std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, launcher::fusedbun_program().c_str(), &actions, nullptr,
                                  argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  FUSEDBUN_REQUIRE(error == 0, IoError, std::string("cannot start ranks: ") + std::strerror(error));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Json run_on_own_ranks(int ranks, const std::vector<std::string>& words) {
  const ReportFile file;
  std::vector<std::string> command = {"fusedbun", "launch", "-n", std::to_string(ranks), "--"};
  command.insert(command.end(), words.begin(), words.end());
  command.insert(command.end(), {"--report-to", file.path()});
  const int code = run(command);
  if (code != 0) throw Error(static_cast<ExitCode>(code), "the ranks of the benchmark failed");
  return file.read();
}

}  // namespace fusedbun::bench
