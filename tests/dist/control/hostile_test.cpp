// Fifty thousand requests (FUSEDBUN_HOSTILE_REQUESTS: another number) of which no client of good will would think: random bytes, valid requests with bytes turned, and valid
// ones with values from the edges. The server lives on, and what it refuses changes nothing.
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <future>
#include <iostream>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/rpc_policy.h"
#include "fusedbun/tests/dist/control/fake_loop.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::control {
namespace {

using plan::Random;

constexpr int kThreads = 4;

/// FUSEDBUN_HOSTILE_REQUESTS, or 50,000.
int requests_per_thread() {
  const char* given = std::getenv("FUSEDBUN_HOSTILE_REQUESTS");
  return (given != nullptr ? std::atoi(given) : 50'000) / kThreads;
}

std::string random_bytes(Random& random, size_t size_max) {
  std::string bytes(random() % (size_max + 1), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

double edge_number(Random& random) {
  constexpr double kEdges[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(),
                               -0.0,
                               std::numeric_limits<double>::denorm_min(),
                               std::numeric_limits<double>::max(),
                               std::numeric_limits<double>::lowest(),
                               1.0,
                               -1.0};
  return kEdges[random() % std::size(kEdges)];
}

int64_t edge_integer(Random& random) {
  constexpr int64_t kEdges[] = {
      0,        -1, 1, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min(),
      1'000'000};
  return kEdges[random() % std::size(kEdges)];
}

std::string edge_text(Random& random) {
  const std::string texts[] = {"",
                               "*",
                               "jobs/-",
                               "jobs/-/changes/99999999999999999999",
                               "jobs/-/changes/-1",
                               "\x1b[2J\n",
                               "%s%n%x",
                               "../../etc/",
                               "body",
                               std::string(200'000, 'x')};
  return texts[random() % (random() % 50 == 0 ? 10 : 9)];
}

/// Valid for the parser; whatever fields it has get values from the edges.
void fill_with_edges(google::protobuf::Message& message, Random& random, int depth = 0) {
  using Type = google::protobuf::FieldDescriptor;
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const Type* field = message.GetDescriptor()->field(i);
    if (random() % 3 == 0 || field->is_map()) continue;
    if (field->is_repeated()) {
      const uint64_t count = random() % 200 == 0 ? 2000 : random() % 3;
      for (uint64_t n = 0; n < count; ++n) {
        if (field->cpp_type() == Type::CPPTYPE_MESSAGE && depth < 4) {
          fill_with_edges(*reflection->AddMessage(&message, field), random,
                          depth + (count > 3 ? 4 : 1));
        } else if (field->cpp_type() == Type::CPPTYPE_STRING) {
          reflection->AddString(&message, field, edge_text(random));
        }
      }
      continue;
    }
    switch (field->cpp_type()) {
      case Type::CPPTYPE_MESSAGE:
        if (depth < 4)
          fill_with_edges(*reflection->MutableMessage(&message, field), random, depth + 1);
        break;
      case Type::CPPTYPE_STRING:
        reflection->SetString(&message, field, random() % 2 == 0 ? "jobs/-" : edge_text(random));
        break;
      case Type::CPPTYPE_DOUBLE:
        reflection->SetDouble(&message, field, edge_number(random));
        break;
      case Type::CPPTYPE_BOOL:
        reflection->SetBool(&message, field, random() % 2 == 0);
        break;
      case Type::CPPTYPE_INT64:
        reflection->SetInt64(&message, field, edge_integer(random));
        break;
      case Type::CPPTYPE_INT32:
        reflection->SetInt32(&message, field, static_cast<int32_t>(edge_integer(random)));
        break;
      case Type::CPPTYPE_ENUM:
        reflection->SetEnumValue(&message, field, static_cast<int>(random() % 12) - 1);
        break;
      default:
        break;
    }
  }
}

/// All but the two that end the job, and the streams, which would stay open.
const google::protobuf::MethodDescriptor* random_method(Random& random) {
  const auto* service = v1::Job::descriptor()->file()->service(0);
  while (true) {
    const auto* method = service->method(
        static_cast<int>(random() % static_cast<uint64_t>(service->method_count())));
    if (!method->server_streaming() && method->name() != "StopJob" && method->name() != "DrainJob")
      return method;
  }
}

/// A change with one or two values from the edges: some of them are right.
std::string edge_change(Random& random) {
  v1::CreateChangeRequest request;
  request.set_parent("jobs/-");
  request.set_etag("*");
  for (uint64_t count = 1 + random() % 2; count > 0; --count) {
    v1::GroupPatch& patch = *request.mutable_change()->add_patches();
    patch.set_group(random() % 4 == 0 ? edge_text(random) : "*");
    v1::HyperparameterValues& values = *patch.mutable_values();
    const auto* field = values.GetDescriptor()->field(static_cast<int>(random() % 10));
    if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
      values.GetReflection()->SetBool(&values, field, random() % 2 == 0);
    } else {
      values.GetReflection()->SetDouble(&values, field, edge_number(random));
    }
  }
  if (random() % 4 == 0) request.mutable_change()->set_apply_at_step(edge_integer(random));
  return request.SerializeAsString();
}

std::string hostile_request(const google::protobuf::MethodDescriptor& method, Random& random) {
  if (random() % 3 == 0) return random_bytes(random, 300);
  if (method.name() == "CreateChange" && random() % 2 == 0) return edge_change(random);
  const std::unique_ptr<google::protobuf::Message> message(
      google::protobuf::MessageFactory::generated_factory()
          ->GetPrototype(method.input_type())
          ->New());
  fill_with_edges(*message, random);
  std::string bytes = message->SerializeAsString();
  if (random() % 2 == 0) {
    for (uint64_t flips = 1 + random() % 4; flips > 0 && !bytes.empty(); --flips)
      bytes[random() % bytes.size()] = static_cast<char>(random());
  }
  return bytes;
}

grpc::Status send(grpc::GenericStub& stub, const std::string& method, const std::string& bytes,
                  std::string& reply) {
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  std::promise<grpc::Status> answered;
  stub.UnaryCall(&context, method, {}, &request, &response,
                 [&](grpc::Status status) { answered.set_value(std::move(status)); });
  grpc::Status status = answered.get_future().get();
  grpc::Slice whole;
  if (status.ok() && response.DumpToSingleSlice(&whole).ok())
    reply.assign(reinterpret_cast<const char*>(whole.begin()), whole.size());
  return status;
}

TEST(HostileRequests, LeaveTheServerAliveAndChangeNothingWhenRefused) {
  const uint64_t seed = plan::test_seed();
  google::protobuf::SetLogHandler(nullptr);  // it has a line about each
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  const FakeLoop loop(
      server.port());  // uses up what is accepted, so that there is always room for more
  std::mutex mutex;
  std::set<int64_t> revisions;  ///< of changes that an OK told of
  std::atomic<int> refused = 0;
  std::atomic<int> without_room = 0;
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        Random random(seed + static_cast<uint64_t>(thread));
        grpc::GenericStub stub(
            grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
        for (int i = 0; i < requests_per_thread(); ++i) {
          const auto* method = random_method(random);
          std::string reply;
          const grpc::Status status =
              send(stub, "/" + method->service()->full_name() + "/" + method->name(),
                   hostile_request(*method, random), reply);
          refused += !status.ok();
          without_room += reason_of(status).reason == "TOO_MANY_PENDING";
          v1::Change change;
          if (status.ok() && method->output_type() == change.GetDescriptor() &&
              change.ParseFromString(reply)) {
            const std::lock_guard lock(mutex);
            revisions.insert({change.revision(), change.cancelled_by()});
          }
        }
      });
    }
  }
  revisions.erase(0);  // of dry runs, and of changes that nobody cancelled
  ControlClient client({.run_dir = folder.path()});
  EXPECT_EQ(client.job().state(), v1::Job::RUNNING);
  const v1::Hyperparameters all = client.hyperparameters();
  EXPECT_EQ(all.revision(), static_cast<int64_t>(revisions.size()));
  std::cout << refused << " refused, " << revisions.size() << " changes accepted\n";
  EXPECT_GT(refused, kThreads * requests_per_thread() / 2);
  EXPECT_GT(revisions.size(), 100U);
  EXPECT_EQ(without_room, 0) << "requests that are right reach acceptance";
  for (const v1::ParamGroup& group : all.groups()) {
    EXPECT_TRUE(std::isfinite(group.values().eps())) << group.ShortDebugString();
  }
}

}  // namespace
}  // namespace fusedbun::control
