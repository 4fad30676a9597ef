#include "fusedbun/launcher/data/text_data.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/data/token_file.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;
constexpr size_t kTextProbeBytes = 8 << 10;  // as git tells text from binary
constexpr size_t kReadBytes = 1 << 20;       // at once; most files are smaller

/// What a file is that begins so and is often given for text; empty if it is none of them.
std::string_view other_format(std::string_view start) {
  if (start.starts_with("\x1f\x8b")) return "compressed by gzip";
  if (start.starts_with("\x28\xb5\x2f\xfd")) return "compressed by zstd";
  if (start.starts_with("PK\x03\x04")) return "packed by zip";
  if (start.starts_with("PAR1")) return "in Parquet's format";
  if (start.starts_with("\xff\xfe") || start.starts_with("\xfe\xff")) return "in UTF-16";
  return {};
}

/// splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection that leaves no visible pattern.
uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Why the walk through a folder passes `entry` over; empty if it does not.
std::string_view why_passed_over(const fs::directory_entry& entry) {
  if (entry.is_symlink()) return "symbolic links";
  if (entry.is_directory()) {
    return ::access(entry.path().c_str(), R_OK | X_OK) == 0 ? "" : "folders that are closed to us";
  }
  return entry.is_regular_file() ? "" : "devices, sockets and pipes";
}

class OpenFile {
 public:
  explicit OpenFile(const fs::path& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (!descriptor_.is_open()) fail("");
  }

  /// The next bytes; none at the end.
  std::string read() {
    std::string bytes(kReadBytes, '\0');
    size_t has = 0;
    while (has < bytes.size()) {  // a pipe gives less at once
      const ssize_t got = ::read(descriptor_.value(), bytes.data() + has, bytes.size() - has);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(" to its end");
      if (got == 0) break;
      has += static_cast<size_t>(got);
    }
    bytes.resize(has);
    return bytes;
  }
  run_folder::Descriptor release() { return std::move(descriptor_); }

 private:
  [[noreturn]] void fail(const char* how_far) const {
    throw DataError("cannot read " + path_.string() + how_far + ": " +
                    std::generic_category().message(errno));
  }

  fs::path path_;
  run_folder::Descriptor descriptor_;
};

std::string joined(const std::vector<fs::path>& paths) {
  std::string text;
  for (const fs::path& path : paths) text += (text.empty() ? "" : ", ") + path.string();
  return text;
}

}  // namespace

void require_present(const std::vector<fs::path>& sources) {
  for (const fs::path& source : sources) {
    std::error_code error;
    const bool is_there = fs::exists(source, error);
    FUSEDBUN_REQUIRE(is_there, DataError,
                     "no text at " + source.string() + ": " +
                         (error ? error.message() : "it does not exist") +
                         "; --data says which files and folders to read");
  }
}

TextData::TextData(const std::vector<fs::path>& sources, int64_t context, TextOptions options)
    : large_from_(options.large_from), vocab_(options.vocab), store_(std::move(options.notice)) {
  require_present(sources);
  const auto count = std::ranges::count_if(sources, is_token_file);
  FUSEDBUN_REQUIRE(count == 0 || count == std::ssize(sources), DataError,
                   joined(sources) + ": give --data files of tokens (.bin) or text, not both");
  for (const fs::path& source : sources) count > 0 ? append_tokens(source) : read(source);
  FUSEDBUN_REQUIRE(
      is_tokens() || vocab_ == kByteValues, DataError,
      "text is read as bytes, which needs a model of 256 token ids, and this one has " +
          std::to_string(vocab_) +
          ": give --data files of its tokens (.bin, as llm.c and nanoGPT write them)");
  const size_t sequence = static_cast<size_t>(context) + 1;
  const std::string what = is_tokens() ? "tokens" : "bytes of text";
  FUSEDBUN_REQUIRE(bytes() > 0, DataError, "no text in " + joined(sources));
  FUSEDBUN_REQUIRE(tokens() >= 2 * sequence, DataError,
                   joined(sources) + ": " + std::to_string(tokens()) + " " + what +
                       " are too few; training and validation need " +
                       std::to_string(2 * sequence) + " at a context of " +
                       std::to_string(context));
  training_tokens_ =
      tokens() - std::max(sequence, std::min<size_t>(tokens() / 10, kValidationTokensMax));
}

