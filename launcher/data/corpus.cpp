#include "fusedbun/launcher/data/corpus.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPackingNames[] = {"auto", "stream", "documents"};
constexpr std::string_view kLongNames[] = {"refuse", "cut", "skip"};

template <class Value>
Value parse(std::string_view name, std::span<const std::string_view> names, const char* flag) {
  const auto found = std::ranges::find(names, name);
  if (found != names.end()) return static_cast<Value>(found - names.begin());
  std::string known;
  for (const std::string_view one : names) known += (known.empty() ? "" : ", ") + std::string(one);
  throw ConfigError(std::string(flag) + " = " + std::string(name) + ": must be one of " + known);
}

}  // namespace

std::string_view name_of(Packing packing) {
  return kPackingNames[static_cast<size_t>(packing)];
}
std::string_view name_of(LongDocuments policy) {
  return kLongNames[static_cast<size_t>(policy)];
}
Packing parse_packing(std::string_view name) {
  return parse<Packing>(name, kPackingNames, "--packing");
}
LongDocuments parse_long_documents(std::string_view name) {
  return parse<LongDocuments>(name, kLongNames, "--long-documents");
}

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

void prepare_indexes(const std::vector<fs::path>& sources, const CorpusOptions& options) {
  for (const fs::path& source : sources) {
    if (is_token_file(source)) {
      documents_of(TokenFile(source, options.vocab), options.separator, options.spare_folder,
                   options.notice);
    }
  }
}

Corpus::Corpus(const std::vector<fs::path>& sources, CorpusOptions options)
    : options_(std::move(options)) {
  FUSEDBUN_ASSERT(options_.context >= 1, "a sequence has tokens");
  require_present(sources);
  const auto count = std::ranges::count_if(sources, is_token_file);
  FUSEDBUN_REQUIRE(count == 0 || count == std::ssize(sources), DataError,
                   joined(sources) + ": give --data files of tokens (.bin) or text, not both");
  count > 0 ? read_tokens(sources) : read_text(sources);
  const bool by_documents = options_.packing == Packing::documents ||
                            (options_.packing == Packing::automatic && documents_.has_loss_spans());
  packing_ = by_documents ? Packing::documents : Packing::stream;
  split(sources);
}

void Corpus::read_tokens(const std::vector<fs::path>& sources) {
  for (const fs::path& source : sources) {
    const TokenFile& file = files_.emplace_back(source, options_.vocab);
    file_begins_.push_back(documents_.tokens());
    documents_.append(
        documents_of(file, options_.separator, options_.spare_folder, options_.notice));
  }
}

void Corpus::read_text(const std::vector<fs::path>& sources) {
  FUSEDBUN_REQUIRE(
      options_.vocab == kByteValues, DataError,
      "text is read as bytes, which needs a model of 256 token ids, and this one has " +
          std::to_string(options_.vocab) +
          ": fusedbun data tokenize makes files of its tokens (.bin), which --data reads");
  text_.emplace(sources, options_.large_from, options_.notice);
  FUSEDBUN_REQUIRE(text_->bytes() > 0, DataError, "no text in " + joined(sources));
  documents_.append({text_->begins(), {}, std::nullopt});
}

void Corpus::split(const std::vector<fs::path>& sources) {
  packs_documents() ? split_documents(sources) : split_stream(sources);
}

// The first document of those that validate: the last ones, a tenth of the tokens.
static int64_t first_validation_document(const Documents& documents) {
  const int64_t wanted = std::min(documents.tokens() / 10, kValidationTokensMax);
  return documents.at(documents.tokens() - std::max<int64_t>(1, wanted));
}

void Corpus::split_documents(const std::vector<fs::path>& sources) {
  int64_t border = options_.split == Split::all_training ? documents_.count() : 0;
  if (options_.split == Split::tail) border = first_validation_document(documents_);
  validation_begin_ = documents_.begin(border);
  if (options_.split != Split::all_validation) {
    training_packing_.emplace(documents_, 0, border, options_.context, options_.long_documents);
    FUSEDBUN_REQUIRE(training_packing_->sequences() > 0, DataError,
                     joined(sources) + ": " + std::to_string(documents_.count()) +
                         " documents are too few: some train, others validate");
    order_ = SampleOrder(training_packing_->sequences(), options_.seed);
  }
  if (options_.split == Split::all_training) return;
  validation_packing_.emplace(documents_, border, documents_.count(), options_.context,
                              options_.long_documents);
  validation_samples_ = validation_packing_->sequences();
  FUSEDBUN_REQUIRE(validation_samples_ > 0, DataError,
                   joined(sources) + ": its last documents predict nothing to validate with");
}

void Corpus::split_stream(const std::vector<fs::path>& sources) {
  const int64_t sequence = options_.split == Split::all_validation ? 2 : options_.context + 1;
  const int64_t parts = options_.split == Split::tail ? 2 : 1;
  FUSEDBUN_REQUIRE(tokens() >= parts * sequence, DataError,
                   joined(sources) + ": " + std::to_string(tokens()) +
                       (is_tokens() ? " tokens" : " bytes of text") + " are too few; " +
                       (parts == 2 ? "training and validation need " : "a sequence needs ") +
                       std::to_string(parts * sequence) + " at a context of " +
                       std::to_string(options_.context));
  switch (options_.split) {
    case Split::all_training:
      validation_begin_ = tokens();
      break;
    case Split::all_validation:
      validation_begin_ = 0;
      break;
    case Split::tail: {
      const int64_t wanted = std::max(sequence, std::min(tokens() / 10, kValidationTokensMax));
      validation_begin_ = tokens() - wanted;
      // A border of documents, unless the last document is so long that too much would be held back.
      const int64_t border = documents_.begin(documents_.at(validation_begin_));
      if (border >= sequence && tokens() - border <= std::max(tokens() / 5, wanted))
        validation_begin_ = border;
      break;
    }
  }
  if (options_.split != Split::all_validation) {
    // One fewer than there is room for, where there is room for two: the rest is where each epoch begins anew.
    const int64_t room = (training_tokens() - 1) / options_.context;
    order_ = SampleOrder(std::max<int64_t>(1, room - 1), options_.seed);
  }
  if (options_.split != Split::all_training)
    validation_samples_ = (validation_tokens() - 2 + options_.context) / options_.context;
}

