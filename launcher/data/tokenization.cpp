#include "fusedbun/launcher/data/tokenization.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/descriptor.h"
#include "fusedbun/launcher/data/python_program.h"
#include "fusedbun/launcher/data/tokenizer_match.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::array kEndingSignals = {SIGHUP, SIGINT, SIGTERM};
volatile std::sig_atomic_t ending_signal = 0;
volatile std::sig_atomic_t python_pid = 0;

/// While it lives, a signal that would end this process ends Python instead: what is unfinished is removed, then the signal does its work.
class EndsAfterCleaningUp {
 public:
  explicit EndsAfterCleaningUp(pid_t python) {
    ending_signal = 0;
    python_pid = python;
    struct sigaction action {};
    action.sa_flags = SA_RESTART;
    action.sa_handler = [](int signal) {
      ending_signal = signal;
      if (python_pid > 0) ::kill(python_pid, SIGKILL);
    };
    for (size_t i = 0; i < kEndingSignals.size(); ++i) {
      ::sigaction(kEndingSignals[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kEndingSignals[i], &action, nullptr);
    }
  }
  ~EndsAfterCleaningUp() {
    for (size_t i = 0; i < kEndingSignals.size(); ++i)
      ::sigaction(kEndingSignals[i], &before_[i], nullptr);
    if (ending_signal != 0) ::raise(ending_signal);
  }
  EndsAfterCleaningUp(const EndsAfterCleaningUp&) = delete;  // owns the handlers
  void python_has_ended() { python_pid = 0; }

 private:
  std::array<struct sigaction, kEndingSignals.size()> before_{};
};

/// Reads values of 32 and 64 bits one after the other.
class Words {
 public:
  explicit Words(std::string_view bytes) : rest_(bytes) {}
  bool is_empty() const { return rest_.empty(); }
  template <typename Value>
  void read(Value* values, size_t count) {
    FUSEDBUN_ASSERT(rest_.size() >= count * sizeof(Value), "a batch is as long as it says");
    if (count > 0) std::memcpy(values, rest_.data(), count * sizeof(Value));
    rest_.remove_prefix(count * sizeof(Value));
  }

 private:
  std::string_view rest_;
};

std::vector<std::string> words_for_python(const TokenizeOptions& options, int standard_input) {
  std::vector<std::string> words = {"tokenize",     options.tokenizer,
                                    options.loss,   options.no_eos ? "no-eos" : "eos",
                                    options.format, options.separator};
  for (const std::string& input : options.inputs) {
    const bool is_ours = input == "-" || input == "/dev/stdin";  // Python's own is our messages
    words.push_back(is_ours ? "/dev/fd/" + std::to_string(standard_input) : input);
  }
  return words;
}

ordered_json report_of(const TokenizeOptions& options, const TokenizeCounts& counts,
                       const ordered_json& tokenizer, const ordered_json& read) {
  ordered_json report{{"sources", read.at("sources")}, {"bytes", read.at("bytes")}};
  report.update(tokenizer);
  if (const auto digest = tokenizer_digest(options.tokenizer))
    report[kTokenizerDigestField] = *digest;
  report["loss"] = options.loss;
  report["documents"] = counts.documents;
  report["tokens"] = counts.tokens;
  report["loss_tokens"] = counts.loss_tokens;
  report["left_out"] = read.at("left_out");
  return report;
}

}  // namespace

fs::path report_beside(const fs::path& token_file) {
  return token_file.string() + ".json";
}

int64_t for_each_document(std::string_view batch,
                          const std::function<void(std::span<const uint32_t>,
                                                   std::span<const TokenWriter::LossSpan>)>& take) {
  Words words(batch);
  uint64_t bytes = 0;
  words.read(&bytes, 1);
  std::vector<uint32_t> tokens;
  std::vector<TokenWriter::LossSpan> spans;
  while (!words.is_empty()) {
    std::array<uint32_t, 2> counts{};
    words.read(counts.data(), counts.size());
    tokens.resize(counts[0]);
    spans.resize(counts[1]);
    words.read(tokens.data(), tokens.size());
    words.read(spans.data(), spans.size());
    take(tokens, spans);
  }
  return static_cast<int64_t>(bytes);
}

TokenizeReport tokenize(const TokenizeOptions& options,
                        const std::function<void(const TokenizeCounts&)>& progress) {
  FUSEDBUN_REQUIRE(is_token_file(options.out), ConfigError,
                   options.out.string() + ": files of tokens have names that end in .bin");
  FUSEDBUN_REQUIRE(
      options.overwrite || !fs::exists(options.out), ConfigError,
      options.out.string() + " is there already: give another --out, or --overwrite to replace it");
  run_folder::require_writable(options.out);
  const run_folder::Descriptor standard_input(::dup(STDIN_FILENO));
  PythonProgram python(words_for_python(options, standard_input.value()));
  EndsAfterCleaningUp ends_after(python.pid());

  std::optional<TokenWriter> writer;
  ordered_json tokenizer, read;
  TokenizeCounts counts;
  while (const std::optional<std::string> message = python.receive()) {
    const std::string_view body = std::string_view(*message).substr(1);
    if (message->front() == 'H') {
      tokenizer = ordered_json::parse(body);
      writer.emplace(options.out, tokenizer.at("vocabulary_size").get<int64_t>());
    } else if (message->front() == 'B') {
      counts.bytes =
          for_each_document(body, [&](auto tokens, auto loss) { writer->add(tokens, loss); });
      counts.documents = writer->documents();
      counts.tokens = writer->tokens();
      counts.loss_tokens = writer->loss_tokens();
      progress(counts);
    } else {
      read = ordered_json::parse(body);
    }
  }
  ends_after.python_has_ended();
  TokenizeReport report{.counts = counts, .left_out = read.at("left_out")};
  std::string why;
  for (const LeftOut& kind : report.left_out) why += "; " + text_of(kind);
  FUSEDBUN_REQUIRE(counts.documents > 0, DataError, "no document is left to be written" + why);
  run_folder::AtomicFile report_file(report_beside(options.out));
  report_file.write(report_of(options, counts, tokenizer, read).dump(2) + "\n");
  writer->commit();
  report_file.commit();
  return report;
}

}  // namespace fusedbun::data
