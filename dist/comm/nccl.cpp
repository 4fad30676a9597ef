#include "fusedbun/dist/comm/nccl.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/nccl_api.h"
#include "fusedbun/dist/comm/nccl_session.h"

namespace fusedbun::comm {
namespace {

ncclDataType_t nccl_type(DataType type) {
  switch (type) {
    case DataType::u8:
      return ncclUint8;
    case DataType::i32:
      return ncclInt32;
    case DataType::i64:
      return ncclInt64;
    case DataType::f32:
      return ncclFloat32;
    case DataType::f64:
      return ncclFloat64;
  }
  FUSEDBUN_ASSERT(false, "a DataType that does not exist");
}

bool is_equal(const Counts& counts) {
  return std::all_of(counts.begin(), counts.end(),
                     [&](int64_t count) { return count == counts.front(); });
}

class NcclOperation final : public PendingOperation {
 public:
  NcclOperation(std::shared_ptr<NcclSession> session,
                std::shared_ptr<const NcclSession::Launched> launched)
      : session_(std::move(session)), launched_(std::move(launched)) {}
  ~NcclOperation() override {
    if (waited_) return;
    session_->fail({ExitCode::peer_lost,
                    "nccl: " + launched_->what() + " was dropped while an error unwound it"});
    session_->wait_for_abort();  // its buffers may go now
  }

  void wait(std::chrono::milliseconds timeout) override {
    waited_ = true;
    session_->wait(*launched_, timeout);
  }
  void wait_on(Stream stream, std::chrono::milliseconds) override {
    waited_ = true;
    session_->wait_on(*launched_, stream);
  }
  bool may_drop() const noexcept override { return session_->failure().has_value(); }

 private:
  const std::shared_ptr<NcclSession> session_;
  const std::shared_ptr<const NcclSession::Launched> launched_;  // goes before the session
  bool waited_ = false;
};

// An operation that could not be launched because the communicator was broken before: its wait says so.
class BrokenOperation final : public PendingOperation {
 public:
  explicit BrokenOperation(Failure failure) : failure_(std::move(failure)) {}
  void wait(std::chrono::milliseconds) override { failure_.raise(); }
  void wait_on(Stream, std::chrono::milliseconds) override { failure_.raise(); }
  bool may_drop() const noexcept override { return true; }

 private:
  const Failure failure_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<NcclSession> session, std::chrono::milliseconds timeout)
      : Communicator(timeout), session_(std::move(session)) {}

  int rank() const override { return session_->options().rank; }
  int size() const override { return session_->options().size; }
  std::string_view backend() const override { return "nccl"; }
  DeviceKind device() const override { return DeviceKind::cuda; }

  Work reduce_scatter(Buffer input, Buffer output, const Counts& counts,
                      ProducerStream producer) override {
    const CollectiveCall call = CollectiveCall::reduce_scatter(caller(), input, output, counts);
    return launch(call, producer, [&](ncclComm_t comm, cudaStream_t stream) {
      const ncclDataType_t type = nccl_type(input.type);
      if (is_equal(counts)) {
        if (output.count == 0) return;
        return FUSEDBUN_NCCL(*session_, api().reduce_scatter(input.data, output.data,
                                                             static_cast<size_t>(output.count),
                                                             type, ncclSum, comm, stream));
      }
      for_each_portion(counts, [&](int root, int64_t offset, size_t count) {
        void* const source = address_of(input, offset);
        // NCCL writes the root's output alone; the others give a valid place, as c10d does.
        void* const target = root == rank() ? output.data : source;
        FUSEDBUN_NCCL(*session_,
                      api().reduce(source, target, count, type, ncclSum, root, comm, stream));
      });
    });
  }

  Work all_gather(Buffer input, Buffer output, const Counts& counts,
                  ProducerStream producer) override {
    const CollectiveCall call = CollectiveCall::all_gather(caller(), input, output, counts);
    return launch(call, producer, [&](ncclComm_t comm, cudaStream_t stream) {
      const ncclDataType_t type = nccl_type(input.type);
      if (is_equal(counts)) {
        if (input.count == 0) return;
        return FUSEDBUN_NCCL(
            *session_, api().all_gather(input.data, output.data, static_cast<size_t>(input.count),
                                        type, comm, stream));
      }
      for_each_portion(counts, [&](int root, int64_t offset, size_t count) {
        void* const target = address_of(output, offset);
        // NCCL reads the root's input alone; the others give a valid place.
        const void* const source = root == rank() ? input.data : target;
        FUSEDBUN_NCCL(*session_, api().broadcast(source, target, count, type, root, comm, stream));
      });
    });
  }

  Work all_reduce(Buffer inout, ReduceOp op, ProducerStream producer) override {
    const CollectiveCall call = CollectiveCall::all_reduce(caller(), inout, op);
    FUSEDBUN_REQUIRE(op != ReduceOp::bit_or, ConfigError,
                     "nccl: all_reduce has no bitwise or: use a host communicator");
    return launch(call, producer, [&](ncclComm_t comm, cudaStream_t stream) {
      if (inout.count == 0) return;
      FUSEDBUN_NCCL(*session_,
                    api().all_reduce(inout.data, inout.data, static_cast<size_t>(inout.count),
                                     nccl_type(inout.type), op == ReduceOp::sum ? ncclSum : ncclMax,
                                     comm, stream));
    });
  }

