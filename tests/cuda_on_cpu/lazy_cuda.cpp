#include "lazy_cuda.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <utility>

namespace fusedbun::lazy_cuda {

struct Moment {
  Stream* stream = nullptr;
  uint64_t position = 0;
  bool is_reached = false;
};

namespace {

// An operation of several ranks, as far as they have given their parts.
struct Meeting {
  std::vector<Part> parts;
  std::vector<std::pair<Stream*, uint64_t>> places;  // of the parts, by rank
  int given = 0;
  std::function<void(const std::vector<Part>&)> done;
  bool is_done = false;
};

struct Item {
  std::function<void()> work = {};
  Event marks = {};
  Event waits_for = {};
  std::shared_ptr<Meeting> meets = {};
};

}  // namespace

struct Stream {
  std::deque<Item> items;
  uint64_t done = 0;  // items that are behind it
  bool is_running = false;
};

struct Meetings::Order {
  int ranks;
  std::vector<uint64_t> next;  // by rank
  std::map<uint64_t, std::shared_ptr<Meeting>> open;
};

namespace {

std::mutex mutex;
std::condition_variable something_was_given;
std::vector<Stream*> streams;
std::mt19937_64 dice;
int eagerness = 0;

using Lock = std::unique_lock<std::mutex>;

uint64_t give_locked(Stream* stream, Item item) {
  stream->items.push_back(std::move(item));
  something_was_given.notify_all();
  return stream->done + stream->items.size();
}

void advance(Lock& lock, Stream* stream, uint64_t position);

// The head is done; it must be due.
void finish_head(Stream* stream) {
  if (stream->items.front().marks) stream->items.front().marks->is_reached = true;
  stream->items.pop_front();
  ++stream->done;
}

// All other ranks come to the meeting, which must have been given by all of them.
void hold(Lock& lock, const std::shared_ptr<Meeting>& meeting) {
  something_was_given.wait(
      lock, [&] { return meeting->given == static_cast<int>(meeting->parts.size()); });
  for (const auto& [stream, position] : meeting->places) advance(lock, stream, position - 1);
  if (meeting->is_done) return;
  meeting->is_done = true;
  meeting->done(meeting->parts);
}

// Does what the stream was given up to that position.
void advance(Lock& lock, Stream* stream, uint64_t position) {
  while (stream->done < position) {
    // Another thread is on it, or waits below for what a third must give.
    if (stream->is_running) {
      something_was_given.wait(lock,
                               [&] { return !stream->is_running || stream->done >= position; });
      continue;
    }
    stream->is_running = true;
    const Item item = stream->items.front();
    if (item.waits_for && !item.waits_for->is_reached)
      advance(lock, item.waits_for->stream, item.waits_for->position);
    if (item.meets) {
      stream->is_running = false;  // the other ranks' threads look whether this one has come
      hold(lock, item.meets);
      if (!stream->items.empty() && stream->items.front().meets == item.meets) finish_head(stream);
      something_was_given.notify_all();
      continue;
    }
    if (item.work) item.work();
    finish_head(stream);
    stream->is_running = false;
    something_was_given.notify_all();
  }
}

// Whether the head can be done without anybody else.
bool is_due(const Stream* stream) {
  if (stream->items.empty() || stream->is_running) return false;
  const Item& item = stream->items.front();
  return !item.meets && (!item.waits_for || item.waits_for->is_reached);
}

void do_some_early(Lock& lock) {
  if (eagerness == 0) return;
  while (dice() % static_cast<uint64_t>(eagerness) != 0) {
    Stream* const stream = streams[dice() % streams.size()];
    if (is_due(stream)) advance(lock, stream, stream->done + 1);
  }
}

}  // namespace

Stream* make_stream() {
  const Lock lock(mutex);
  streams.push_back(new Stream);  // handles may outlive everything
  return streams.back();
}

namespace {
Stream*& stream_of_this_thread() {
  thread_local Stream* stream = make_stream();
  return stream;
}
}  // namespace

Stream* current_stream() {
  return stream_of_this_thread();
}
void set_current_stream(Stream* stream) {
  stream_of_this_thread() = stream;
}

void give(Stream* stream, std::function<void()> work) {
  Lock lock(mutex);
  give_locked(stream, {.work = std::move(work)});
  do_some_early(lock);
}

Event record(Stream* stream) {
  const Lock lock(mutex);
  auto event = std::make_shared<Moment>();
  event->stream = stream;
  event->position = give_locked(stream, {.marks = event});
  return event;
}

void wait_on(Stream* stream, const Event& event) {
  const Lock lock(mutex);
  give_locked(stream, {.waits_for = event});
}

bool is_reached(const Event& event) {
  Lock lock(mutex);
  do_some_early(lock);
  return event->is_reached;
}

bool has_been_reached(const Event& event) {
  const Lock lock(mutex);
  return event->is_reached;
}

void wait(const Event& event) {
  Lock lock(mutex);
  advance(lock, event->stream, event->position);
}

void catch_up(Stream* stream) {
  Lock lock(mutex);
  advance(lock, stream, stream->done + stream->items.size());
}

Meetings::Meetings(int ranks)
    : order_(std::make_shared<Order>(
          Order{ranks, std::vector<uint64_t>(static_cast<size_t>(ranks)), {}})) {}
Meetings::~Meetings() = default;

void Meetings::give(Stream* stream, int rank, Part part,
                    std::function<void(const std::vector<Part>&)> done) {
  const Lock lock(mutex);
  const uint64_t number = order_->next[rank]++;
  std::shared_ptr<Meeting>& meeting = order_->open[number];
  if (!meeting) {
    meeting = std::make_shared<Meeting>();
    meeting->parts.resize(static_cast<size_t>(order_->ranks));
    meeting->places.resize(static_cast<size_t>(order_->ranks));
    meeting->done = std::move(done);
  }
  meeting->parts[rank] = part;
  const std::shared_ptr<Meeting> kept = meeting;
  if (++meeting->given == order_->ranks) order_->open.erase(number);
  const uint64_t position = give_locked(stream, {.meets = kept});
  kept->places[rank] = {stream, position};
  something_was_given.notify_all();
}

void set_eagerness(uint64_t seed, int of) {
  const Lock lock(mutex);
  dice.seed(seed);
  eagerness = of;
}

}  // namespace fusedbun::lazy_cuda
