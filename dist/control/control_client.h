#pragma once
// ControlClient: one connection to a job's control plane, for commands and programs. Every call has a deadline, and every way
// to fail is an Error with one sentence and the exit code of its kind:
//   job not running, unreachable, starting or draining  UnavailableError (69)
//   refused value, group, step or state                 ConfigError (78)
//   etag outdated                                       EtagConflict (1): read again and decide again
//   no answer in time                                   TimeoutError (124)
//
// Thread safety: all members may be called from any thread.
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/core/error.h"

namespace fusedbun::control {

/// Somebody else changed the hyperparameters between the read and the change.
class EtagConflict : public Error {
 public:
  explicit EtagConflict(const std::string& message) : Error(ExitCode::unclassified, message) {}
};

/// Another checkpoint is being written: ask again.
class SaveUnderWay : public UnavailableError {
 public:
  using UnavailableError::UnavailableError;
};

/// Where a job is found: by its run folder, on this host or a shared file system, in or outside of a container, or by an
/// address. Where both are given the address says where, and the folder's control.json what to show there.
struct JobLocation {
  std::filesystem::path run_dir = {};  ///< whose control.json says where
  std::string address = {};            ///< "unix:/runs/a/control.sock", "127.0.0.1:41373"
  /// Folder with ca.pem, client.pem and client.key; empty: what control.json names, else plaintext.
  std::filesystem::path credentials = {};
  /// What a job on a port of loopback wants to be shown; empty: what control.json has.
  std::string token = {};
};

class ControlClient {
 public:
  /// Throws UnavailableError if the run folder has no control.json or names a job that this host cannot reach, UsageError if
  /// neither is given. Does not connect yet, unless there are several addresses to choose from: the first that answers within
  /// `deadline` is taken.
  explicit ControlClient(const JobLocation& location,
                         std::chrono::milliseconds deadline = std::chrono::seconds(10));
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;  // owns a connection
  ControlClient& operator=(const ControlClient&) = delete;

  v1::Job job();
  v1::Hyperparameters hyperparameters();
  v1::ListHyperparameterSpecsResponse specs();
  /// `request.parent` is filled in.
  v1::Change create_change(v1::CreateChangeRequest request);
  v1::Change change(const std::string& name);
  v1::ListChangesResponse changes(v1::ListChangesRequest request = {});
  /// `name` of CancelChangeRequest is "jobs/-/changes/{revision}" or the change's own.
  v1::Change cancel_change(const v1::CancelChangeRequest& request);
  v1::ListRanksResponse ranks(v1::ListRanksRequest request = {});
  /// Calls `on_event` for each event after `after_sequence` as it comes; returns when it returns false, or when the job ends the
  /// stream. No deadline.
  void watch(int64_t after_sequence, const std::function<bool(const v1::JobEvent&)>& on_event);
  /// The same for samples; `request.name` is filled in.
  void stream_metrics(v1::StreamMetricsRequest request,
                      const std::function<bool(const v1::MetricsSample&)>& on_sample);
  /// watch() and stream_metrics() return soon, those called later too.
  void cancel_streams();
  /// `request.parent` is filled in. Throws SaveUnderWay.
  v1::Checkpoint create_checkpoint(v1::CreateCheckpointRequest request);
  v1::Checkpoint checkpoint(const std::string& name);
  v1::ListCheckpointsResponse checkpoints(v1::ListCheckpointsRequest request = {});
  /// `within_seconds`: then it leaves without a checkpoint.
  v1::Job drain(const std::string& reason, std::optional<double> within_seconds = {});
  /// `force`: at once, without a step boundary and without saving.
  v1::Job stop(const std::string& reason, bool force = false);
  v1::Job pause(const std::string& reason);
  v1::Job resume();
  v1::Diagnostics dump();

  enum class Health { serving, not_serving, unknown_name };
  Health health(const std::string& name);

 private:
  class Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace fusedbun::control
