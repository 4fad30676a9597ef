#include "fusedbun/dist/plan/agreement.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

constexpr size_t kWordBits = 63;  // the sign bit stays free
constexpr size_t kEqualFacts = 8;
constexpr size_t kFlags = 4 * kEqualFacts;
constexpr size_t kBits = kFlags + 1;
constexpr int64_t kNonfinite = 1, kRefuses = 2;
/// More ranks than this are counted, not listed.
constexpr size_t kDifferingListed = 8;

std::array<uint64_t, kEqualFacts> words_of(const EqualFacts& facts) {
  return {static_cast<uint64_t>(facts.call),
          static_cast<uint64_t>(facts.job_step),
          static_cast<uint64_t>(facts.passes),
          std::bit_cast<uint64_t>(facts.divisor),
          std::bit_cast<uint64_t>(facts.loss_scale),
          std::bit_cast<uint64_t>(facts.max_grad_norm),
          facts.writes,
          facts.unfrozen};
}

size_t words_for(size_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

void append_bits(std::vector<int64_t>& message, const std::vector<bool>& bits) {
  const size_t begin = message.size();
  message.resize(begin + words_for(bits.size()));
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i]) message[begin + i / kWordBits] |= int64_t{1} << (i % kWordBits);
  }
}

std::vector<bool> read_bits(std::span<const int64_t> words, size_t count) {
  std::vector<bool> bits(count);
  for (size_t i = 0; i < count; ++i) bits[i] = (words[i / kWordBits] >> (i % kWordBits)) & 1;
  return bits;
}

std::string number(double value) {
  std::string text = std::to_string(value);
  while (text.find('.') != std::string::npos && (text.back() == '0' || text.back() == '.')) {
    const bool was_point = text.back() == '.';
    text.pop_back();
    if (was_point) break;
  }
  return text;
}

std::string steps(int64_t count) {
  return std::to_string(count) + (count == 1 ? " step" : " steps");
}

std::string call_text(const EqualFacts& facts) {
  return "called " + std::string(name_of(facts.call)) + " after " + steps(facts.job_step);
}

std::string passes_text(const EqualFacts& facts) {
  return "accumulated the gradients of " + std::to_string(facts.passes) + " backward pass" +
         (facts.passes == 1 ? "" : "es");
}

/// A fact in words, and what to do when ranks differ in it.
struct FactText {
  std::string (*text)(const EqualFacts&);
  std::string_view advice;
};
const FactText kFactTexts[] = {
    {call_text, "all ranks must make the same calls of the optimizer equally often"},
    {passes_text,
     "run the same number of passes on all ranks, or set ShardedOptions::gradient_divisor"},
    {[](const EqualFacts& f) { return "divides the gradients by " + number(f.divisor); },
     "set ShardedOptions::gradient_divisor alike on all ranks"},
    {[](const EqualFacts& f) { return "scaled its loss by " + number(f.loss_scale); },
     "give step() the same loss_scale on all ranks"},
    {[](const EqualFacts& f) { return "clips at " + number(f.max_grad_norm); },
     "set ShardedOptions::max_grad_norm alike on all ranks"},
};

std::optional<std::string> difference(const FactText& fact, std::span<const EqualFacts> ranks) {
  std::map<std::string, size_t> votes;
  for (const EqualFacts& facts : ranks) ++votes[fact.text(facts)];
  if (votes.size() == 1) return std::nullopt;
  // What most ranks say is the norm; among equally many, what the lowest rank of them says.
  size_t witness = 0;
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    if (votes[fact.text(ranks[rank])] > votes[fact.text(ranks[witness])]) witness = rank;
  }
  const std::string usual = fact.text(ranks[witness]);
  std::string sentence;
  size_t differing = 0;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::string text = fact.text(ranks[rank]);
    if (text == usual || ++differing > kDifferingListed) continue;
    sentence += (sentence.empty() ? "rank " : ", rank ") + std::to_string(rank) + " " + text;
  }
  if (differing > kDifferingListed) {
    sentence += " and " + std::to_string(differing - kDifferingListed) + " more differ";
  }
  return sentence + " where rank " + std::to_string(witness) + " " + usual + ": " +
         std::string(fact.advice);
}

}  // namespace

std::string_view name_of(OptimizerCall call) {
  switch (call) {
    case OptimizerCall::step:
      return "step()";
    case OptimizerCall::finish:
      return "finish()";
    case OptimizerCall::add_group:
      return "add_param_group()";
    case OptimizerCall::write_parameters:
      return "write_parameters()";
    case OptimizerCall::backward:
      return "backward()";
    case OptimizerCall::save:
      return "a save";
    case OptimizerCall::load:
      return "a load";
  }
  FUSEDBUN_ASSERT(false, "a call that does not exist");
}

std::vector<int64_t> agreement_message(const RankFacts& facts) {
  // Half words, so that neither a value nor its complement needs the sign bit.
  std::vector<int64_t> message;
  constexpr uint64_t kHalf = 0xffffffff;
  for (const uint64_t word : words_of(facts.equal)) {
    for (const uint64_t half : {word & kHalf, word >> 32}) {
      message.push_back(static_cast<int64_t>(half));
      message.push_back(static_cast<int64_t>(~half & kHalf));
    }
  }
  message.push_back((facts.nonfinite ? kNonfinite : 0) | (facts.refuses ? kRefuses : 0));
  append_bits(message, facts.used);
  append_bits(message, facts.dirty);
  return message;
}

Agreement read_agreement(std::span<const int64_t> combined, size_t parameters, size_t buckets) {
  FUSEDBUN_ASSERT(combined.size() == kBits + words_for(parameters) + words_for(buckets),
                  "an agreement message of " + std::to_string(combined.size()) + " words");
  Agreement agreement;
  for (size_t i = 0; i < kFlags; i += 2) {
    agreement.is_equal &= (combined[i] & combined[i + 1]) == 0;
  }
  agreement.nonfinite = (combined[kFlags] & kNonfinite) != 0;
  agreement.refused = (combined[kFlags] & kRefuses) != 0;
  agreement.used = read_bits(combined.subspan(kBits), parameters);
  agreement.dirty = read_bits(combined.subspan(kBits + words_for(parameters)), buckets);
  return agreement;
}

std::optional<std::string> disagreement(std::span<const EqualFacts> ranks) {
  for (const FactText& fact : kFactTexts) {
    if (auto sentence = difference(fact, ranks)) return sentence;
  }
  return std::nullopt;
}

double clip_factor(double norm, double max_grad_norm) {
  return max_grad_norm > 0 && norm > max_grad_norm ? max_grad_norm / norm : 1;
}

}  // namespace fusedbun::plan