void TextData::read(const fs::path& source) {
  std::error_code gone;  // then it cannot be opened either
  if (!fs::is_directory(source, gone)) {
    append(source, false);
    return;
  }
  try {
    std::vector<fs::path> files;
    for (const auto& entry :
         fs::recursive_directory_iterator(source, fs::directory_options::skip_permission_denied)) {
      if (const std::string_view why = why_passed_over(entry); !why.empty()) {
        leave_out(entry.path(), why);
      } else if (entry.is_regular_file()) {
        files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) append(file, true);
  } catch (const fs::filesystem_error& failure) {
    throw DataError("cannot walk " + source.string() + ": " + failure.code().message());
  }
}

void TextData::leave_out(const fs::path& path, std::string_view why) {
  LeftOut& kind = left_out_[why];
  // The walk's order is the file system's; what is said is not.
  if (kind.count++ == 0 || path < kind.first) kind.first = path;
}

void TextData::append(const fs::path& file, bool must_be_text) {
  std::error_code error;
  // A pipe ends when its writer closes it (`--data <(zcat corpus.gz)`); /dev/zero never does.
  const auto type = fs::status(file, error).type();
  FUSEDBUN_REQUIRE(
      type != fs::file_type::character && type != fs::file_type::block &&
          type != fs::file_type::socket,
      DataError, file.string() + " is a device or a socket: --data reads files, folders and pipes");
  OpenFile in(file);
  std::string piece = in.read();
  const auto start = std::string_view(piece).substr(0, kTextProbeBytes);
  const std::string_view format = other_format(start);
  FUSEDBUN_REQUIRE(must_be_text || format.empty(), DataError,
                   file.string() + " is " + std::string(format) +
                       ", whose bytes are no text to learn from: give --data what is in it");
  if (must_be_text && (!format.empty() || start.find('\0') != start.npos)) {
    leave_out(file, format.empty() ? "binary files" : format);
    return;
  }
  const bool is_pipe = type == fs::file_type::fifo;
  FUSEDBUN_REQUIRE(must_be_text || !piece.empty(), DataError,
                   file.string() + " is empty" +
                       (is_pipe ? ": a pipe gives its text once, so with several ranks, or read a "
                                  "second time, write it to a file"
                                : ""));
  if (!is_pipe && static_cast<int64_t>(fs::file_size(file, error)) >= large_from_ && !error) {
    store_.append_file(file, in.release());
  } else {
    for (; !piece.empty(); piece = in.read()) store_.append(piece);
  }
  if (bytes() > 0 && store_.last() != '\n') store_.append("\n");
  ++files_;
}

void TextData::append_tokens(const fs::path& file) {
  std::error_code error;
  FUSEDBUN_REQUIRE(fs::is_regular_file(file, error), DataError,
                   file.string() + " is no file: tokens are read where they are, from a file");
  OpenFile in(file);
  const std::string start = in.read();
  const auto size = static_cast<int64_t>(fs::file_size(file, error));
  FUSEDBUN_REQUIRE(!error, DataError, "cannot read " + file.string() + ": " + error.message());
  const TokenLayout layout = token_layout(file, start, size, vocab_);
  FUSEDBUN_REQUIRE(layout.tokens > 0, DataError, file.string() + " is empty");
  FUSEDBUN_REQUIRE(token_bytes_ == 0 || token_bytes_ == layout.token_bytes, DataError,
                   file.string() + " has tokens of " + std::to_string(layout.token_bytes) +
                       " bytes, and the files before it of " + std::to_string(token_bytes_));
  token_bytes_ = layout.token_bytes;
  store_.append_sampled(file, in.release(), static_cast<size_t>(layout.header_bytes),
                        static_cast<size_t>(layout.tokens * layout.token_bytes));
  ++files_;
}

std::string TextData::part(size_t begin, size_t count) const {
  std::string bytes(count, '\0');
  store_.read(begin, bytes);
  return bytes;
}

void TextData::read_tokens(size_t begin, std::span<int64_t> tokens) const {
  const std::string bytes = part(begin * width(), tokens.size() * width());
  for (size_t i = 0; i < tokens.size(); ++i) {
    uint32_t token = 0;  // little endian, as the file
    std::memcpy(&token, bytes.data() + i * width(), width());
    tokens[i] = token;
    FUSEDBUN_REQUIRE(token < vocab_, DataError,
                     store_.place_of((begin + i) * width()) + ": token " + std::to_string(token) +
                         ", and the model has " + std::to_string(vocab_) +
                         " token ids: the file is of another tokenizer, or no file of tokens");
  }
}

void TextData::training_sample(const SampleId& id, std::span<int64_t> tokens) const {
  const uint64_t key = mixed(mixed(mixed(id.seed) ^ static_cast<uint64_t>(id.job_step)) ^
                             static_cast<uint64_t>(id.index));
  read_tokens(key % (training_tokens_ - tokens.size() + 1), tokens);
}

int64_t TextData::validation_samples(int64_t context) const {
  return (static_cast<int64_t>(validation_tokens()) - 1) / context;
}

void TextData::validation_sample(int64_t index, std::span<int64_t> tokens) const {
  const size_t context = tokens.size() - 1;
  read_tokens(training_tokens_ + static_cast<size_t>(index) * context, tokens);
}

}  // namespace fusedbun::data
