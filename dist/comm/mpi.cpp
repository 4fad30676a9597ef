#include "fusedbun/dist/comm/mpi.h"

#define OMPI_SKIP_MPICXX  // the C interface only
#include <mpi.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/message_communicator.h"

// Every MPI return code passes here.
#define FUSEDBUN_MPI(call) check((call), #call)

namespace fusedbun::comm {
namespace {

std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  return MPI_Error_string(code, text, &length) == MPI_SUCCESS
             ? std::string(text, static_cast<size_t>(length))
             : "code " + std::to_string(code);
}

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  const std::string name(call);
  throw std::runtime_error(name.substr(0, name.find('(')) + ": " + text_of(code));
}

// MPI is initialised by the first communicator and finalised when the last is destroyed without a failure.
class Runtime {
 public:
  static Runtime& instance() {
    static Runtime runtime;
    return runtime;
  }

  void acquire() {
    const std::lock_guard lock(mutex_);
    int finalized = 0;
    FUSEDBUN_MPI(MPI_Finalized(&finalized));
    FUSEDBUN_REQUIRE(finalized == 0, ConfigError,
                     "mpi: MPI was finalised in this process: keep one communicator until the end");
    int initialized = 0;
    FUSEDBUN_MPI(MPI_Initialized(&initialized));
    int level = MPI_THREAD_SINGLE;
    if (initialized == 0) {
      FUSEDBUN_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level));
      is_ours_ = true;
    } else {
      FUSEDBUN_MPI(MPI_Query_thread(&level));
    }
    FUSEDBUN_REQUIRE(
        level == MPI_THREAD_MULTIPLE, ConfigError,
        "mpi: MPI runs without MPI_THREAD_MULTIPLE: call MPI_Init_thread with it, or leave "
        "initialising to connect_mpi");
    ++users_;
  }

  void release(bool clean) {
    const std::lock_guard lock(mutex_);
    clean_ = clean_ && clean;
    if (--users_ == 0 && is_ours_ && clean_) MPI_Finalize();
  }

 private:
  std::mutex mutex_;
  int users_ = 0;
  bool is_ours_ = false;
  bool clean_ = true;
};

// A thread that waits must not take a core from the training: it looks often for a moment, for short messages, then
// sleeps between looks, so that a long wait costs a few percent of a core.
class Backoff {
 public:
  void reset() { looks_ = 0; }
  void rest() {
    if (++looks_ < kBusyLooks) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(
          std::chrono::microseconds(std::min(looks_ - kBusyLooks + 10, 100)));
    }
  }

 private:
  static constexpr int kBusyLooks = 100;
  int looks_ = 0;
};

class MpiTransfer final : public Transfer {
 public:
  explicit MpiTransfer(std::shared_ptr<const std::atomic<bool>> closed)
      : closed_(std::move(closed)) {}

  // Messages that a failure left behind: receives that nothing has matched can be taken back. The others stay as they
  // are, and no MPI call of ours follows that could move them on.
  ~MpiTransfer() override {
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      if (!is_send_[i]) MPI_Cancel(&requests_[i]);
      MPI_Request_free(&requests_[i]);
    }
  }

  void receive(const Packet& packet, MPI_Comm comm) {
    FUSEDBUN_MPI(MPI_Irecv(packet.data, static_cast<int>(packet.bytes), MPI_BYTE, packet.peer,
                           packet.tag, comm, add(packet.peer, false)));
  }

  void send(const Packet& packet, MPI_Comm comm) {
    FUSEDBUN_MPI(MPI_Isend(packet.data, static_cast<int>(packet.bytes), MPI_BYTE, packet.peer,
                           packet.tag, comm, add(packet.peer, true)));
  }

  void wait(Progress& progress) override {
    std::vector<int> finished(requests_.size());
    std::vector<MPI_Status> statuses(requests_.size());
    Backoff backoff;
    for (;;) {
      if (*closed_) throw std::runtime_error("given up");
      int count = 0;
      const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                    finished.data(), statuses.data());
      if (code == MPI_ERR_IN_STATUS) throw_first_error(finished, statuses, count);
      check(code, "MPI_Testsome");
      const auto left = std::find_if(requests_.begin(), requests_.end(), [](MPI_Request request) {
        return request != MPI_REQUEST_NULL;
      });
      if (left == requests_.end()) return;
      progress.waits_for(peers_[static_cast<size_t>(left - requests_.begin())]);
      if (count > 0) {
        progress.moved();
        backoff.reset();
      }
      backoff.rest();
    }
  }

 private:
  MPI_Request* add(int peer, bool is_send) {
    peers_.push_back(peer);
    is_send_.push_back(is_send);
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  [[noreturn]] void throw_first_error(const std::vector<int>& finished,
                                      const std::vector<MPI_Status>& statuses, int count) const {
    for (int i = 0; i < count; ++i) {
      const auto index = static_cast<size_t>(finished[static_cast<size_t>(i)]);
      const int code = statuses[static_cast<size_t>(i)].MPI_ERROR;
      if (code == MPI_SUCCESS) continue;
      throw std::runtime_error(std::string(is_send_[index] ? "sending to" : "receiving from") +
                               " rank " + std::to_string(peers_[index]) + " failed (" +
                               text_of(code) + ")");
    }
    throw std::runtime_error("MPI_Testsome: an error without a status");
  }

  std::shared_ptr<const std::atomic<bool>> closed_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;     // of each request
  std::vector<bool> is_send_;  // of each request
};

