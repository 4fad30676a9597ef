// How a rank finds rank 0 among several addresses, and what it costs where there is none.
#include "fusedbun/dist/health/join.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <optional>
#include <thread>

#include "fusedbun/core/error.h"
#include "ranks.h"

namespace fusedbun::health {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

/// Reserved for documentation: nobody answers.
const std::string kNobody = "192.0.2.1";

/// Why nobody could be joined; that it took no longer than the budget.
std::string refusal(const Rendezvous& rendezvous, std::chrono::milliseconds budget) {
  const auto begin = Clock::now();
  std::string text = "joined";
  try {
    join(rendezvous, Ranks::info(1), budget);
  } catch (const UnavailableError& error) {
    text = error.what();
  }
  EXPECT_LT(Clock::now() - begin, budget + 1s);
  return text;
}

Rendezvous invitation_to(uint16_t port) {
  return {{"127.0.0.1"}, port, {}, {.host = "node0"}};
}

TEST(Join, FindsRankZeroBehindAnyOfItsAddresses) {
  const std::vector<std::string> lists[] = {{kNobody, "127.0.0.2", "127.0.0.1"},
                                            {"127.0.0.1", kNobody, "::1"}};
  for (const std::vector<std::string>& addresses : lists) {
    const Ranks ranks(2, kPatient);
    Rendezvous rendezvous = ranks.rendezvous();
    rendezvous.addresses = addresses;
    const auto begin = Clock::now();
    EXPECT_TRUE(join(rendezvous, Ranks::info(1), 10s).is_open());
    EXPECT_LT(Clock::now() - begin, 2s);
  }
}

TEST(Join, ARefusedPortIsKnownAtOnce) {
  ListeningSocket gone = listen_on_free_port(true);
  gone.descriptor.close();
  const auto begin = Clock::now();
  EXPECT_THAT(refusal(invitation_to(gone.port), 20s),
              ::testing::AllOf(HasSubstr("rank 0 on node0"),
                               HasSubstr("127.0.0.1 port " + std::to_string(gone.port)),
                               HasSubstr("Connection refused")));
  EXPECT_LT(Clock::now() - begin, 5s);
}

// A listener with a full queue drops what comes, as a firewall does.
TEST(Join, APortThatIsDroppedCostsTheBudgetAndNoMore) {
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listener.value(), any, length), 0);
  ASSERT_EQ(::listen(listener.value(), 0), 0);
  ASSERT_EQ(::getsockname(listener.value(), any, &length), 0);
  const uint16_t port = ntohs(address.sin_port);
  std::vector<Descriptor> queued;
  for (int i = 0; i < 4; ++i) queued.push_back(start_connecting("127.0.0.1", port));
  EXPECT_THAT(refusal(invitation_to(port), 500ms), HasSubstr("no answer"));
}

TEST(Join, AnotherServiceIsNotBelieved) {
  const ListeningSocket silent = listen_on_free_port(true);
  EXPECT_THAT(refusal(invitation_to(silent.port), 300ms), HasSubstr("says nothing"));

  ListeningSocket impostor = listen_on_free_port(true);
  const Rendezvous rendezvous{{"127.0.0.1"}, impostor.port, random_token(), {.host = "node0"}};
  std::thread answers([&] {
    std::optional<Connection> connection;
    EXPECT_TRUE(soon([&] {
      if (!connection) {
        Accepted accepted = accept_from(impostor.descriptor);
        if (!accepted.descriptor.is_open()) return false;
        connection.emplace(std::move(accepted.descriptor));
        connection->send(Challenge{});
      }
      for (const Frame& frame : connection->receive()) {
        const Hello& hello = std::get<Hello>(frame);
        connection->send(Welcome{hello.proof});  // what it was told, said back
        return true;
      }
      return false;
    }));
  });
  EXPECT_THAT(refusal(rendezvous, 10s), HasSubstr("does not know this job"));
  answers.join();
}

TEST(Join, WithoutAnAddressThereIsNothingToTry) {
  EXPECT_THAT(refusal({{}, 1, {}, {.host = "node0"}}, 1s), HasSubstr("no address but loopback"));
  EXPECT_THAT(refusal({{"no-such-host.invalid"}, 1, {}, {}}, 1s), HasSubstr("no-such-host"));
}

TEST(Addresses, OfThisHostAreNumbersAndNeverLoopback) {
  for (const std::string& address : addresses_of_this_host()) {
    EXPECT_NE(address.find_first_of(".:"), std::string::npos) << address;
    EXPECT_NE(address.rfind("127.", 0), 0U) << address;
    EXPECT_NE(address, "::1");
    EXPECT_EQ(address.find('%'), std::string::npos) << address;
  }
}

}  // namespace
}  // namespace fusedbun::health
