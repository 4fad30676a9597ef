#include "fusedbun/launcher/train/last_words.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "fusedbun/launcher/launch/last_words.h"

namespace fusedbun::train {
namespace {

using launch::kLastWordsBytes;
using launch::kLastWordsVariable;

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

LastWords::LastWords(std::string more_words) : more_words_(std::move(more_words)) {}

LastWords::~LastWords() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool LastWords::are_wanted() {
  const char* const path = std::getenv(kLastWordsVariable);
  if (path == nullptr) return false;
  // In another container the same path may lead to another file, which must not be written.
  std::array<char, 64> target{};
  const ssize_t size = ::readlink(path, target.data(), target.size());
  const std::string_view name(target.data(), size > 0 ? static_cast<size_t>(size) : 0);
  return name.starts_with(std::string("/memfd:") + launch::kLastWordsFileName);
}

void LastWords::keep_for_launcher() {
  if (are_wanted()) descriptor_ = ::open(std::getenv(kLastWordsVariable), O_WRONLY | O_CLOEXEC);
}

void LastWords::steps_done(int64_t count) {
  const std::lock_guard lock(mutex_);
  done_ = count;
  write();
}

void LastWords::checkpoint_durable(int64_t step) {
  const std::lock_guard lock(mutex_);
  durable_ = step;
  if (done_) write();
}

std::string LastWords::sentence() const {
  const std::lock_guard lock(mutex_);
  return done_ ? sentence_now() : "";
}

std::string LastWords::sentence_now() const {
  return "in job step " + std::to_string(*done_) + ": " + what_is_lost(*done_, durable_);
}

bool LastWords::has_checkpoint() const {
  const std::lock_guard lock(mutex_);
  return durable_.has_value();
}

std::string LastWords::same_command() const {
  return "the same command" + (more_words_.empty() ? "" : " with " + more_words_);
}

void LastWords::write() const {
  if (descriptor_ < 0) return;
  std::string text = sentence_now() + "\n" + more_words_ + "\n";
  if (text.size() >= kLastWordsBytes) return;
  text.resize(kLastWordsBytes);
  // As a whole, within a page: a process that is killed meanwhile leaves the old words or the new.
  static_cast<void>(::pwrite(descriptor_, text.data(), text.size(), 0) < 0);
}

}  // namespace fusedbun::train
