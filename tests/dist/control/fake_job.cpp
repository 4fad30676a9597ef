// A job with a real control plane and a fake loop, for clients in other languages: fake_job RUN_DIR. Lives until its standard
// input ends, then prints the learning rates that its steps used.
#include <iostream>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

int main(int argc, char** argv) {
  using namespace fusedbun::control;
  if (argc != 2) return 64;
  try {
    ControlServer server(options_in(argv[1]), two_group_job());
    const FakeLoop loop(server.port());
    server.set_state(JobState::running);
    std::cout << server.address() << std::endl;
    std::cin.ignore(std::numeric_limits<std::streamsize>::max());
    for (const double lr : loop.learning_rates()) std::cout << lr << '\n';
    return 0;
  } catch (const fusedbun::Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code());
  }
}
