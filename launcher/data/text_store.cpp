#include "fusedbun/launcher/data/text_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fusedbun::data {
namespace {

constexpr size_t kBufferBytes = 4 << 20;
constexpr size_t kPartBytes = 4 << 20;  ///< of memory

}  // namespace

class TextStore::Digest {
 public:
  Digest() { XXH3_64bits_reset(state_.get()); }
  void add(std::string_view bytes) { XXH3_64bits_update(state_.get(), bytes.data(), bytes.size()); }
  uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_{XXH3_createState(),
                                                                         XXH3_freeState};
};

TextStore::TextStore(Notice notice)
    : notice_(std::move(notice)), digest_(std::make_unique<Digest>()) {}

TextStore::~TextStore() = default;

void TextStore::append(std::string_view bytes) {
  if (bytes.empty()) return;
  const bool fits = !pieces_.empty() && pieces_.back().memory != nullptr &&
                    memory_.back().size() + bytes.size() <= memory_.back().capacity();
  if (!fits) {
    memory_.emplace_back().reserve(std::max(kPartBytes, bytes.size()));
    pieces_.push_back({size_, nullptr, &memory_.back()});
  }
  memory_.back() += bytes;
  added(bytes);
}

void TextStore::append_file(const std::filesystem::path& path, run_folder::Descriptor file) {
  const File& kept = files_.emplace_back(File{path, std::move(file)});
  const size_t begin = size_;
  pieces_.push_back({begin, &kept, nullptr});
  std::string buffer(kBufferBytes, '\0');
  for (;;) {
    const ssize_t got = ::pread(kept.descriptor.value(), buffer.data(), buffer.size(),
                                static_cast<off_t>(size_ - begin));
    if (got < 0 && errno == EINTR) continue;
    FUSEDBUN_REQUIRE(
        got >= 0, DataError,
        "cannot read " + path.string() + " to its end: " + std::generic_category().message(errno));
    if (got == 0) return;
    added({buffer.data(), static_cast<size_t>(got)});
  }
}

void TextStore::added(std::string_view bytes) {
  digest_->add(bytes);
  size_ += bytes.size();
  last_ = bytes.back();
}

uint64_t TextStore::digest() const {
  return digest_->value();
}

void TextStore::read(size_t begin, std::span<char> bytes) const {
  FUSEDBUN_ASSERT(begin + bytes.size() <= size_, "a read past the end of the text");
  auto piece = std::ranges::upper_bound(pieces_, begin, {}, &Piece::begin) - 1;
  while (!bytes.empty()) {
    const size_t end = piece + 1 == pieces_.end() ? size_ : (piece + 1)->begin;
    const size_t count = std::min(bytes.size(), end - begin);
    const size_t at = begin - piece->begin;
    if (piece->file != nullptr) {
      read_file(*piece->file, at, bytes.first(count));
    } else {
      std::copy_n(piece->memory->begin() + static_cast<std::ptrdiff_t>(at), count, bytes.begin());
    }
    bytes = bytes.subspan(count);
    begin += count;
    ++piece;
  }
}

void TextStore::read_file(const File& file, size_t at, std::span<char> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got =
        ::pread(file.descriptor.value(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      const std::string why = got < 0 ? std::generic_category().message(errno)
                                      : "it was cut to fewer than " + std::to_string(at) + " bytes";
      if (!told_.exchange(true)) {
        notice_("cannot read " + file.path.string() + " any more (" + why +
                "): the run goes on, and what is gone reads as newlines");
      }
      std::ranges::fill(bytes, '\n');
      return;
    }
    bytes = bytes.subspan(static_cast<size_t>(got));
    at += static_cast<size_t>(got);
  }
}

}  // namespace fusedbun::data