uint64_t Corpus::digest() const {
  uint64_t sum = text_ ? text_->digest() : documents_.digest();
  for (const TokenFile& file : files_) sum = mixed(sum ^ file.fingerprint());
  return sum;
}

void Corpus::read(int64_t begin, std::span<int64_t> tokens) const {
  if (text_) {
    std::string bytes(tokens.size(), '\0');
    text_->read(static_cast<size_t>(begin), bytes);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<unsigned char>(bytes[i]);
    return;
  }
  auto file =
      static_cast<size_t>(std::ranges::upper_bound(file_begins_, begin) - file_begins_.begin() - 1);
  std::vector<uint32_t> raw;
  for (; !tokens.empty(); ++file) {
    const int64_t at = begin - file_begins_[file];
    raw.resize(std::min(tokens.size(), static_cast<size_t>(files_[file].tokens() - at)));
    files_[file].read(at, raw);
    for (size_t i = 0; i < raw.size(); ++i) {
      tokens[i] = raw[i];
      FUSEDBUN_REQUIRE(raw[i] < options_.vocab, DataError,
                       files_[file].place_of(at + static_cast<int64_t>(i)) + ": token " +
                           std::to_string(raw[i]) + ", and the model has " +
                           std::to_string(options_.vocab) +
                           " token ids: the file is of another tokenizer, or no file of tokens");
    }
    begin += std::ssize(raw);
    tokens = tokens.subspan(raw.size());
  }
}

void Corpus::fill(int64_t begin, std::span<const int64_t> tokens, const Sequence& sequence) const {
  const int64_t count = std::ssize(tokens) - 1;
  const auto carries = std::make_unique<bool[]>(tokens.size());
  std::fill_n(carries.get(), tokens.size(), true);
  documents_.clear_without_loss(begin, {carries.get(), tokens.size()});
  int64_t document = documents_.at(begin), first = begin;
  int64_t next = documents_.begin(document + 1);
  for (int64_t i = 0; i < count; ++i) {
    if (begin + i == next) {
      first = next;
      next = documents_.begin(++document + 1);
    }
    // A separator at the begin of a document is how the one before ends.
    const bool is_border = begin + i + 1 == next && options_.has_borders &&
                           (document + 1 == documents_.count() ||
                            documents_.separator_of(document + 1) != tokens[i + 1]);
    sequence.tokens[i] = tokens[i];
    sequence.targets[i] = carries[i + 1] && !is_border ? tokens[i + 1] : kNoTarget;
    sequence.positions[i] = options_.has_borders ? begin + i - first : i;
  }
}

void Corpus::fill_from_stream(int64_t begin, const Sequence& sequence) const {
  // The last sequence that validates may be shorter.
  const int64_t count = std::min(options_.context, tokens() - 1 - begin);
  std::vector<int64_t> tokens(static_cast<size_t>(count) + 1);
  read(begin, tokens);
  fill(begin, tokens, sequence);
  pad(sequence, static_cast<size_t>(count));
}

void Corpus::pad(const Sequence& sequence, size_t filled) const {
  for (size_t i = filled; i < sequence.tokens.size(); ++i) {
    sequence.tokens[i] = 0;
    sequence.targets[i] = kNoTarget;
    sequence.positions[i] = static_cast<int64_t>(options_.has_borders ? i - filled : i);
  }
}

void Corpus::fill_from_documents(const DocumentPacking& packing, int64_t index,
                                 const Sequence& sequence) const {
  std::vector<int64_t> tokens;
  size_t at = 0;
  for (const DocumentPacking::Piece& piece : packing.pieces(index)) {
    const auto count = static_cast<size_t>(piece.count);
    tokens.resize(count + 1);
    read(piece.begin, tokens);
    const Sequence part{sequence.tokens.subspan(at, count), sequence.targets.subspan(at, count),
                        sequence.positions.subspan(at, count)};
    fill(piece.begin, tokens, part);
    at += count;
  }
  pad(sequence, at);
  if (!options_.has_borders)
    for (size_t i = 0; i < sequence.positions.size(); ++i)
      sequence.positions[i] = static_cast<int64_t>(i);
}

void Corpus::training_sample(int64_t index, const Sequence& sequence) const {
  const SampleOrder::Place place = order_.at(index);
  if (training_packing_) {
    fill_from_documents(*training_packing_, place.sample, sequence);
    return;
  }
  const int64_t slack = training_tokens() - training_samples() * options_.context;
  fill_from_stream(order_.drawn(place.epoch, slack) + place.sample * options_.context, sequence);
}

void Corpus::validation_sample(int64_t index, const Sequence& sequence) const {
  if (validation_packing_) {
    fill_from_documents(*validation_packing_, index, sequence);
  } else {
    fill_from_stream(validation_begin_ + index * options_.context, sequence);
  }
}

}  // namespace fusedbun::data