// Frames between this rank and another.
struct Line {
  struct Outgoing {
    ControlFrame frame;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  std::array<Outgoing, 3> outgoing;  // [slot]
  ControlFrame frame;
  MPI_Request incoming = MPI_REQUEST_NULL;
};

class MpiTransport final : public Transport {
 public:
  /// Takes over `comm`, which nothing else uses, and a user of the Runtime.
  explicit MpiTransport(MPI_Comm comm) : comm_(comm) {
    FUSEDBUN_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
    FUSEDBUN_MPI(MPI_Comm_rank(comm_, &rank_));
    FUSEDBUN_MPI(MPI_Comm_size(comm_, &size_));
    require_tags();
    lines_.resize(static_cast<size_t>(size_));
    for (auto& line : lines_) line = std::make_unique<Line>();
  }

  ~MpiTransport() override {
    const bool clean = !*closed_ && std::uncaught_exceptions() == 0;
    // The communicator is not freed: a peer's frame may come later, and would be one of the next communicator's that
    // gets its number.
    if (clean) {
      take_back_frames();
    } else {
      for (auto& line : lines_) line.release();  // MPI may still read and write the frames
    }
    Runtime::instance().release(clean);
  }

  std::string_view backend() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  TagLayout tags() const override { return kTags; }

  std::unique_ptr<Transfer> start(std::span<const Packet> sends,
                                  std::span<const Packet> receives) override {
    auto transfer = std::make_unique<MpiTransfer>(closed_);
    for (const Packet& packet : receives) transfer->receive(packet, comm_);
    for (const Packet& packet : sends) transfer->send(packet, comm_);
    return transfer;
  }

  void send_control(int peer, Slot slot, const ControlFrame& frame) override {
    const std::lock_guard lock(frames_mutex_);
    if (*closed_) return;
    Line::Outgoing& outgoing =
        lines_[static_cast<size_t>(peer)]->outgoing[static_cast<size_t>(slot)];
    // The peer has received what was here, so the request is done or about to be.
    if (outgoing.request != MPI_REQUEST_NULL) MPI_Wait(&outgoing.request, MPI_STATUS_IGNORE);
    outgoing.frame = frame;
    FUSEDBUN_MPI(MPI_Isend(&outgoing.frame, sizeof outgoing.frame, MPI_BYTE, peer, kControlTag,
                           comm_, &outgoing.request));
  }

  std::optional<ControlFrame> receive_control(int peer) override {
    const std::lock_guard lock(frames_mutex_);
    if (*closed_) return std::nullopt;
    Line& line = *lines_[static_cast<size_t>(peer)];
    if (line.incoming == MPI_REQUEST_NULL) {
      FUSEDBUN_MPI(MPI_Irecv(&line.frame, sizeof line.frame, MPI_BYTE, peer, kControlTag, comm_,
                             &line.incoming));
    }
    int done = 0;
    FUSEDBUN_MPI(MPI_Test(&line.incoming, &done, MPI_STATUS_IGNORE));
    if (done == 0) return std::nullopt;
    return line.frame;
  }

  // MPI's groups are made by all of their ranks alone, which have agreed on the list just before.
  std::unique_ptr<Transport> group(const std::vector<int>& ranks, int, int64_t number) override {
    MPI_Comm created = MPI_COMM_NULL;
    try {
      MPI_Group all = MPI_GROUP_NULL;
      MPI_Group chosen = MPI_GROUP_NULL;
      FUSEDBUN_MPI(MPI_Comm_group(comm_, &all));
      FUSEDBUN_MPI(MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &chosen));
      FUSEDBUN_MPI(MPI_Comm_create_group(
          comm_, chosen, static_cast<int>(number & ((1 << kTags.digest_bits) - 1)), &created));
      MPI_Group_free(&chosen);
      MPI_Group_free(&all);
      Runtime::instance().acquire();
    } catch (const std::exception& error) {
      throw UnavailableError(std::string("mpi: cannot make a group (") + error.what() + ")");
    }
    return std::make_unique<MpiTransport>(created);
  }

