#pragma once
// What the commands that talk to a running job share: the flags by which they find it, whole lists, messages as JSON.
//
// Thread safety: none.
#include <google/protobuf/message.h>

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "fusedbun/dist/control/control_client.h"

namespace fusedbun::launcher {

/// Adds --run-dir (or $FUSEDBUN_RUN_DIR), --address and --credentials (or $FUSEDBUN_CREDENTIALS), and reads $FUSEDBUN_TOKEN; the value
/// is there once the command line has been read.
std::shared_ptr<const control::JobLocation> add_job_flags(CLI::App& command);

/// All pages.
control::v1::ListRanksResponse all_ranks(control::ControlClient& client);
control::v1::ListChangesResponse all_changes(control::ControlClient& client,
                                             const std::string& filter = {});

/// The same request sent twice under one id is taken once.
std::string fresh_request_id();

/// Protobuf's JSON with the field names of the contract; 64-bit integers are strings there.
std::string json_of(const google::protobuf::Message& message);
/// The same on one line, without its end.
std::string json_line_of(const google::protobuf::Message& message);

/// Shortest text that reads back as the same number.
std::string text_of(double value);

}  // namespace fusedbun::launcher
