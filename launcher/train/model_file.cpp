#include "fusedbun/launcher/train/model_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::train {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// Returns early, and true, if patience has come to its end.
bool wait_in_vain(const ModelFile::Patience& patience) {
  const auto end = Clock::now() + patience.between_tries;
  while (Clock::now() < end) {
    if (patience.gives_up()) return true;
    std::this_thread::sleep_for(std::min<Clock::duration>(100ms, end - Clock::now()));
  }
  return false;
}

}  // namespace

ModelFile::ModelFile(std::filesystem::path path, int64_t bytes)
    : path_(std::move(path)), at_start_(version_of(path_)) {
  run_folder::require_writable(path_);
  run_folder::require_space(path_, bytes);
}

std::optional<std::filesystem::path> ModelFile::save(
    const std::function<void(const std::filesystem::path&)>& write,
    const Patience& patience) const {
  for (bool told = false;;) {
    const std::filesystem::path path = target();
    try {
      write(path);
      return path;
    } catch (const IoError& error) {
      if (!std::exchange(told, true)) {
        patience.notice(std::string(error.what()) +
                        "; the model is kept in memory and saving is tried again every " +
                        std::to_string(patience.between_tries.count() / 1000) +
                        " s: make room, or leave without it by 'fusedbun stop' or one more signal");
      }
      if (wait_in_vain(patience)) {
        patience.notice(std::string(error.what()) + "; left without saving the model, as told");
        return std::nullopt;
      }
    }
  }
}

std::optional<ModelFile::Version> ModelFile::version_of(const std::filesystem::path& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return {};
  return Version{found.st_dev, found.st_ino,
                 found.st_mtim.tv_sec * 1'000'000'000 + found.st_mtim.tv_nsec};
}

std::filesystem::path ModelFile::target() const {
  const std::optional<Version> now = version_of(path_);
  if (!now || now == at_start_) return path_;
  std::filesystem::path beside = path_.parent_path() / path_.stem();
  beside += "-" + std::to_string(::getpid());
  beside += path_.extension();
  return beside;
}

}  // namespace fusedbun::train