  // MPI cannot close connections. Peers that run have a frame that says why; those that do not notice when this
  // process leaves and mpirun ends them.
  void close() noexcept override {
    const std::lock_guard lock(frames_mutex_);
    if (*closed_) return;
    wait_for_last_words();
    *closed_ = true;
  }

 private:
  static constexpr TagLayout kTags{.number_bits = 11, .digest_bits = 12};
  static constexpr int kTagMax = (1 << 23) - 1;  // what Open MPI has over UCX
  static constexpr int kControlTag = kTagMax;    // of the number that is the transport's own
  static constexpr std::chrono::milliseconds kLastWordsTime{100};

  void require_tags() const {
    int* tag_max = nullptr;
    int found = 0;
    FUSEDBUN_MPI(MPI_Comm_get_attr(comm_, MPI_TAG_UB, &tag_max, &found));
    FUSEDBUN_REQUIRE(
        found != 0 && *tag_max >= kTagMax, ConfigError,
        "mpi: this MPI transport has too few message tags; choose another (--mca pml ob1)");
  }

  // Frames are short: MPI sends them at once, unless a peer is stopped.
  void wait_for_last_words() noexcept {
    const auto deadline = Clock::now() + kLastWordsTime;
    for (auto& line : lines_) {
      for (Line::Outgoing& outgoing : line->outgoing) {
        int done = 0;
        while (outgoing.request != MPI_REQUEST_NULL &&
               MPI_Test(&outgoing.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done == 0 &&
               Clock::now() < deadline) {
          std::this_thread::yield();
        }
      }
    }
  }

  void take_back_frames() noexcept {
    wait_for_last_words();
    for (auto& line : lines_) {
      if (line->incoming != MPI_REQUEST_NULL) {
        MPI_Cancel(&line->incoming);
        MPI_Wait(&line->incoming, MPI_STATUS_IGNORE);
      }
      bool is_read = false;
      for (Line::Outgoing& outgoing : line->outgoing) {
        if (outgoing.request == MPI_REQUEST_NULL) continue;
        MPI_Request_free(&outgoing.request);
        is_read = true;
      }
      if (is_read) line.release();  // MPI may still read the frame
    }
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  const std::shared_ptr<std::atomic<bool>> closed_ = std::make_shared<std::atomic<bool>>(false);
  std::mutex frames_mutex_;
  std::vector<std::unique_ptr<Line>> lines_;  // [peer]
};

// MPI's beginning blocks until all ranks are there, and cannot be taken back: it runs on a thread of its own, which is
// left behind at the deadline.
struct Beginning {
  std::mutex mutex;
  std::condition_variable ended;
  bool is_over = false;
  std::exception_ptr error;
  MPI_Comm comm = MPI_COMM_NULL;
};

MPI_Comm begin(std::chrono::milliseconds timeout) {
  const auto beginning = std::make_shared<Beginning>();
  std::thread([beginning] {
    MPI_Comm comm = MPI_COMM_NULL;
    std::exception_ptr error;
    try {
      Runtime::instance().acquire();
      FUSEDBUN_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm));
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(beginning->mutex);
    beginning->comm = comm;
    beginning->error = error;
    beginning->is_over = true;
    beginning->ended.notify_all();
  }).detach();
  std::unique_lock lock(beginning->mutex);
  FUSEDBUN_REQUIRE(
      beginning->ended.wait_for(lock, timeout, [&] { return beginning->is_over; }), TimeoutError,
      "mpi: the ranks are not connected after " + std::to_string(timeout.count()) +
          " ms: some rank that mpirun started has not called connect_mpi (or MPI_Init); end this "
          "process, MPI cannot be begun twice");
  if (beginning->error) std::rethrow_exception(beginning->error);
  return beginning->comm;
}

}  // namespace

std::unique_ptr<Communicator> connect_mpi(const MpiOptions& options) {
  std::unique_ptr<Transport> transport;
  try {
    transport = std::make_unique<MpiTransport>(begin(options.timeout));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw UnavailableError(
        std::string("mpi: cannot connect the ranks (") + error.what() +
        "): start the program with mpirun of the Open MPI that it was built with");
  }
  return make_message_communicator(std::move(transport), options.timeout);
}

}  // namespace fusedbun::comm
