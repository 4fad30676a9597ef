#include "fusedbun/launcher/data/token_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/data/document_index.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fusedbun::data {
namespace {

constexpr int32_t kShortMagic = 20240520, kLongMagic = 20240801;
/// After the words that llm.c reads: "FBIX".
constexpr int32_t kIndexMark = 0x58494246;
constexpr int64_t kShortVocab = 65536;
constexpr int64_t kPlaces = 1024, kPlaceBytes = 4096;  ///< of a fingerprint
constexpr size_t kWriteBytes = 1 << 20;                ///< at once

int32_t word(std::span<const char> start, size_t index) {
  int32_t value = 0;
  std::memcpy(&value, start.data() + index * sizeof value, sizeof value);
  return value;
}

}  // namespace

bool is_token_file(const std::filesystem::path& path) {
  return path.extension() == ".bin";
}

TokenLayout token_layout(const std::filesystem::path& path, std::span<const char> start,
                         int64_t file_bytes, int64_t vocab) {
  TokenLayout layout{.token_bytes = vocab <= kShortVocab ? 2 : 4};
  const bool has_header = std::ssize(start) >= kTokenHeaderBytes &&
                          (word(start, 0) == kShortMagic || word(start, 0) == kLongMagic);
  if (has_header) {
    layout.header_bytes = kTokenHeaderBytes;
    layout.token_bytes = word(start, 0) == kShortMagic ? 2 : 4;
    layout.has_index = word(start, 3) == kIndexMark;
  }
  const int64_t content = file_bytes - layout.header_bytes;
  FUSEDBUN_REQUIRE(content % layout.token_bytes == 0, DataError,
                   path.string() + " has " + std::to_string(content) +
                       " bytes of tokens, which are no whole number of " +
                       std::to_string(layout.token_bytes) +
                       " bytes each: it was cut, or is no file of tokens");
  layout.tokens = content / layout.token_bytes;
  if (!has_header) return layout;
  const int64_t said = static_cast<uint32_t>(word(start, 2));
  FUSEDBUN_REQUIRE(said == layout.tokens, DataError,
                   path.string() + " says that it has " + std::to_string(said) +
                       " tokens, and has " + std::to_string(layout.tokens) +
                       ": it was cut, or written to after its header");
  return layout;
}

TokenFile::TokenFile(std::filesystem::path path, int64_t vocab) : path_(std::move(path)) {
  std::error_code error;
  const auto type = std::filesystem::status(path_, error).type();
  FUSEDBUN_REQUIRE(type != std::filesystem::file_type::not_found, DataError,
                   path_.string() + " does not exist");
  FUSEDBUN_REQUIRE(type == std::filesystem::file_type::regular, DataError,
                   path_.string() + " is no file: tokens are read where they are, from a file");
  descriptor_ = run_folder::Descriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  FUSEDBUN_REQUIRE(descriptor_.is_open(), DataError,
                   "cannot read " + path_.string() + ": " + std::generic_category().message(errno));
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(path_, error));
  FUSEDBUN_REQUIRE(!error, DataError, "cannot read " + path_.string() + ": " + error.message());
  std::string start(static_cast<size_t>(std::min(bytes, kTokenHeaderBytes)), '\0');
  read_bytes(0, start);
  layout_ = token_layout(path_, start, bytes, vocab);
  FUSEDBUN_REQUIRE(layout_.tokens > 0, DataError, path_.string() + " is empty");
}

void TokenFile::read_bytes(int64_t at, std::span<char> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(descriptor_.value(), bytes.data(), bytes.size(), at);
    if (got < 0 && errno == EINTR) continue;
    FUSEDBUN_REQUIRE(
        got > 0, DataError,
        "cannot read " + path_.string() + " at byte " + std::to_string(at) + ": " +
            (got < 0 ? std::generic_category().message(errno) : "it was cut while it was read"));
    bytes = bytes.subspan(static_cast<size_t>(got));
    at += got;
  }
}

void TokenFile::read(int64_t begin, std::span<uint32_t> out) const {
  const auto width = static_cast<size_t>(layout_.token_bytes);
  std::string bytes(out.size() * width, '\0');
  read_bytes(layout_.header_bytes + begin * layout_.token_bytes, bytes);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = 0;
    std::memcpy(&out[i], bytes.data() + i * width, width);
  }
}

std::string TokenFile::place_of(int64_t token) const {
  return path_.string() + ", byte " +
         std::to_string(layout_.header_bytes + token * layout_.token_bytes);
}

