#include "fusedbun/launcher/control/watch_lines.h"

#include <chrono>
#include <exception>
#include <future>
#include <iostream>
#include <mutex>

#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/change_text.h"
#include "fusedbun/launcher/control/job_flags.h"
#include "fusedbun/launcher/control/watch_view.h"

namespace fusedbun::launcher {
namespace {

/// After the job's last event: its last samples are on their way.
constexpr std::chrono::seconds kSamplesEndWithin{2};

using control::v1::Change;
using control::v1::Checkpoint;
using control::v1::Job;
using control::v1::JobEvent;
using control::v1::MetricsSample;

std::string text_of(const JobEvent& event) {
  switch (event.event_case()) {
    case JobEvent::kJob: {
      const std::string& reason = event.job().state_reason();
      return "job " + Job::State_Name(event.job().state()) + (reason.empty() ? "" : ": " + reason);
    }
    case JobEvent::kChange:
      return "change " + std::to_string(event.change().revision()) + " " +
             Change::State_Name(event.change().state()) + ", step " +
             std::to_string(event.change().effective_step()) + ": " + what(event.change()) +
             (event.change().reason().empty() ? "" : "  \"" + event.change().reason() + "\"");
    case JobEvent::kCheckpoint: {
      const Checkpoint& checkpoint = event.checkpoint();
      return "checkpoint of step " + std::to_string(checkpoint.step()) + " " +
             Checkpoint::State_Name(checkpoint.state()) +
             (checkpoint.error().empty() ? "" : ": " + checkpoint.error()) +
             (checkpoint.reason().empty() ? "" : "  \"" + checkpoint.reason() + "\"");
    }
    case JobEvent::kLostRank:
      return "rank " + std::to_string(event.lost_rank().rank()) + " is lost";
    case JobEvent::kWarning:
      return event.warning();
    default:
      return "an event that this version does not know";
  }
}

bool is_the_end(const JobEvent& event) {
  const Job::State state = event.job().state();
  return state == Job::SUCCEEDED || state == Job::FAILED || state == Job::STOPPED;
}

}  // namespace

void watch_as_lines(const control::JobLocation& location, OutputFormat format) {
  control::ControlClient client(location);
  const int64_t total_steps = client.job().total_steps();
  const bool json = format == OutputFormat::json;
  std::mutex mutex;
  const auto put = [&](const std::string& line) {
    const std::lock_guard lock(mutex);
    std::cout << (json ? line : shown(line)) << std::endl;
    return std::cout.good();  // nobody reads any more: watch ends
  };
  auto metrics = std::async(std::launch::async, [&] {
    control::v1::StreamMetricsRequest request;
    if (!json) request.mutable_min_interval()->set_seconds(1);
    try {
      client.stream_metrics(request, [&](const MetricsSample& sample) {
        return put(json ? "{\"sample\":" + json_line_of(sample) + "}"
                        : line_of(sample, total_steps));
      });
    } catch (const Error&) {
      // The stream of events ends in the same way, and that is told.
    }
  });
  std::exception_ptr trouble;
  try {
    client.watch(0, [&](const JobEvent& event) {
      return put(json ? "{\"event\":" + json_line_of(event) + "}" : text_of(event)) &&
             !is_the_end(event);
    });
    metrics.wait_for(kSamplesEndWithin);
  } catch (const Error&) {
    trouble = std::current_exception();
  }
  client.cancel_streams();
  metrics.wait();
  if (trouble) std::rethrow_exception(trouble);
}

}  // namespace fusedbun::launcher
