#include "fusedbun/launcher/train/trace_file.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/run_folder/atomic_file.h"

namespace fusedbun::train {
namespace {

using Json = nlohmann::ordered_json;

int64_t microseconds(StepTrace::Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

Json event_of(const StepTrace::Span& span, int rank) {
  std::string name(span.name);
  if (span.bucket >= 0) name += " bucket " + std::to_string(span.bucket);
  const int64_t begin = microseconds(span.begin);
  Json arguments{{"step", span.job_step}};
  if (span.bucket >= 0) arguments["bucket"] = span.bucket;
  return {{"name", name},
          {"cat", std::string(span.name)},
          {"ph", "X"},
          {"ts", begin},
          {"dur", microseconds(span.end) - begin},
          {"pid", rank},
          {"tid", static_cast<int>(span.track)},
          {"args", arguments}};
}

Json name_event(const char* what, int rank, int track, const std::string& name) {
  return {{"name", what}, {"ph", "M"}, {"pid", rank}, {"tid", track}, {"args", {{"name", name}}}};
}

}  // namespace

void write_trace(const std::filesystem::path& path, const StepTrace& trace,
                 comm::Communicator& host) {
  Json own = Json::array();
  for (const StepTrace::Span& span : trace.spans()) own.push_back(event_of(span, host.rank()));
  const std::vector<std::string> texts = comm::all_gather_text(host, own.dump());
  if (host.rank() != 0) return;
  Json events = Json::array();
  int64_t first = std::numeric_limits<int64_t>::max();
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const int pid = static_cast<int>(rank);
    events.push_back(name_event("process_name", pid, 0, "rank " + std::to_string(rank)));
    events.push_back(name_event("thread_name", pid, 0, "what it does"));
    events.push_back(name_event("thread_name", pid, 1, "on the wire"));
    for (Json& event : Json::parse(texts[rank])) {
      first = std::min(first, event["ts"].get<int64_t>());
      events.push_back(std::move(event));
    }
  }
  for (Json& event : events) {
    if (event.contains("ts")) event["ts"] = event["ts"].get<int64_t>() - first;
  }
  run_folder::AtomicFile file(path);
  const std::string text =
      Json{{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}}.dump();
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace fusedbun::train
