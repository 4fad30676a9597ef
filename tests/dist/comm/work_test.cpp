#include "fusedbun/dist/comm/work.h"

#include <gtest/gtest.h>

#include <span>
#include <stdexcept>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"

namespace fusedbun::comm {
namespace {

// An operation that never ends by itself.
Work unfinished(Communicator& comm) {
  return comm.barrier();
}

TEST(WorkDeathTest, DestroyingOneThatWasNotWaitedForIsOurBug) {
  EXPECT_DEATH(
      {
        const auto ranks = make_local_communicators(2);
        unfinished(*ranks[0]);
      },
      "a Work was destroyed before it was waited for");
}

TEST(WorkDeathTest, SoIsOverwritingOne) {
  EXPECT_DEATH(
      {
        const auto ranks = make_local_communicators(2);
        Work work = unfinished(*ranks[0]);
        work = Work();
      },
      "a Work was destroyed before it was waited for");
}

TEST(Work, MayBeDroppedWhileAnExceptionUnwinds) {
  const auto ranks = make_local_communicators(2);
  try {
    const Work work = unfinished(*ranks[0]);
    throw std::runtime_error("trouble");
  } catch (const std::runtime_error&) {
  }
  EXPECT_THROW(ranks[1]->barrier().wait(), PeerLostError)
      << "the peers must not touch buffers that are gone";
}

TEST(Work, MayBeDroppedAfterAnAbort) {
  const auto ranks = make_local_communicators(2);
  const Work work = unfinished(*ranks[0]);
  ranks[0]->abort("enough");
}

TEST(Work, IsEmptyAfterWaiting) {
  const auto ranks = make_local_communicators(1);
  Work work = unfinished(*ranks[0]);
  EXPECT_TRUE(work.pending());
  Work moved = std::move(work);
  EXPECT_TRUE(moved.pending());
  moved.wait();
  EXPECT_FALSE(moved.pending());
  moved.wait();  // nothing to wait for
  EXPECT_FALSE(Work().pending());
}

TEST(Work, IsEmptyAfterAWaitThatThrew) {
  const auto ranks = make_local_communicators(2, std::chrono::milliseconds(10));
  Work work = unfinished(*ranks[0]);
  EXPECT_THROW(work.wait(), TimeoutError);
  EXPECT_FALSE(work.pending());
}

TEST(Work, AStreamsWaitIsTheHostsOnHostBackends) {
  const auto ranks = make_local_communicators(1);
  float value = 3;
  Work work = ranks[0]->all_reduce(Buffer::of(std::span(&value, 1)), ReduceOp::sum);
  work.wait_on(Stream(&value));  // any handle: host backends have no streams
  EXPECT_FALSE(work.pending());
  EXPECT_EQ(value, 3);
}

}  // namespace
}  // namespace fusedbun::comm
