#include "fusedbun/launcher/data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::data {
namespace {

using support::ScratchFolder;
using support::write_text;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using Tokens = std::vector<int64_t>;

std::string numbered(size_t bytes) {
  std::string text;
  for (int i = 0; text.size() < bytes; ++i) text += std::to_string(i) + "\n";
  return text.substr(0, bytes);
}

struct Sample {
  Tokens tokens, targets, positions;
  bool operator==(const Sample&) const = default;
};

Sample filled(int64_t context, const std::function<void(const Sequence&)>& fill) {
  Sample sample{Tokens(static_cast<size_t>(context)), Tokens(static_cast<size_t>(context)),
                Tokens(static_cast<size_t>(context))};
  fill({sample.tokens, sample.targets, sample.positions});
  return sample;
}
Sample training(const Corpus& corpus, int64_t index) {
  return filled(corpus.context(), [&](const Sequence& s) { corpus.training_sample(index, s); });
}
Sample validation(const Corpus& corpus, int64_t index) {
  return filled(corpus.context(), [&](const Sequence& s) { corpus.validation_sample(index, s); });
}

template <class Token>
std::string bytes_of(const std::vector<Token>& tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof tokens[0]};
}
template <class Token>
std::string counting(int64_t count, int64_t vocab) {
  std::vector<Token> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<Token>(i % vocab));
  return bytes_of(tokens);
}
/// llm.c's.
std::string header(int32_t magic, int32_t version, int32_t tokens) {
  std::vector<int32_t> words(256);
  words[0] = magic;
  words[1] = version;
  words[2] = tokens;
  return bytes_of(words);
}

class CorpusTest : public testing::Test {
 protected:
  std::filesystem::path raw(const std::string& name, const std::vector<uint16_t>& tokens) {
    write_text(folder_ / name, bytes_of(tokens));
    return folder_ / name;
  }
  ScratchFolder folder_;
};

// ---- text -----------------------------------------------------------------------------------------

TEST_F(CorpusTest, AFileThatIsNamedIsTakenAsItIs) {
  write_text(folder_ / "bytes", std::string("\0\xff\0\xfe\0\n", 6));
  const Corpus corpus({folder_ / "bytes"}, {.context = 2});
  EXPECT_THAT(validation(corpus, 0).tokens, ElementsAre(0xfe, 0)) << "0 to 255, never negative";
  EXPECT_THAT(validation(corpus, 0).targets, ElementsAre(0, '\n'));
  write_text(folder_ / "short", "abc");
  const Corpus whole({folder_ / "short"}, {.context = 8, .split = Split::all_validation});
  EXPECT_THAT(validation(whole, 0).targets, ElementsAre('b', 'c', '\n', -1, -1, -1, -1, -1));
}

