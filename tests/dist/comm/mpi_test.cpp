// The conformance suite over MPI: every process is one rank, started by mpirun; all run the same tests in the same
// order.
#include "fusedbun/dist/comm/mpi.h"

#include "conformance.h"

namespace fusedbun::comm::testing {
namespace {

class MpiWorld final : public World {
 public:
  explicit MpiWorld(std::chrono::milliseconds timeout)
      : communicator_(connect_mpi({.timeout = timeout})) {}
  int size() const override { return communicator_->size(); }
  void run(const std::function<void(Communicator&)>& body) override { body(*communicator_); }

 private:
  std::unique_ptr<Communicator> communicator_;
};

const WorldFactory kMpi{
    "mpi", [](std::chrono::milliseconds timeout) { return std::make_unique<MpiWorld>(timeout); }};
INSTANTIATE_TEST_SUITE_P(Mpi, Conformance, ::testing::Values(kMpi),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace fusedbun::comm::testing

int main(int argc, char** argv) {
  const auto keeps_mpi_alive = fusedbun::comm::connect_mpi();
  if (keeps_mpi_alive->rank() != 0)
    GTEST_FLAG_SET(brief, true);  // the others print their failures only
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
