#include "fusedbun/launcher/launch/rank_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/log_record.h"

namespace fusedbun::launch {

RankStream::RankStream(Options options) : options_(std::move(options)) {
  if (options_.log_file.empty()) return;
  log_ = ::open(options_.log_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  FUSEDBUN_REQUIRE(
      log_ >= 0, IoError,
      "cannot write log file " + options_.log_file.string() + ": " + std::strerror(errno));
}

RankStream::~RankStream() {
  ::close(options_.descriptor);
  if (log_ >= 0) ::close(log_);
}

bool RankStream::read_some() {
  std::array<char, 64 << 10> bytes;
  const ssize_t size = ::read(options_.descriptor, bytes.data(), bytes.size());
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  const std::string_view text(bytes.data(), static_cast<size_t>(size));
  write_log(text);
  pass_on(text);
  return size > 0;
}

void RankStream::finish() {
  if (!line_.empty()) end_line();
}

void RankStream::pass_on(std::string_view text) {
  for (size_t end; (end = text.find('\n')) != text.npos; text.remove_prefix(end + 1)) {
    line_ += text.substr(0, end);
    end_line();
  }
  line_ += text;
  if (line_.size() > kLineBytesMax) finish();
}

void RankStream::end_line() {
  if (options_.console != nullptr)
    options_.console->put_line(launcher::is_log_record(line_) ? "" : options_.prefix, line_);
  const bool is_blank = line_.find_first_not_of(" \t\r") == line_.npos;
  if (options_.last_line != nullptr && !is_blank) *options_.last_line = line_;
  line_.clear();
}

void RankStream::write_log(std::string_view text) {
  while (log_ >= 0 && !text.empty()) {
    const ssize_t written = ::write(log_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {  // a full disk must not end the ranks; their text still goes to the console
      ::close(std::exchange(log_, -1));
      if (options_.console != nullptr) {
        options_.console->put_line("fusedbun: ",
                                   options_.log_file.string() + ": " + std::strerror(errno));
      }
      return;
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace fusedbun::launch
