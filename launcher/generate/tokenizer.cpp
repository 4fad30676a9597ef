#include "fusedbun/launcher/generate/tokenizer.h"

#include <cstring>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/data/corpus.h"

namespace fusedbun::generate {

Tokenizer::Tokenizer(const std::filesystem::path& folder, int64_t vocab)
    : file_(folder / "tokenizer.json") {
  std::error_code error;
  if (std::filesystem::exists(file_, error)) {
    python_.emplace(std::vector<std::string>{"generate", file_.string()});
    return;
  }
  FUSEDBUN_REQUIRE(vocab == data::kByteValues, DataError,
                   "there is no " + file_.string() + ", and the model's " + std::to_string(vocab) +
                       " token ids are no bytes");
}

std::string Tokenizer::answer_to(std::string_view message) {
  python_->send(message);
  const std::optional<std::string> answer = python_->receive();
  FUSEDBUN_REQUIRE(answer, IoError, "the tokenizer's process has ended too early");
  return *answer;
}

std::vector<int64_t> Tokenizer::encode(const std::string& prompt, bool is_chat) {
  if (!python_) {
    FUSEDBUN_REQUIRE(
        !is_chat, ConfigError,
        "--chat needs a tokenizer with a chat template, and there is no " + file_.string());
    std::vector<int64_t> bytes;
    for (const char byte : prompt) bytes.push_back(static_cast<unsigned char>(byte));
    return bytes;
  }
  const std::string answer = answer_to((is_chat ? "chat\n" : "text\n") + prompt);
  std::vector<int32_t> tokens(answer.size() / sizeof(int32_t));
  std::memcpy(tokens.data(), answer.data(), tokens.size() * sizeof(int32_t));
  return {tokens.begin(), tokens.end()};
}

std::string Tokenizer::decode(int64_t token) {
  if (!python_) return {static_cast<char>(token)};
  const auto id = static_cast<int32_t>(token);
  return answer_to({reinterpret_cast<const char*>(&id), sizeof id});
}

std::string Tokenizer::finish() {
  if (!python_) return {};
  std::string rest = answer_to({});
  python_->finish();
  return rest;
}

}  // namespace fusedbun::generate
