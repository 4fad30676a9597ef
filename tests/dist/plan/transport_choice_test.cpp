// Which transport carries the gradients, against a table written by hand.
#include "fusedbun/dist/plan/transport_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

using ::testing::HasSubstr;
using enum GradientTransport;

TEST(TransportChoice, IsProposedFromWhatAllRanksKnow) {
  struct Row {
    TransportQuery query;
    GradientTransport transport;
    std::string reason;
  };
  for (const Row& row : std::vector<Row>{
           {{.world_size = 1}, point_to_point, "one rank sends nothing"},
           {{.world_size = 2}, shared_memory, "the host window is wanted"},
           {{.world_size = 2, .rounds_gradients = true}, shared_memory, "window is wanted"},
           {{.world_size = 2, .wants_host_window = false}, point_to_point, "turned off"},
           {{.world_size = 2, .strided_parameter = "conv"}, point_to_point, "'conv' is not"},
           {{.on_gpu = true, .world_size = 1}, collective, "on a GPU"},
           {{.on_gpu = true, .world_size = 8, .strided_parameter = "conv"}, collective, "a GPU"},
           {{.request = collective, .world_size = 2}, collective, "asked for"},
           {{.request = collective, .world_size = 1}, collective, "asked for"},
           {{.request = point_to_point, .world_size = 2}, point_to_point, "asked for"},
           {{.request = shared_memory, .world_size = 2, .wants_host_window = false},
            shared_memory,
            "asked for"},
       }) {
    const TransportChoice choice = choose_transport(row.query);
    EXPECT_EQ(choice.transport, row.transport) << choice.reason;
    EXPECT_THAT(choice.reason, HasSubstr(row.reason));
    EXPECT_EQ(choice.lacks_host_window, row.reason == "'conv' is not");
    EXPECT_THAT(choice.reason, HasSubstr(std::string(name_of(row.transport)) + ": "));
  }
}

TEST(TransportChoice, RefusesWhatCannotCarryTheJobAndSaysWhatToDo) {
  const auto message_of = [](const TransportQuery& query) -> std::string {
    try {
      choose_transport(query);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  EXPECT_THAT(message_of({.request = point_to_point, .on_gpu = true}),
              HasSubstr("point_to_point cannot be used: the parameters are on a GPU"));
  EXPECT_THAT(message_of({.request = shared_memory, .on_gpu = true}),
              HasSubstr("use transport = collective"));
  EXPECT_THAT(message_of({.request = shared_memory, .strided_parameter = "conv.weight"}),
              HasSubstr("'conv.weight' is not contiguous"));
  EXPECT_THAT(message_of({.request = collective, .rounds_gradients = true}),
              HasSubstr("gradient_wire = exact"));
  EXPECT_THAT(message_of({.on_gpu = true, .rounds_gradients = true}),
              HasSubstr("gradient_wire = exact"));
  EXPECT_THAT(message_of({.request = collective, .rounds_updates = true}),
              HasSubstr("update_wire = exact"));
  EXPECT_THAT(message_of({.on_gpu = true, .rounds_updates = true}),
              HasSubstr("update_wire = exact"));
}

TEST(TransportChoice, NamesAreReadAsTheyAreWritten) {
  for (const auto transport : {automatic, collective, point_to_point, shared_memory}) {
    EXPECT_EQ(parse_transport(name_of(transport)), transport);
  }
  EXPECT_THROW(parse_transport("pigeons"), ConfigError);
}

}  // namespace
}  // namespace fusedbun::plan
