#pragma once
// Runs a fuzz case on its ranks, threads of this process, and compares every parameter after every step with what
// run_alone() says, and with the other ranks' bits.
//
// Thread safety: several cases may run at the same time.
#include <functional>
#include <string>

#include "fusedbun/tests/dist/step/layout_fuzz_case.h"

namespace fusedbun::testing {

/// What is wrong: a short kind ("values", "refused", ...), which stays when a case shrinks, and a sentence.
struct Failure {
  std::string kind;
  std::string sentence;
  explicit operator bool() const { return !kind.empty(); }
};

Failure run_case(const FuzzCase& fuzz_case);

/// The smallest case that `run` still finds to fail in the same way, with at most `limit` runs.
FuzzCase shrink(const FuzzCase& failing, const std::function<Failure(const FuzzCase&)>& run,
                int limit = 400);

}  // namespace fusedbun::testing
