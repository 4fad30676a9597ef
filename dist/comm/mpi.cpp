#include "fusedbun/dist/comm/mpi.h"

#define OMPI_SKIP_MPICXX  // the C interface only
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
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

// MPI's life in this process: begun by the first communicator, ended by the last that goes in peace.
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

  void release(bool in_peace) {
    const std::lock_guard lock(mutex_);
    in_peace_ = in_peace_ && in_peace;
    if (--users_ == 0 && is_ours_ && in_peace_) MPI_Finalize();
  }

 private:
  std::mutex mutex_;
  int users_ = 0;
  bool is_ours_ = false;
  bool in_peace_ = true;
};

// Counts of MPI calls are ints: longer messages travel in pieces, which arrive in order.
constexpr int64_t kPieceBytes = int64_t{1} << 30;

// A thread that waits must not take a core from the training: it looks often for a moment, for short messages, then
// sleeps between looks, so that a long wait costs a few percent of a core.
class Patience {
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

  void receive(const Message& message, int tag, MPI_Comm comm) {
    for_each_piece(message, [&](std::byte* data, int bytes) {
      FUSEDBUN_MPI(
          MPI_Irecv(data, bytes, MPI_BYTE, message.peer, tag, comm, add(message.peer, false)));
    });
  }

  void send(const Message& message, int tag, MPI_Comm comm) {
    for_each_piece(message, [&](std::byte* data, int bytes) {
      FUSEDBUN_MPI(
          MPI_Isend(data, bytes, MPI_BYTE, message.peer, tag, comm, add(message.peer, true)));
    });
  }

  void wait(std::atomic<int>& peer) override {
    std::vector<int> finished(requests_.size());
    std::vector<MPI_Status> statuses(requests_.size());
    Patience patience;
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
      peer = peers_[static_cast<size_t>(left - requests_.begin())];
      if (count > 0) patience.reset();
      patience.rest();
    }
  }

 private:
  template <class Start>
  static void for_each_piece(const Message& message, Start start) {
    for (int64_t begin = 0; begin < message.bytes; begin += kPieceBytes) {
      start(message.data + begin, static_cast<int>(std::min(kPieceBytes, message.bytes - begin)));
    }
  }

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

class MpiTransport final : public Transport {
 public:
  MpiTransport() {
    Runtime::instance().acquire();
    try {
      FUSEDBUN_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm_));
      FUSEDBUN_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
      FUSEDBUN_MPI(MPI_Comm_rank(comm_, &rank_));
      FUSEDBUN_MPI(MPI_Comm_size(comm_, &size_));
      require_tags();
    } catch (...) {
      Runtime::instance().release(false);
      throw;
    }
  }

  ~MpiTransport() override {
    const bool in_peace = !*closed_ && std::uncaught_exceptions() == 0;
    if (in_peace) MPI_Comm_free(&comm_);
    Runtime::instance().release(in_peace);
  }

  std::string_view backend() const override { return "mpi"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                  const std::vector<Message>& receives, int tag) override {
    auto transfer = std::make_unique<MpiTransfer>(closed_);
    for (const Message& message : receives) transfer->receive(message, tag, comm_);
    for (const Message& message : sends) transfer->send(message, tag, comm_);
    return transfer;
  }

  // MPI cannot tell the peers: they notice at their deadline, or when this process leaves and mpirun ends them.
  void close() noexcept override { *closed_ = true; }

 private:
  void require_tags() const {
    int* tag_max = nullptr;
    int found = 0;
    FUSEDBUN_MPI(MPI_Comm_get_attr(comm_, MPI_TAG_UB, &tag_max, &found));
    FUSEDBUN_REQUIRE(
        found != 0 && *tag_max >= kTagMax, ConfigError,
        "mpi: this MPI transport has too few message tags; choose another (--mca pml ob1)");
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  const std::shared_ptr<std::atomic<bool>> closed_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace

std::unique_ptr<Communicator> connect_mpi(const MpiOptions& options) {
  std::unique_ptr<Transport> transport;
  try {
    transport = std::make_unique<MpiTransport>();
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
