// The three buckets over MPI: every process is one rank, started by mpirun; all run the same tests in the same order.
#include "bucket_conformance.h"
#include "fusedbun/dist/comm/mpi.h"

namespace fusedbun::testing {
namespace {

class MpiWorld final : public comm::testing::World {
 public:
  explicit MpiWorld(std::chrono::milliseconds timeout)
      : communicator_(comm::connect_mpi({.timeout = timeout})) {}
  int size() const override { return communicator_->size(); }
  void run(const std::function<void(comm::Communicator&)>& body) override { body(*communicator_); }

 private:
  std::unique_ptr<comm::Communicator> communicator_;
};

const std::vector<comm::testing::WorldFactory> kMpi = {
    {"mpi", [](std::chrono::milliseconds timeout) { return std::make_unique<MpiWorld>(timeout); }}};
INSTANTIATE_TEST_SUITE_P(Mpi, BucketConformance, on_all_buckets(kMpi), bucket_test_name);

}  // namespace
}  // namespace fusedbun::testing

int main(int argc, char** argv) {
  const auto keeps_mpi_alive = fusedbun::comm::connect_mpi();
  if (keeps_mpi_alive->rank() != 0)
    GTEST_FLAG_SET(brief, true);  // the others print their failures only
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
