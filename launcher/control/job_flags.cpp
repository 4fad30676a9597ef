#include "fusedbun/launcher/control/job_flags.h"

#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <charconv>

namespace fusedbun::launcher {

std::shared_ptr<const control::JobLocation> add_job_flags(CLI::App& command) {
  auto location = std::make_shared<control::JobLocation>();
  command
      .add_option("--run-dir", location->run_dir,
                  "Run folder of the job; its control.json says where it listens")
      ->envname("FUSEDBUN_RUN_DIR")
      ->group("Which job");
  command
      .add_option("--address", location->address,
                  "Where it listens: unix:/path/control.sock or 127.0.0.1:PORT")
      ->group("Which job");
  return location;
}

std::string json_of(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  FUSEDBUN_REQUIRE(status.ok(), DataError, "the job's answer cannot be printed as JSON");
  return text;
}

std::string text_of(double value) {
  char buffer[32];
  return {buffer, std::to_chars(std::begin(buffer), std::end(buffer), value).ptr};
}

}  // namespace fusedbun::launcher
