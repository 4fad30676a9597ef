#pragma once
// ChangeRequest: what somebody asks of a running job's hyperparameters, and the check of its values. A request is right as a
// whole or refused as a whole; a refusal is a value, with the reason that programs read.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/change.h"

namespace fusedbun::changes {

/// One new value. The group is a group's name, or "*" for all groups and the job.
struct ValuePatch {
  std::string group;
  Field field = Field::learning_rate;
  double value = 0;  ///< booleans as 0 and 1

  bool operator==(const ValuePatch&) const = default;
};

struct ChangeRequest {
  std::vector<ValuePatch> patches;       ///< taken in order
  std::optional<int64_t> apply_at_step;  ///< empty: the next step that can be reached
  std::optional<int64_t>
      cancels;         ///< takes this revision back; then there are no patches, step and etag
  std::string reason;  ///< at most kReasonBytesMax
  std::string actor;
  std::string request_id;      ///< empty: none; at most kRequestIdBytesMax
  std::string etag;            ///< "*": whatever holds
  int64_t create_time_us = 0;  ///< Unix time, given by the caller
};
inline constexpr size_t kReasonBytesMax = 256;
inline constexpr size_t kRequestIdBytesMax = 64;
inline constexpr size_t kPatchesMax = 1024;

enum class RefusalKind : uint8_t {
  invalid_argument,  ///< can never be right
  not_found,
  failed_precondition,  ///< this job cannot do that
  out_of_range,         ///< the step is past, or too near
  aborted,              ///< somebody else was faster: look again
  resource_exhausted,
  unavailable,        ///< not now
  unauthenticated,    ///< nobody knows who asks
  permission_denied,  ///< who asks may not
};

struct Refusal {
  RefusalKind kind = RefusalKind::invalid_argument;
  std::string reason;   ///< UPPER_SNAKE, at most 63 characters
  std::string message;  ///< one sentence
  std::vector<std::pair<std::string, std::string>> metadata;
};

/// An invalid argument without metadata.
Refusal invalid(std::string reason, std::string message);

/// A param group as changes see it.
struct LedgerGroup {
  std::string name;
  int64_t parameter_count = 0;
  Options options;  ///< as constructed
  /// A change of weight decay for all groups leaves it out.
  bool is_exempt_from_decay = false;
};

/// What a client sent, cut to what fits into an answer to it.
std::string echo(std::string_view text);

/// Is it small enough to be kept: number of values, length of reason and request_id?
std::optional<Refusal> check_size(const ChangeRequest& request);

/// The request's values as entries for the ranks, revision and step still 0; or why they cannot be taken. Checks names,
/// sizes, ranges (field_specs), values set twice, and what was fixed at construction (momentum, the job's capabilities);
/// `validate` of whole options is the ledger's.
std::variant<std::vector<ChangeEntry>, Refusal> resolve(const ChangeRequest& request,
                                                        std::span<const LedgerGroup> groups,
                                                        const JobCapabilities& capabilities);

}  // namespace fusedbun::changes