uint64_t TokenFile::fingerprint() const {
  const int64_t bytes = layout_.tokens * layout_.token_bytes;
  const int64_t step = std::max(kPlaceBytes, bytes / kPlaces);
  std::array<char, kPlaceBytes> buffer{};
  uint64_t sum = XXH3_64bits_withSeed(&bytes, sizeof bytes, 0);
  for (int64_t at = 0; at < bytes; at += step) {
    const auto place =
        std::span(buffer).first(static_cast<size_t>(std::min({kPlaceBytes, step, bytes - at})));
    read_bytes(layout_.header_bytes + at, place);
    sum = XXH3_64bits_withSeed(place.data(), place.size(), sum);
  }
  return sum;
}

struct TokenWriter::State {
  State(std::filesystem::path target, int64_t vocab_size)
      : path(std::move(target)), vocab(vocab_size), file(std::in_place, path) {}

  void flush() {
    file->write(std::string_view(buffer));
    buffer.clear();
  }

  std::filesystem::path path;
  int64_t vocab;
  std::optional<run_folder::AtomicFile> file;
  std::string buffer;
  std::vector<uint64_t> begins;
  std::vector<TokenSpan> spans;
  bool all_carry_loss = true;
  uint64_t tokens = 0;
  int64_t loss_tokens = 0;
};

TokenWriter::TokenWriter(std::filesystem::path path, int64_t vocab)
    : state_(std::make_unique<State>(std::move(path), vocab)) {
  state_->buffer.assign(static_cast<size_t>(kTokenHeaderBytes), '\0');
}

TokenWriter::~TokenWriter() = default;

void TokenWriter::add(std::span<const uint32_t> tokens, std::span<const LossSpan> loss) {
  State& state = *state_;
  const size_t width = state.vocab <= kShortVocab ? 2 : 4;
  FUSEDBUN_REQUIRE(state.tokens + tokens.size() <= INT32_MAX, DataError,
                   state.path.string() + " would have more than " + std::to_string(INT32_MAX) +
                       " tokens, which its header cannot say: write several files");
  state.begins.push_back(state.tokens);
  for (const uint32_t token : tokens) {
    FUSEDBUN_REQUIRE(token < state.vocab, DataError,
                     "token " + std::to_string(token) + ", and the vocabulary has " +
                         std::to_string(state.vocab) + " ids");
    state.buffer.append(reinterpret_cast<const char*>(&token), width);  // little endian
  }
  // A document all of whose tokens carry loss is a span too, once one has others.
  if (loss.empty()) {
    state.spans.push_back({state.tokens, state.tokens + tokens.size()});
    state.loss_tokens += std::ssize(tokens);
  } else {
    state.all_carry_loss = false;
    for (const LossSpan& span : loss) {
      FUSEDBUN_ASSERT(span.begin <= span.end && span.end <= tokens.size(),
                      "a span lies in its document");
      state.spans.push_back({state.tokens + span.begin, state.tokens + span.end});
      state.loss_tokens += span.end - span.begin;
    }
  }
  state.tokens += tokens.size();
  if (state.buffer.size() >= kWriteBytes) state.flush();
}

void TokenWriter::commit() {
  State& state = *state_;
  state.flush();
  std::array<int32_t, 4> header{};
  header[0] = state.vocab <= kShortVocab ? kShortMagic : kLongMagic;
  header[1] = state.vocab <= kShortVocab ? 1 : 7;  // the versions that llm.c reads
  header[2] = static_cast<int32_t>(state.tokens);
  header[3] = kIndexMark;
  state.file->write_at(0, std::as_bytes(std::span(header)));
  state.begins.push_back(state.tokens);
  if (state.all_carry_loss) state.spans.clear();
  // Killed between the two, the index is not that of the file, which is refused; the other order would leave a file without one.
  DocumentIndex(std::move(state.begins), std::move(state.spans), std::nullopt)
      .write(DocumentIndex::beside(state.path), TokenFile(state.file->temporary(), state.vocab));
  state.file->commit();
}

int64_t TokenWriter::tokens() const {
  return static_cast<int64_t>(state_->tokens);
}
int64_t TokenWriter::documents() const {
  return std::ssize(state_->begins);
}
int64_t TokenWriter::loss_tokens() const {
  return state_->loss_tokens;
}

}  // namespace fusedbun::data