TEST_F(CorpusTest, TheLastTenthOfOneDocumentIsHeldBackWithinLimits) {
  write_text(folder_ / "text", numbered(10'000));
  EXPECT_EQ(Corpus({folder_ / "text"}, {.context = 100}).validation_tokens(), 1000);
  EXPECT_EQ(Corpus({folder_ / "text"}, {.context = 2000}).validation_tokens(), 2001)
      << "at least a context";
  write_text(folder_ / "text", numbered(1'000'000));
  EXPECT_EQ(Corpus({folder_ / "text"}, {.context = 100}).validation_tokens(), kValidationTokensMax);
}

TEST_F(CorpusTest, ValidationBeginsWithADocumentUnlessThatTakesTooMuch) {
  write_text(folder_ / "a", numbered(8'500));
  write_text(folder_ / "b", numbered(1'500));
  EXPECT_EQ(Corpus({folder_ / ""}, {.context = 100}).validation_tokens(), 1'501)
      << "with its newline";
  write_text(folder_ / "a", numbered(5'000));
  write_text(folder_ / "b", numbered(5'000));
  EXPECT_EQ(Corpus({folder_ / ""}, {.context = 100}).validation_tokens(), 1'000);
  write_text(folder_ / "b", numbered(500));
  write_text(folder_ / "c", numbered(500));
  EXPECT_EQ(Corpus({folder_ / ""}, {.context = 100}).validation_tokens(), 1'002)
      << "two documents reach a tenth";
}

TEST_F(CorpusTest, FilesOfTheirOwnValidate) {
  write_text(folder_ / "text", numbered(10'000));
  const Corpus all({folder_ / "text"}, {.context = 100, .split = Split::all_training});
  EXPECT_EQ(all.training_tokens(), 10'000);
  EXPECT_EQ(all.validation_samples(), 0);
  const Corpus others({folder_ / "text"}, {.context = 100, .split = Split::all_validation});
  EXPECT_EQ(others.training_tokens(), 0);
  EXPECT_EQ(others.validation_samples(), 100);
}

TEST_F(CorpusTest, SamplesDependOnSeedAndIndexAlone) {
  write_text(folder_ / "text", numbered(50'000));
  const Corpus one({folder_ / "text"}, {.context = 16, .seed = 1});
  const Corpus same({folder_ / "text"}, {.context = 16, .seed = 1});
  const Corpus other({folder_ / "text"}, {.context = 16, .seed = 2});
  EXPECT_EQ(training(one, 73), training(same, 73));
  EXPECT_NE(training(one, 73), training(other, 73));
  EXPECT_NE(training(one, 73), training(one, 74));
}

// An epoch sees each of its tokens once, in sequences that do not overlap; the next cuts elsewhere.
TEST_F(CorpusTest, AnEpochSeesTheTrainingTextOnce) {
  constexpr int64_t kTokens = 2003, kContext = 50;
  write_text(folder_ / "a.bin", counting<uint16_t>(kTokens, kTokens));
  const Corpus corpus({folder_ / "a.bin"}, {.context = kContext, .vocab = kTokens});
  std::set<int64_t> begins;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    std::set<int64_t> seen;
    int64_t least = kTokens;
    for (int64_t i = 0; i < corpus.training_samples(); ++i) {
      const Sample sample = training(corpus, epoch * corpus.training_samples() + i);
      for (size_t at = 0; at < sample.tokens.size(); ++at) {
        EXPECT_TRUE(seen.insert(sample.tokens[at]).second) << "seen twice in an epoch";
        EXPECT_EQ(sample.targets[at], sample.tokens[at] + 1);
        EXPECT_LT(sample.targets[at], corpus.training_tokens());
      }
      least = std::min(least, sample.tokens[0]);
    }
    EXPECT_GE(std::ssize(seen), corpus.training_tokens() - 2 * kContext - 1);
    begins.insert(least);
  }
  EXPECT_GT(begins.size(), 1u);
}

TEST_F(CorpusTest, SamplesReachTheWholeTrainingText) {
  write_text(folder_ / "text", numbered(120));
  const Corpus corpus({folder_ / "text"}, {.context = 7});
  std::set<Tokens> seen;
  for (int64_t i = 0; i < 40'000; ++i) seen.insert(training(corpus, i).tokens);
  EXPECT_EQ(std::ssize(seen), corpus.training_tokens() - 7)
      << "every start whose targets lie in the text";
}

TEST_F(CorpusTest, ValidationSamplesCoverTheValidationTextOnce) {
  const std::string text = numbered(2'999) + "\n";
  write_text(folder_ / "text", text);
  const Corpus corpus({folder_ / "text"}, {.context = 20});
  ASSERT_EQ(corpus.validation_tokens(), 300);
  ASSERT_EQ(corpus.validation_samples(), 15);
  std::string targets;
  for (int64_t i = 0; i < 15; ++i) {
    for (const int64_t target : validation(corpus, i).targets) {
      if (target != kNoTarget) targets += static_cast<char>(target);
    }
  }
  EXPECT_EQ(targets, text.substr(2'701));
}

TEST_F(CorpusTest, RefusalsNameThePath) {
  const auto refusal = [&](const char* name, int64_t context) {
    return [this, name, context] { Corpus({folder_ / name}, {.context = context}); };
  };
  EXPECT_THAT(refusal("absent", 4),
              ThrowsMessage<DataError>(HasSubstr((folder_ / "absent").string())));
  write_text(folder_ / "empty", "");
  EXPECT_THAT(refusal("empty", 4), ThrowsMessage<DataError>(HasSubstr("empty is empty")));
  std::filesystem::create_directory(folder_ / "nothing");
  EXPECT_THAT(refusal("nothing", 4), ThrowsMessage<DataError>(HasSubstr("no text in")));
  write_text(folder_ / "short", "123456789\n");
  EXPECT_NO_THROW(refusal("short", 4)());
  EXPECT_THAT(refusal("short", 5),
              ThrowsMessage<DataError>(HasSubstr("10 bytes of text are too few")));
}

// ---- files of tokens ----------------------------------------------------------------------------

TEST_F(CorpusTest, TokensAreReadInBothLayouts) {
  write_text(folder_ / "nano.bin", counting<uint16_t>(2000, 300));
  write_text(folder_ / "nano_wide.bin", counting<uint32_t>(2000, 70000));
  write_text(folder_ / "llmc.bin", header(20240520, 1, 2000) + counting<uint16_t>(2000, 300));
  write_text(folder_ / "llama.bin", header(20240801, 7, 2000) + counting<uint32_t>(2000, 70000));
  for (const auto& [name, vocab] : {std::pair("nano.bin", 300),
                                    {"nano_wide.bin", 70000},
                                    {"llmc.bin", 300},
                                    {"llama.bin", 70000}}) {
    const Corpus corpus({folder_ / name}, {.context = 10, .vocab = vocab});
    EXPECT_TRUE(corpus.is_tokens());
    EXPECT_EQ(corpus.tokens(), 2000) << name;
    EXPECT_EQ(corpus.training_tokens(), 1800) << name;
    const Sample first = validation(corpus, 0);
    for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(first.tokens[i], (1800 + i) % vocab) << name;
    const Sample drawn = training(corpus, 2);
    for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(drawn.targets[i], (drawn.tokens[i] + 1) % vocab);
  }
}

TEST_F(CorpusTest, SeveralFilesOfTokensFollowOneAnotherAsDocuments) {
  write_text(folder_ / "a.bin", counting<uint16_t>(7, 300));
  write_text(folder_ / "b.bin", header(20240520, 1, 30) + counting<uint16_t>(30, 300));
  const Corpus corpus({folder_ / "a.bin", folder_ / "b.bin"}, {.context = 4, .vocab = 300});
  EXPECT_EQ(corpus.tokens(), 37);
  EXPECT_EQ(corpus.files(), 2);
  EXPECT_THAT(validation(corpus, 0).tokens, ElementsAre(25, 26, 27, 28));
  const Corpus all({folder_ / "a.bin", folder_ / "b.bin"},
                   {.context = 4, .vocab = 300, .split = Split::all_validation});
  EXPECT_EQ(validation(all, 1), (Sample{{4, 5, 6, 0}, {5, 6, -1, 1}, {0, 1, 2, 0}}));
}

// Documents end with the separator, token 99: it is predicted, and what follows it is not.
TEST_F(CorpusTest, AttentionAndTargetsEndWithADocument) {
  const auto path = raw("a.bin", {1, 2, 99, 3, 4, 5, 99, 6, 99, 7, 8, 9, 10, 11, 12, 13});
  CorpusOptions options{
      .context = 8, .vocab = 300, .split = Split::all_validation, .separator = 99};
  EXPECT_EQ(validation(Corpus({path}, options), 0), (Sample{{1, 2, 99, 3, 4, 5, 99, 6},
                                                            {2, 99, -1, 4, 5, 99, -1, 99},
                                                            {0, 1, 2, 0, 1, 2, 3, 0}}));
  options.has_borders = false;
  EXPECT_EQ(
      validation(Corpus({path}, options), 0),
      (Sample{{1, 2, 99, 3, 4, 5, 99, 6}, {2, 99, 3, 4, 5, 99, 6, 99}, {0, 1, 2, 3, 4, 5, 6, 7}}));
}

// Documents begin with it: then it is how the one before ends.
TEST_F(CorpusTest, ASeparatorThatBeginsDocumentsIsPredictedByTheOneBefore) {
  const auto path = raw("a.bin", {99, 1, 2, 99, 3, 4, 5, 99, 6, 7, 8});
  const CorpusOptions options{
      .context = 8, .vocab = 300, .split = Split::all_validation, .separator = 99};
  EXPECT_EQ(
      validation(Corpus({path}, options), 0),
      (Sample{{99, 1, 2, 99, 3, 4, 5, 99}, {1, 2, 99, 3, 4, 5, 99, 6}, {0, 1, 2, 0, 1, 2, 3, 0}}));
}

TEST_F(CorpusTest, WherePromptsCarryNoLossDocumentsStayWhole) {
  TokenWriter writer(folder_ / "w.bin", 300);
  const std::vector<uint32_t> first = {1, 2, 3, 4}, second = {5, 6, 7}, third = {8, 9, 10, 11, 12};
  const TokenWriter::LossSpan loss[] = {{2, 4}}, tail[] = {{2, 3}};
  for (int i = 0; i < 10; ++i) {
    writer.add(first, loss);
    writer.add(second, tail);
    writer.add(third, {});
  }
  writer.commit();
  const Corpus corpus({folder_ / "w.bin"}, {.context = 6, .vocab = 300});
  EXPECT_TRUE(corpus.packs_documents());
  EXPECT_FALSE(corpus.predicts_everywhere());
  EXPECT_EQ(corpus.validation_tokens(), 12) << "three documents reach a tenth";
  EXPECT_EQ(validation(corpus, 0),
            (Sample{{1, 2, 3, 5, 6, 0}, {-1, 3, 4, -1, 7, -1}, {0, 1, 2, 0, 1, 0}}));
  EXPECT_EQ(validation(corpus, 1),
            (Sample{{8, 9, 10, 11, 0, 0}, {9, 10, 11, 12, -1, -1}, {0, 1, 2, 3, 0, 1}}));
  EXPECT_EQ(corpus.training_samples(), 18) << "nine times two sequences";
  std::multiset<Tokens> seen;
  for (int64_t i = 0; i < 18; ++i) seen.insert(training(corpus, i).tokens);
  EXPECT_EQ(seen.count({1, 2, 3, 5, 6, 0}), 9u);
  EXPECT_EQ(seen.count({8, 9, 10, 11, 0, 0}), 9u);
  const Corpus stream({folder_ / "w.bin"},
                      {.context = 6, .vocab = 300, .packing = Packing::stream});
  EXPECT_FALSE(stream.packs_documents());
  EXPECT_EQ(validation(stream, 0),
            (Sample{{1, 2, 3, 4, 5, 6}, {-1, 3, 4, -1, -1, 7}, {0, 1, 2, 3, 0, 1}}));
}

TEST_F(CorpusTest, TokensThatCannotBeAreRefusedWithTheirPlace) {
  const auto expect_refused = [&](const std::vector<std::string>& names, int64_t vocab,
                                  const std::string& why) {
    std::vector<std::filesystem::path> paths;
    for (const std::string& name : names) paths.push_back(folder_ / name);
    const auto read = [&] {
      const Corpus corpus(paths, {.context = 4, .vocab = vocab});
      for (int64_t i = 0; i < corpus.validation_samples(); ++i) validation(corpus, i);
    };
    EXPECT_THAT(read, ThrowsMessage<DataError>(HasSubstr(why)));
  };
  write_text(folder_ / "good.bin", counting<uint16_t>(100, 300));
  write_text(folder_ / "odd.bin", counting<uint16_t>(100, 300) + "x");
  write_text(folder_ / "cut.bin", header(20240520, 1, 2000) + counting<uint16_t>(1000, 300));
  write_text(folder_ / "empty.bin", "");
  write_text(folder_ / "text", numbered(1000));
  expect_refused({"good.bin"}, 95, "good.bin, byte 190: token 95, and the model has 95 token ids");
  expect_refused({"odd.bin"}, 300, "has 201 bytes of tokens");
  expect_refused({"cut.bin"}, 300, "says that it has 2000 tokens, and has 1000");
  expect_refused({"empty.bin"}, 300, "is empty");
  expect_refused({"good.bin", "text"}, 300, "files of tokens (.bin) or text, not both");
  expect_refused({"text"}, 300, "a model of 256 token ids, and this one has 300");
  expect_refused({"gone.bin"}, 300, "no text at");
}

TEST_F(CorpusTest, AFileOfTokensIsKnownByItsSizeAndPlacesOfIt) {
  std::string bytes = counting<uint16_t>(3'000'000, 300);
  const auto digest = [&](const char* name) {
    return Corpus({folder_ / name}, {.context = 10, .vocab = 300}).digest();
  };
  write_text(folder_ / "a.bin", bytes);
  EXPECT_EQ(digest("a.bin"), digest("a.bin"));
  bytes[0] ^= 1;
  write_text(folder_ / "b.bin", bytes);
  EXPECT_NE(digest("b.bin"), digest("a.bin"));
  write_text(folder_ / "c.bin", counting<uint16_t>(3'000'001, 300));
  EXPECT_NE(digest("c.bin"), digest("a.bin"));
}

/// Memory that this process alone has, in KiB; pages of files are the system's, and all ranks share them.
int64_t own_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8));
  }
  return 0;
}

// Ten gigabytes that take no room on the disk; a start reads places of them and no more.
TEST_F(CorpusTest, TenGigabytesOfTokensAreThereAtOnce) {
  write_text(folder_ / "large.bin", "");
  constexpr int64_t kBytes = int64_t{10} << 30;
  std::error_code error;
  std::filesystem::resize_file(folder_ / "large.bin", kBytes, error);
  if (error) GTEST_SKIP() << "no sparse file here: " << error.message();
  const TokenFile file(folder_ / "large.bin", 300);
  std::vector<uint64_t> begins;  // as a scan would have left it: ten million documents
  for (int64_t at = 0; at < kBytes / 2; at += 512) begins.push_back(static_cast<uint64_t>(at));
  begins.push_back(kBytes / 2);
  DocumentIndex(begins, {}, 0).write(DocumentIndex::beside(file.path()), file);
  begins = {};
  const int64_t before = own_memory();
  const Corpus corpus({folder_ / "large.bin"}, {.context = 1024, .vocab = 300, .separator = 0});
  EXPECT_EQ(corpus.tokens(), kBytes / 2);
  EXPECT_EQ(corpus.documents(), kBytes / 2 / 512);
  EXPECT_EQ(training(corpus, 2).tokens, Tokens(1024));
  for (int64_t i = 0; i < 1000; ++i) training(corpus, i);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static_cast<void>(
      before);  // sanitizers keep freed memory, and have memory of their own for what is touched
#else
  EXPECT_LT(own_memory() - before, 4 << 10) << "KiB";
#endif
}

// A dumb second implementation: the corpus as one table of tokens, begins and loss.
TEST_F(CorpusTest, StreamsAreThoseOfATable) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::mt19937_64 random(seed);
    TokenWriter writer(folder_ / "w.bin", 300);
    Tokens tokens;
    std::vector<bool> begins, carries;
    while (tokens.size() < 400) {
      std::vector<uint32_t> document(1 + random() % 30);
      for (uint32_t& token : document) token = static_cast<uint32_t>(random() % 300);
      const auto from = static_cast<uint32_t>(random() % document.size());
      const TokenWriter::LossSpan span[] = {{from, static_cast<uint32_t>(document.size())}};
      const bool has_span = random() % 2 == 0;
      writer.add(document, has_span ? std::span<const TokenWriter::LossSpan>(span)
                                    : std::span<const TokenWriter::LossSpan>());
      for (size_t i = 0; i < document.size(); ++i) {
        tokens.push_back(document[i]);
        begins.push_back(i == 0);
        carries.push_back(!has_span || i >= from);
      }
    }
    writer.commit();
    const int64_t context = 1 + static_cast<int64_t>(random() % 60);
    const Corpus corpus({folder_ / "w.bin"}, {.context = context,
                                              .vocab = 300,
                                              .split = Split::all_validation,
                                              .packing = Packing::stream});
    for (int64_t index = 0; index + 1 < corpus.validation_samples(); ++index) {
      Sample expected;
      for (int64_t i = 0, position = 0; i < context; ++i, ++position) {
        const auto at = static_cast<size_t>(index * context + i);
        if (begins[at]) position = 0;
        expected.tokens.push_back(tokens[at]);
        expected.positions.push_back(position);
        expected.targets.push_back(begins[at + 1] || !carries[at + 1] ? -1 : tokens[at + 1]);
      }
      ASSERT_EQ(validation(corpus, index), expected) << "seed " << seed << ", sequence " << index;
    }
  }
}

TEST_F(CorpusTest, NamesAreReadBack) {
  for (const Packing packing : {Packing::automatic, Packing::stream, Packing::documents})
    EXPECT_EQ(parse_packing(name_of(packing)), packing);
  for (const LongDocuments policy :
       {LongDocuments::refuse, LongDocuments::cut, LongDocuments::skip})
    EXPECT_EQ(parse_long_documents(name_of(policy)), policy);
  EXPECT_THAT(
      [] { parse_packing("tight"); },
      ThrowsMessage<ConfigError>("--packing = tight: must be one of auto, stream, documents"));
}

}  // namespace
}  // namespace fusedbun::data
