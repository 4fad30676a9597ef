#include "fusedbun/dist/plan/step_header.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/hex.h"

namespace fusedbun::plan {
namespace {

/// More ranks than this are counted, not listed.
constexpr size_t kRanksListed = 8;

std::string decimal(uint64_t value) {
  return std::to_string(static_cast<int64_t>(value));
}

std::string hash_text(uint64_t value) {
  return "0x" + to_hex(value);
}

/// A field that must be equal. In order of the table the first difference explains the later ones.
struct EqualField {
  std::string verb;
  std::string noun;
  uint64_t (*value)(const StepHeader&);
  std::string (*text)(uint64_t);
};
const EqualField kEqualFields[] = {
    {" is in ", "job step ", [](const StepHeader& h) { return static_cast<uint64_t>(h.job_step); },
     decimal},
    {" uses ", "revision ",
     [](const StepHeader& h) { return static_cast<uint64_t>(h.active_revision); }, decimal},
    {" has ", "change chain ", [](const StepHeader& h) { return h.chain_hash; }, hash_text},
    {" has ", "skipped steps ",
     [](const StepHeader& h) { return static_cast<uint64_t>(h.skipped_steps); }, decimal},
    {" has ", "state digest ", [](const StepHeader& h) { return h.state_digest; }, hash_text},
};

/// What most ranks say; among equally many, what the lowest rank of them says.
uint64_t majority(std::span<const uint64_t> values) {
  std::map<uint64_t, int> votes;
  for (uint64_t value : values) ++votes[value];
  return *std::ranges::max_element(values, {}, [&](uint64_t value) { return votes[value]; });
}

/// "rank 2 is in job step 41, rank 5 is in 39 where rank 0 is in 40", or nothing if all values are
/// equal.
std::optional<std::string> difference(const EqualField& field, std::span<const uint64_t> values) {
  const uint64_t usual = majority(values);
  std::string sentence;
  size_t differing = 0;
  for (size_t rank = 0; rank < values.size(); ++rank) {
    if (values[rank] == usual || ++differing > kRanksListed) continue;
    sentence += (sentence.empty() ? "" : ", ") + ("rank " + std::to_string(rank)) + field.verb +
                (sentence.empty() ? field.noun : "") + field.text(values[rank]);
  }
  if (differing == 0) return std::nullopt;
  if (differing > kRanksListed)
    sentence += " and " + std::to_string(differing - kRanksListed) + " more differ";
  const auto witness = std::ranges::find(values, usual) - values.begin();
  return sentence + " where rank " + std::to_string(witness) + field.verb + field.text(usual);
}

}  // namespace

std::optional<std::string> disagreement(std::span<const StepHeader> headers) {
  for (size_t rank = 0; rank < headers.size(); ++rank) {
    if (headers[rank].rank == rank) continue;
    return "the step header in the place of rank " + std::to_string(rank) + " was sent by rank " +
           std::to_string(headers[rank].rank);
  }
  std::vector<uint64_t> values(headers.size());
  for (const EqualField& field : kEqualFields) {
    std::ranges::transform(headers, values.begin(), field.value);
    if (auto sentence = difference(field, values)) return sentence;
  }
  return std::nullopt;
}

}  // namespace fusedbun::plan