  Work exchange(std::vector<Message> sends, std::vector<Message> receives,
                ProducerStream producer) override {
    const CollectiveCall call =
        CollectiveCall::exchange(caller(), std::move(sends), std::move(receives));
    return launch(call, producer, [&](ncclComm_t comm, cudaStream_t stream) {
      for (const Message& message : call.sends) {
        FUSEDBUN_NCCL(*session_, api().send(message.data, static_cast<size_t>(message.bytes),
                                            ncclUint8, message.peer, comm, stream));
      }
      for (const Message& message : call.receives) {
        FUSEDBUN_NCCL(*session_, api().recv(message.data, static_cast<size_t>(message.bytes),
                                            ncclUint8, message.peer, comm, stream));
      }
    });
  }

  Work broadcast(Buffer inout, int root, ProducerStream producer) override {
    const CollectiveCall call = CollectiveCall::broadcast(caller(), inout, root);
    return launch(call, producer, [&](ncclComm_t comm, cudaStream_t stream) {
      if (inout.count == 0) return;
      FUSEDBUN_NCCL(*session_,
                    api().broadcast(inout.data, inout.data, static_cast<size_t>(inout.count),
                                    nccl_type(inout.type), root, comm, stream));
    });
  }

  Work barrier(ProducerStream producer) override {
    return launch(CollectiveCall::barrier(), producer, [&](ncclComm_t comm, cudaStream_t stream) {
      FUSEDBUN_NCCL(*session_, api().all_reduce(session_->scratch(), session_->scratch(), 1,
                                                ncclUint8, ncclMax, comm, stream));
    });
  }

  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    validate_group(caller(), ranks);
    const auto mine = std::find(ranks.begin(), ranks.end(), rank());
    const int place = static_cast<int>(mine - ranks.begin());
    const bool is_member = mine != ranks.end();
    const ncclComm_t part = session_->split(is_member ? 0 : NCCL_SPLIT_NOCOLOR, place);
    if (!is_member) return nullptr;
    NcclOptions options = session_->options();
    options.rank = place;
    options.size = static_cast<int>(ranks.size());
    return std::make_unique<NcclCommunicator>(
        std::make_shared<NcclSession>(api(), options,
                                      [part](ncclComm_t* comm) {
                                        *comm = part;
                                        return ncclSuccess;
                                      }),
        timeout());
  }

  void abort(const std::string& reason) noexcept override {
    session_->fail({ExitCode::peer_lost, reason});
  }
  std::optional<Failure> failure() const override { return session_->failure(); }
  std::vector<std::string> pending_operations() const override {
    return session_->pending_operations();
  }

 private:
  CallSite caller() const { return {"nccl", rank(), size()}; }
  const NcclApi& api() const { return session_->api(); }

  // Skips empty portions: NCCL need not hear of them.
  template <class Visit>
  static void for_each_portion(const Counts& counts, Visit visit) {
    int64_t offset = 0;
    for (size_t r = 0; r < counts.size(); ++r) {
      if (counts[r] > 0) visit(static_cast<int>(r), offset, static_cast<size_t>(counts[r]));
      offset += counts[r];
    }
  }

  Work launch(const CollectiveCall& call, const ProducerStream& producer,
              const std::function<void(ncclComm_t, cudaStream_t)>& enqueue) {
    FUSEDBUN_REQUIRE(producer.has_value(), ConfigError,
                     "nccl: rank " + std::to_string(rank()) + " called " + call.describe() +
                         " on a GPU's memory without the stream that makes it ready: pass the "
                         "stream as `producer`");
    if (auto failure = session_->failure()) {
      return Work(std::make_unique<BrokenOperation>(std::move(*failure)), timeout());
    }
    return Work(std::make_unique<NcclOperation>(
                    session_, session_->launch(call.describe(), timeout(), *producer, enqueue)),
                timeout());
  }

  const std::shared_ptr<NcclSession> session_;
};

// Rank 0's id on all ranks, or rank 0's trouble: its result goes first, so nobody waits for an id that never comes.
ncclUniqueId share_id(const NcclOptions& options, Communicator& host, const NcclApi& api) {
  struct Message {
    int32_t result = ncclSuccess;
    ncclUniqueId id{};
  } message;
  if (options.rank == 0) message.result = api.get_unique_id(&message.id);
  host.broadcast({&message, sizeof message, DataType::u8}, 0).wait();
  FUSEDBUN_REQUIRE(message.result == ncclSuccess, DeviceError,
                   std::string("nccl: rank 0 could not make NCCL's id: ") +
                       api.get_error_string(static_cast<ncclResult_t>(message.result)));
  return message.id;
}

}  // namespace

std::unique_ptr<Communicator> connect_nccl(const NcclOptions& options, Communicator& host,
                                           const NcclApi& api) {
  FUSEDBUN_REQUIRE(options.rank == host.rank() && options.size == host.size(), ConfigError,
                   "nccl: rank " + std::to_string(options.rank) + " of " +
                       std::to_string(options.size) +
                       " was asked for over a host communicator of rank " +
                       std::to_string(host.rank()) + " of " + std::to_string(host.size()));
  const ncclUniqueId id = share_id(options, host, api);
  return std::make_unique<NcclCommunicator>(
      std::make_shared<NcclSession>(api, options,
                                    [&](ncclComm_t* comm) {
                                      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
                                      config.blocking = 0;
                                      return api.comm_init_rank_config(comm, options.size, id,
                                                                       options.rank, &config);
                                    }),
      options.timeout);
}

std::unique_ptr<Communicator> connect_nccl(const NcclOptions& options, Communicator& host) {
  return connect_nccl(options, host, NcclApi::real());
}

}  // namespace fusedbun::comm
