#include "fusedbun/launcher/train/last_words.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string_view>

namespace fusedbun::train {
namespace {

constexpr size_t kBytes = 1024;

}  // namespace

std::string what_is_lost(int64_t done, std::optional<int64_t> durable) {
  const std::string all = std::to_string(done);
  if (!durable) {
    return done == 0 ? "no step is lost, for none was done"
                     : "all " + all + " steps are lost, for there is no checkpoint";
  }
  const std::string checkpoint = "the checkpoint of step " + std::to_string(*durable);
  if (done == *durable) return "no step is lost: " + checkpoint + " has all " + all;
  return std::to_string(done - *durable) + " of " + all + " steps are lost, those after " +
         checkpoint;
}

LastWords::LastWords() {
  const char* const path = std::getenv("FUSEDBUN_LAST_WORDS");
  if (path == nullptr) return;
  // In another container the same path may be somebody else's file.
  std::array<char, 64> target{};
  const ssize_t size = ::readlink(path, target.data(), target.size());
  const std::string_view name(target.data(), size > 0 ? static_cast<size_t>(size) : 0);
  if (!name.starts_with("/memfd:fusedbun-last-words")) return;
  descriptor_ = ::open(path, O_WRONLY | O_CLOEXEC);
}

LastWords::~LastWords() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void LastWords::keep(const std::string& lost, const std::string& more_words) {
  if (descriptor_ < 0) return;
  std::string text = lost + "\n" + more_words + "\n";
  if (text.size() >= kBytes) return;
  text.resize(kBytes);
  // As a whole, within a page: a process that is killed meanwhile leaves the old words or the new.
  static_cast<void>(::pwrite(descriptor_, text.data(), text.size(), 0) < 0);
}

}  // namespace fusedbun::train
