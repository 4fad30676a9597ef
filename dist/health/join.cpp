#include "fusedbun/dist/health/join.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

using Clock = std::chrono::steady_clock;

/// Rank 0 closes the oldest of too many connections that have not proven themselves, and it may be ours.
constexpr std::chrono::milliseconds kAgainAfter{20};

/// One address of rank 0, from a connection in progress to the proof that rank 0 is behind it.
class Attempt {
 public:
  Attempt(std::string address, const Rendezvous& rendezvous, const RankInfo& me)
      : address_(std::move(address)), rendezvous_(rendezvous), me_(me) {
    start();
  }

  bool has_failed() const { return !connection_.is_open() && !again_at_; }
  bool is_welcome() const { return is_welcome_; }
  Connection take_connection() { return std::move(connection_); }
  std::string describe() const {
    return address_ + " port " + std::to_string(rendezvous_.port) + ": " + problem_;
  }

  pollfd awaited() const {
    return {connection_.descriptor(), static_cast<short>(is_connected_ ? POLLIN : POLLOUT), 0};
  }
  void start_again_if_due(Clock::time_point now) {
    if (again_at_ && now >= *again_at_) start();
  }
  /// What was awaited has come.
  void advance() {
    if (!is_connected_) return finish_connecting();
    // No byte behind the Welcome: those are for the one who gets the connection.
    for (const Frame& frame : connection_.receive(kWelcomeBytes)) {
      if (const auto* challenge = std::get_if<Challenge>(&frame)) {
        answer(*challenge);
      } else {
        return believe_if_proven(std::get_if<Welcome>(&frame));
      }
    }
    if (connection_.is_open()) return;
    problem_ = "the connection was closed";
    again_at_ = Clock::now() + kAgainAfter;
  }

 private:
  void start() {
    again_at_.reset();
    is_connected_ = false;
    problem_ = "no answer";
    connection_ = Connection(start_connecting(address_, rendezvous_.port));
    if (!connection_.is_open()) fail(std::strerror(errno));
  }

  void finish_connecting() {
    if (const int error = connect_error(connection_.descriptor())) {
      return fail(std::strerror(error));
    }
    is_connected_ = true;
    problem_ = "what listens there says nothing";
  }

  void answer(const Challenge& challenge) {
    challenge_ = challenge;
    hello_ = {.info = me_, .nonce = random_nonce()};
    hello_.proof = proof_of(rendezvous_.token, Side::joining, challenge_, hello_);
    connection_.send(hello_);
  }

  void believe_if_proven(const Welcome* welcome) {
    is_welcome_ =
        welcome != nullptr &&
        is_same(welcome->proof, proof_of(rendezvous_.token, Side::listening, challenge_, hello_));
    if (!is_welcome_) fail("what listens there does not know this job");
  }

  void fail(const std::string& problem) {
    connection_.close();
    problem_ = problem;
  }

  std::string address_;
  const Rendezvous& rendezvous_;
  const RankInfo& me_;
  Connection connection_{Descriptor()};
  bool is_connected_ = false;
  bool is_welcome_ = false;
  Challenge challenge_;
  Hello hello_;
  std::string problem_;
  std::optional<Clock::time_point> again_at_;
};

std::string why_not(const std::vector<Attempt>& attempts, const Rendezvous& rendezvous) {
  std::string text = "no heartbeat connection to rank 0 on " + rendezvous.rank_0.host + " (";
  for (const Attempt& attempt : attempts) {
    if (&attempt != &attempts.front()) text += "; ";
    text += attempt.describe();
  }
  return text + (attempts.empty() ? "it has no address but loopback)" : ")");
}

}  // namespace

Connection join(const Rendezvous& rendezvous, const RankInfo& me,
                std::chrono::milliseconds budget) {
  const Clock::time_point deadline = Clock::now() + budget;
  std::vector<Attempt> attempts;
  attempts.reserve(rendezvous.addresses.size());
  for (const std::string& address : rendezvous.addresses) {
    attempts.emplace_back(address, rendezvous, me);
  }
  std::vector<pollfd> waits;
  for (;;) {
    const Clock::time_point now = Clock::now();
    const bool all_failed = std::ranges::all_of(attempts, &Attempt::has_failed);
    FUSEDBUN_REQUIRE(now < deadline && !all_failed, UnavailableError,
                     why_not(attempts, rendezvous));
    waits.clear();
    for (Attempt& attempt : attempts) {
      attempt.start_again_if_due(now);
      waits.push_back(attempt.awaited());
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - now);
    const auto nap = std::min(left + std::chrono::milliseconds(1), kAgainAfter);
    ::poll(waits.data(), waits.size(), static_cast<int>(nap.count()));
    for (size_t i = 0; i < attempts.size(); ++i) {
      if (waits[i].revents == 0) continue;
      attempts[i].advance();
      if (attempts[i].is_welcome()) return attempts[i].take_connection();
    }
  }
}

}  // namespace fusedbun::health
