#pragma once
// The flags by which a command finds a running job, and how it prints messages of the contract as JSON.
//
// Thread safety: none.
#include <google/protobuf/message.h>

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "fusedbun/dist/control/control_client.h"

namespace fusedbun::launcher {

/// Adds --run-dir (or $FUSEDBUN_RUN_DIR) and --address; the value is there once the command line has been read.
std::shared_ptr<const control::JobLocation> add_job_flags(CLI::App& command);

/// Protobuf's JSON with the field names of the contract; 64-bit integers are strings there.
std::string json_of(const google::protobuf::Message& message);

/// Shortest text that reads back as the same number.
std::string text_of(double value);

}  // namespace fusedbun::launcher
