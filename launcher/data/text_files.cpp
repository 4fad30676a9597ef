#include "fusedbun/launcher/data/text_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;
constexpr size_t kTextProbeBytes = 8 << 10;  // as git tells text from binary
constexpr size_t kReadBytes = 1 << 20;       // at once; most files are smaller

/// What a file of this name is that begins so and is often given for text; empty if it is none of them.
std::string_view other_format(const fs::path& path, std::string_view start) {
  if (path.extension() == ".jsonl") return "JSON lines";
  if (start.starts_with("\x1f\x8b")) return "compressed by gzip";
  if (start.starts_with("\x28\xb5\x2f\xfd")) return "compressed by zstd";
  if (start.starts_with("PK\x03\x04")) return "packed by zip";
  if (start.starts_with("PAR1")) return "in Parquet's format";
  if (start.starts_with("\xff\xfe") || start.starts_with("\xfe\xff")) return "in UTF-16";
  return {};
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

}  // namespace

std::string joined(const std::vector<fs::path>& paths) {
  std::string text;
  for (const fs::path& path : paths) text += (text.empty() ? "" : ", ") + path.string();
  return text;
}

TextFiles::TextFiles(const std::vector<fs::path>& sources, int64_t large_from,
                     TextStore::Notice notice)
    : large_from_(large_from), store_(std::move(notice)) {
  for (const fs::path& source : sources) read(source);
}

void TextFiles::read(const fs::path& source) {
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

void TextFiles::leave_out(const fs::path& path, std::string_view why) {
  LeftOut& kind = left_out_[why];
  // The walk's order is the file system's; what is said is not.
  if (kind.count++ == 0 || path < kind.first) kind.first = path;
}

void TextFiles::append(const fs::path& file, bool must_be_text) {
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
  const std::string_view format = other_format(file, start);
  FUSEDBUN_REQUIRE(must_be_text || format.empty(), DataError,
                   file.string() + " is " + std::string(format) +
                       ", whose bytes are no text to learn from: fusedbun data tokenize makes "
                       "tokens of JSON lines and of what gzip and zstd compressed; of others "
                       "give --data what is in them");
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
  if (bytes() > begins_.back()) begins_.push_back(bytes());
  ++files_;
}

}  // namespace fusedbun::data
