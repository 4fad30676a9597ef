#pragma once
// Streams and events of a GPU that does nothing before it must: work that was given to a stream is done when somebody waits for it, on the
// CPU, and only as far as that needs. So a missing wait between streams gives wrong numbers, and not luck. A seed adds work that is done
// early, in a drawn order, because a real GPU is not that lazy either.
//
// Operations of LibTorch on the CPU's tensors, which stand in for a GPU's, are done at once: `catch_up` before them does what the current
// stream was given before.
//
// Thread safety: any thread may call anything. All work runs under one lock.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fusedbun::lazy_cuda {

struct Stream;
/// Lives for ever; handles are its address.
Stream* make_stream();
/// That of the calling thread, as LibTorch has a current one.
Stream* current_stream();
void set_current_stream(Stream* stream);

/// The moment at which a stream has done what it was given before `record`.
struct Moment;
using Event = std::shared_ptr<Moment>;

void give(Stream* stream, std::function<void()> work);
Event record(Stream* stream);
/// Later work of the stream comes after the event.
void wait_on(Stream* stream, const Event& event);
bool is_reached(const Event& event);
/// The same, but nothing happens for the question.
bool has_been_reached(const Event& event);
/// Does what the event needs; where that needs work that other threads have not given yet, waits for them.
void wait(const Event& event);
void catch_up(Stream* stream);

/// One operation of several ranks: each gives its part, at the same place of a communicator's order, and `done`, called once by whichever
/// thread comes to it when all parts are due, gets them by rank.
struct Part {
  const void* input = nullptr;
  void* output = nullptr;
};
class Meetings {
 public:
  explicit Meetings(int ranks);
  ~Meetings();
  Meetings(const Meetings&) = delete;  // parts refer to it
  void give(Stream* stream, int rank, Part part,
            std::function<void(const std::vector<Part>&)> done);

 private:
  struct Order;
  std::shared_ptr<Order> order_;
};

/// How much is done early: of `of` chances one is taken; 0: nothing ever. The seed draws them.
void set_eagerness(uint64_t seed, int of);

}  // namespace fusedbun::lazy_cuda
