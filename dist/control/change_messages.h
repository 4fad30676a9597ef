#pragma once
// Between the contract's messages and the ledger's values. Field numbers of HyperparameterValues are those of changes::Field, so
// a field added to both travels without a line here, except for reading it out of Settings.
//
// Thread safety: functions without state.
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "fusedbun/control/v1/control.pb.h"
#include "fusedbun/dist/changes/change_ledger.h"

namespace fusedbun::control {

/// The request as the ledger takes it; create_time_us is now. A field, mask path or message part that this version does not
/// know is refused, since a change is taken as a whole.
std::variant<changes::ChangeRequest, changes::Refusal> read_request(
    const v1::CreateChangeRequest& message, const std::string& actor);

/// What a request that changes something must not have: fields that this version does not know, and control characters in
/// its reason or request_id, which would reach the terminals of others.
std::optional<changes::Refusal> check_request(const google::protobuf::Message& message);
/// Is there a character that moves a terminal's cursor, ends a line or turns the direction of text?
bool has_control_characters(std::string_view utf8);

/// Settings without the schedule's readings.
v1::Hyperparameters to_message(const changes::Settings& settings,
                               std::span<const changes::LedgerGroup> groups);

/// Without name and state: those are the service's.
v1::Change to_message(const changes::AcceptedChange& change,
                      std::span<const changes::LedgerGroup> groups);

v1::HyperparameterSpec to_message(const changes::FieldSpec& spec);

/// 8 bytes, big-endian.
std::string hash_bytes(uint64_t hash);

}  // namespace fusedbun::control
