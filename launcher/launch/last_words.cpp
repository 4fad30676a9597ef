#include "fusedbun/launcher/launch/last_words.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace fusedbun::launch {

LastWords parse_last_words(std::string_view text) {
  text = text.substr(0, text.find('\0'));
  const size_t first = text.find('\n');
  if (first == text.npos) return {};
  LastWords words{.lost = std::string(text.substr(0, first))};
  text.remove_prefix(first + 1);
  words.more_words = text.substr(0, text.find('\n'));
  return words;
}

LastWordsFile::LastWordsFile() : descriptor_(::memfd_create(kLastWordsFileName, MFD_CLOEXEC)) {
  if (descriptor_ < 0) return;
  path_ = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(descriptor_);
}

LastWordsFile::~LastWordsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

LastWords LastWordsFile::read() const {
  std::array<char, kLastWordsBytes> bytes;
  const ssize_t size = ::pread(descriptor_, bytes.data(), bytes.size(), 0);
  return parse_last_words({bytes.data(), static_cast<size_t>(std::max<ssize_t>(size, 0))});
}

}  // namespace fusedbun::launch
