#include "fusedbun/launcher/train/text_data.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "fusedbun/core/error.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
constexpr size_t kTextProbeBytes = 8 << 10;  // as git tells text from binary
/// Files are read in pieces of their own size and one byte, which finds their end, within these bounds: a folder may have a hundred
/// thousand small ones, and a pipe has no size.
constexpr size_t kPieceBytesMin = 64 << 10;
constexpr size_t kPieceBytesMax = 4 << 20;

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

void copy_tokens(std::string_view text, size_t offset, std::span<int64_t> tokens) {
  std::transform(text.begin() + offset, text.begin() + offset + tokens.size(), tokens.begin(),
                 [](char byte) { return static_cast<unsigned char>(byte); });
}

// Why the walk through a folder passes `entry` over; empty if it does not.
std::string_view why_passed_over(const fs::directory_entry& entry) {
  if (entry.is_symlink()) return "symbolic links";
  if (entry.is_directory()) {
    return ::access(entry.path().c_str(), R_OK | X_OK) == 0 ? "" : "folders that are closed to us";
  }
  return entry.is_regular_file() ? "" : "devices, sockets and pipes";
}

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

TextData::TextData(const std::vector<fs::path>& sources, int64_t context) {
  require_present(sources);
  for (const fs::path& source : sources) read(source);
  const size_t sequence = static_cast<size_t>(context) + 1;
  FUSEDBUN_REQUIRE(!text_.empty(), DataError, "no text in " + joined(sources));
  FUSEDBUN_REQUIRE(text_.size() >= 2 * sequence, DataError,
                   joined(sources) + ": " + std::to_string(text_.size()) +
                       " bytes of text are too few; training and validation need " +
                       std::to_string(2 * sequence) + " at a context of " +
                       std::to_string(context));
  training_bytes_ =
      text_.size() - std::max(sequence, std::min<size_t>(text_.size() / 10, kValidationBytesMax));
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
  std::ifstream in(file, std::ios::binary);
  FUSEDBUN_REQUIRE(in.good(), DataError,
                   "cannot read " + file.string() + ": " + std::generic_category().message(errno));
  // Straight to the end of the text, so that a large corpus is in memory once.
  const size_t before = text_.size();
  const size_t expected = fs::file_size(file, error);
  if (!error) text_.reserve(before + expected + 1);
  const size_t piece =
      error ? kPieceBytesMax : std::clamp(expected + 1, kPieceBytesMin, kPieceBytesMax);
  for (bool ended = false; !ended;) {
    const size_t has = text_.size();
    text_.resize(has + piece);
    in.read(text_.data() + has, static_cast<std::streamsize>(piece));
    text_.resize(has + static_cast<size_t>(in.gcount()));
    ended = in.eof() || !in.good();
    if (has != before) continue;
    const auto start = std::string_view(text_).substr(before, kTextProbeBytes);
    const std::string_view format = other_format(start);
    FUSEDBUN_REQUIRE(must_be_text || format.empty(), DataError,
                     file.string() + " is " + std::string(format) +
                         ", whose bytes are no text to learn from: give --data what is in it");
    if (must_be_text && (!format.empty() || start.find('\0') != start.npos)) {
      text_.resize(before);
      leave_out(file, format.empty() ? "binary files" : format);
      return;
    }
  }
  FUSEDBUN_REQUIRE(!in.bad(), DataError, "cannot read " + file.string() + " to its end");
  const bool is_empty = text_.size() == before;
  const bool is_pipe = type == fs::file_type::fifo;
  FUSEDBUN_REQUIRE(must_be_text || !is_empty, DataError,
                   file.string() + " is empty" +
                       (is_pipe ? ": a pipe gives its text once, so with several ranks, or read a "
                                  "second time, write it to a file"
                                : ""));
  if (!is_empty && text_.back() != '\n') text_ += '\n';
  ++files_;
}

uint64_t TextData::digest() const {
  return XXH3_64bits(text_.data(), text_.size());
}

void TextData::training_sample(const SampleId& id, std::span<int64_t> tokens) const {
  const uint64_t key = mixed(mixed(mixed(id.seed) ^ static_cast<uint64_t>(id.job_step)) ^
                             static_cast<uint64_t>(id.index));
  copy_tokens(training(), key % (training_bytes_ - tokens.size() + 1), tokens);
}

int64_t TextData::validation_samples(int64_t context) const {
  return (static_cast<int64_t>(text_.size() - training_bytes_) - 1) / context;
}

void TextData::validation_sample(int64_t index, std::span<int64_t> tokens) const {
  const size_t context = tokens.size() - 1;
  copy_tokens(validation(), static_cast<size_t>(index) * context, tokens);
}

}  // namespace fusedbun::train
