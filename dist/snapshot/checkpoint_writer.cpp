#include "fusedbun/dist/snapshot/checkpoint_writer.h"

#include <chrono>
#include <iterator>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun::snapshot {
namespace {

using Clock = std::chrono::steady_clock;

/// First letter of what a rank tells rank 0: its files, or why it has none.
constexpr char kDone = '+', kFailed = '-';

/// How often a wait asks whether it shall give up.
constexpr std::chrono::milliseconds kBetweenQuestions{100};

}  // namespace

CheckpointWriter::CheckpointWriter(std::unique_ptr<comm::Communicator> host,
                                   CheckpointerOptions options)
    : host_(std::move(host)), options_(std::move(options)), folder_(options_.folder) {
  // Another rank's disk may be slow for as long as it lives; where nobody watches it, the job's own calls have deadlines.
  host_->set_timeout(comm::kNoDeadline);
}

CheckpointWriter::~CheckpointWriter() {
  if (thread_.joinable()) thread_.join();
}

bool CheckpointWriter::is_busy() const {
  const std::lock_guard lock(mutex_);
  return busy_;
}

Checkpointer::Status CheckpointWriter::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

void CheckpointWriter::note_loaded(int64_t job_step, bool from_own_folder) {
  if (from_own_folder) went_on_after_ = job_step;
  const std::lock_guard lock(mutex_);
  status_.durable = job_step;
}

void CheckpointWriter::start(CopiedState state) {
  if (thread_.joinable()) thread_.join();
  {
    const std::lock_guard lock(mutex_);
    FUSEDBUN_ASSERT(!busy_, "a save was started while another is under way");
    busy_ = true;
    status_.under_way = state.manifest.job_step;
  }
  tell(SaveStarted{state.manifest.job_step});
  thread_ = std::thread([this, state = std::move(state)]() mutable { write(state); });
}

bool CheckpointWriter::wait(const std::function<bool()>& gives_up) {
  std::unique_lock lock(mutex_);
  while (busy_) {
    if (!gives_up) {
      idle_.wait(lock);
      continue;
    }
    idle_.wait_for(lock, kBetweenQuestions);
    lock.unlock();
    const bool gave_up = gives_up();
    lock.lock();
    if (gave_up && busy_) return false;
  }
  return true;
}

void CheckpointWriter::write(CopiedState& state) {
  const auto start = Clock::now();
  const int64_t job_step = state.manifest.job_step;
  std::string problem;
  bool broken = false;
  try {
    problem = make_durable(state);
  } catch (const std::exception& error) {  // the ranks cannot talk any more; the job says why
    problem = error.what();
    broken = true;
  }
  if (!problem.empty() && !broken) {
    const auto durable = status().durable;
    say("the checkpoint of step " + std::to_string(job_step) + " is not saved: " + problem +
        "; training goes on" +
        (durable ? ", and the newest checkpoint is that of step " + std::to_string(*durable)
                 : ", without a checkpoint so far"));
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (problem.empty()) {
    published_.seconds = seconds;
    remove_oldest();
    tell(published_);
  } else {
    tell(SaveFailed{job_step, problem});
  }
  memory_ = std::move(state.memory);
  const std::lock_guard lock(mutex_);
  busy_ = false;
  status_.under_way.reset();
  status_.last_failure = problem;
  if (problem.empty()) {
    status_.durable = job_step;
    status_.last_seconds = seconds;
  } else {
    ++status_.failed_saves;
  }
  idle_.notify_all();
}

std::string CheckpointWriter::make_durable(CopiedState& state) {
  const bool leads = host_->rank() == 0;
  const int64_t job_step = state.manifest.job_step;
  const auto problem_of = [](const auto& action) -> std::string {
    try {
      action();
      return {};
    } catch (const std::exception& error) {
      return error.what();
    }
  };
  std::string problem;
  if (leads) problem = problem_of([&] { begin(job_step); });
  problem = comm::broadcast_text(*host_, problem, 0);
  if (!problem.empty()) return problem;

  checkpoint::Manifest mine;
  problem = problem_of([&] { mine.files = write_files(state); });
  const std::string here =
      host_->size() > 1 ? "rank " + std::to_string(host_->rank()) + ": " : std::string();
  const std::vector<std::string> told =
      comm::all_gather_text(*host_, problem.empty() ? kDone + checkpoint::format_manifest(mine)
                                                    : kFailed + here + problem);
  problem.clear();
  for (const std::string& text : told) {
    if (problem.empty() && text.front() == kFailed) problem = text.substr(1);
  }
  if (leads) {
    if (problem.empty()) problem = problem_of([&] { publish(state, told); });
    if (!problem.empty()) folder_.discard(job_step);
  }
  return comm::broadcast_text(*host_, problem, 0);
}

// Later checkpoints of the steps that are done anew would be taken for the newest, and outlive those that are saved now.
void CheckpointWriter::begin(int64_t job_step) {
  if (went_on_after_) {
    for (const int64_t step : folder_.set_aside_after(*went_on_after_)) {
      const std::string name = folder_.path_of(step).filename().string();
      say("the steps before " + name + " are done anew: it is named " + name +
          ".set-aside from here on");
      tell(CheckpointDeleted{step});
    }
    went_on_after_.reset();
  }
  folder_.begin(job_step);
}

std::vector<checkpoint::StoredFile> CheckpointWriter::write_files(const CopiedState& state) const {
  std::vector<checkpoint::StoredFile> files;
  for (const auto& [name, bytes] : state.companions) {
    files.push_back(
        checkpoint::write_companion(folder_.path_under_way(state.manifest.job_step), name, bytes));
  }
  for (const CopiedState::File& file : state.files) {
    const bool is_model = file.folder == std::string_view(checkpoint::kModelFolder);
    files.push_back(checkpoint::write_shard_file(
        folder_.path_under_way(state.manifest.job_step),
        checkpoint::shard_path(file.folder, host_->rank(), file.index, file.count), file.parts,
        is_model ? state.model_metadata : checkpoint::Metadata{}));
  }
  folder_.sync_folders(state.manifest.job_step);
  return files;
}

void CheckpointWriter::publish(CopiedState& state, const std::vector<std::string>& told) {
  for (const std::string& text : told) {
    checkpoint::Manifest theirs = checkpoint::parse_manifest(std::string_view(text).substr(1));
    std::ranges::move(theirs.files, std::back_inserter(state.manifest.files));
  }
  published_ = {.job_step = state.manifest.job_step,
                .folder = folder_.path_of(state.manifest.job_step),
                .bytes = 0,
                .seconds = 0,
                .digest = folder_.publish(state.manifest)};
  for (const checkpoint::StoredFile& file : state.manifest.files) published_.bytes += file.bytes;
}

// Costs the save nothing if it fails: there are more checkpoints than asked for then.
void CheckpointWriter::remove_oldest() const {
  if (options_.keep <= 0 || host_->rank() != 0) return;
  try {
    for (const int64_t step : folder_.remove_oldest(options_.keep)) tell(CheckpointDeleted{step});
  } catch (const std::exception& error) {
    say(std::string("old checkpoints stay: ") + error.what());
  }
}

void CheckpointWriter::tell(const CheckpointEvent& event) const {
  if (host_->rank() != 0 || !options_.on_event) return;
  try {
    options_.on_event(event);
  } catch (const std::exception& error) {  // the program's own; the checkpoint is what it is
    say(std::string("the program's callback for checkpoints failed: ") + error.what());
  }
}

void CheckpointWriter::say(const std::string& sentence) const {
  if (host_->rank() == 0 && options_.notice) options_.notice(sentence);
}

}  // namespace fusedbun::snapshot
