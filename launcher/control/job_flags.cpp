#include "fusedbun/launcher/control/job_flags.h"

#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>
#include <fstream>

namespace fusedbun::launcher {
namespace {

constexpr int kPageSize = 1000;  // the contract's largest

}  // namespace

std::shared_ptr<const control::JobLocation> add_job_flags(CLI::App& command) {
  auto location = std::make_shared<control::JobLocation>();
  command
      .add_option("--run-dir", location->run_dir,
                  "Run folder of the job; its control.json says where it listens")
      ->envname("FUSEDBUN_RUN_DIR")
      ->group("Which job");
  command
      .add_option(
          "--address", location->address,
          "Where it listens: unix:/path/control.sock or HOST:PORT (loopback: with --run-dir or "
          "$FUSEDBUN_TOKEN, for control.json's token)")
      ->group("Which job");
  command
      .add_option("--credentials", location->credentials,
                  "Folder with ca.pem, client.pem and client.key, for a job that uses TLS")
      ->default_str("what control.json names")
      ->envname("FUSEDBUN_CREDENTIALS")
      ->group("Which job");
  // A variable and no flag: what stands on a command line every user of the machine can read.
  if (const char* token = std::getenv("FUSEDBUN_TOKEN"); token != nullptr) location->token = token;
  return location;
}

control::v1::ListRanksResponse all_ranks(control::ControlClient& client) {
  control::v1::ListRanksResponse all;
  control::v1::ListRanksRequest request;
  request.set_page_size(kPageSize);
  do {
    const control::v1::ListRanksResponse page = client.ranks(request);
    all.mutable_ranks()->MergeFrom(page.ranks());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return all;
}

control::v1::ListChangesResponse all_changes(control::ControlClient& client,
                                             const std::string& filter) {
  control::v1::ListChangesResponse all;
  control::v1::ListChangesRequest request;
  request.set_page_size(kPageSize);
  request.set_filter(filter);
  do {
    const control::v1::ListChangesResponse page = client.changes(request);
    all.mutable_changes()->MergeFrom(page.changes());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return all;
}

std::string fresh_request_id() {
  std::ifstream source("/proc/sys/kernel/random/uuid");
  std::string id;
  source >> id;
  return id;
}

namespace {

std::string json_text(const google::protobuf::Message& message, bool on_one_line) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = !on_one_line;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  FUSEDBUN_REQUIRE(status.ok(), DataError, "the job's answer cannot be printed as JSON");
  return text;
}

}  // namespace

std::string json_of(const google::protobuf::Message& message) {
  return json_text(message, /*on_one_line=*/false);
}

std::string json_line_of(const google::protobuf::Message& message) {
  return json_text(message, /*on_one_line=*/true);
}

std::string text_of(double value) {
  char buffer[32];
  return {buffer, std::to_chars(std::begin(buffer), std::end(buffer), value).ptr};
}

}  // namespace fusedbun::launcher
