#pragma once
// FuzzCase: a model, its sharding and a training program, as plain data: drawn from a seed, run sharded and alone, made
// smaller while it fails, and printed as C++.
//
// Thread safety: values.
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/change.h"
#include "fusedbun/dist/plan/transport_choice.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::testing {

enum class Layout { contiguous, transposed, every_second };
enum class FuzzWorld { local, gloo };

struct FuzzParameter {
  int id = 0;  ///< its bit in a mask; stays when others are removed
  std::vector<int64_t> shape = {};
  ElementType type = ElementType::f32;
  Layout layout = Layout::contiguous;
  int group = 0;
  bool frozen = false;  ///< at the start
  bool tied = false;    ///< listed twice and used twice
};

struct FuzzGroup {
  std::string preset = "recommended";
  double lr = 0.01;
  MatrixView matrix_view = MatrixView::leading;
  Nonfinite nonfinite = Nonfinite::skip;
  bool centralize = false;
  bool bf16_momentum = false;
  bool prepare_hessian = false;
  int joins_at = 0;  ///< the step before which it is added
  Options options() const;
};

/// How a step's gradient comes about: what people write between two steps.
enum class Idiom {
  one_pass,
  guard_per_pass,
  one_guard_around_several,
  guards_alone,
  guard_without_backward,
  zero_grad_again,
  batch_dropped_on_one_rank,
  two_losses,
  one_graph_twice,
  second_pass_reaches_some,
  set_by_hand,
  set_by_hand_beside_passes,
  thrown_away,
  scaled_after_guards,
  kept_from_last_step,  ///< GradientRelease::never and no zero_grad
  uneven_passes,        ///< refused, unless the user gives the divisor
  written_after_sent,   ///< refused
};
std::span<const std::string> idiom_names();

enum class Act {
  pass,         ///< forward and backward; `value` 2: the graph is run through twice
  begin_guard,  ///< no_sync
  end_guard,
  zero_grad,       ///< `value` 1: set to none, 0: zeroed in place
  set_grad,        ///< p.grad = a new tensor
  drop_grad,       ///< p.grad = none
  scale_grad,      ///< p.grad *= value, before it was sent
  write_sent,      ///< p.grad *= value, after it was sent
  collective,      ///< the user's all_reduce on the channel
  write,           ///< write_parameters
  write_directly,  ///< p.copy_ on all ranks
  set_data,        ///< p.set_data on all ranks
  set_lr,          ///< a scheduler writes the groups' lr
  unfreeze,
  save_and_load,  ///< into a new optimizer
};

struct FuzzAction {
  Act act = Act::pass;
  uint32_t ranks = ~0u;       ///< mask: which ranks do it
  uint32_t parameters = ~0u;  ///< mask of ids
  double value = 1;
  int odd_rank = -1;       ///< this rank ...
  uint32_t unused = 0;     ///< ... does not use these parameters
  int poisoned_rank = -1;  ///< this rank's gradients of the pass hold a NaN
};

struct FuzzStep {
  Idiom idiom = Idiom::one_pass;
  std::vector<FuzzAction> actions = {};
  double loss_scale = 1;
};

/// A change of a hyperparameter through the control port: known at the end of step `announced`.
struct FuzzChange {
  int64_t announced = 0;
  int64_t effective = 2;
  changes::Field field = changes::Field::lr_scale;
  int group = -1;
  double value = 1;
};

struct FuzzCase {
  uint64_t seed = 0;  ///< of the values
  int ranks = 1;
  FuzzWorld world = FuzzWorld::local;
  plan::GradientTransport transport = plan::GradientTransport::automatic;
  bool host_window = false;
  int64_t min_rows_per_rank = 4;
  int64_t bucket_bytes = 25 << 20;
  int64_t in_place_bytes = 64 << 10;
  bool wire_bf16 = false;     ///< gradients
  bool updates_bf16 = false;  ///< and what a step changes, or that alone
  double max_grad_norm = 0;
  double divisor = 0;  ///< of the user; 0: none
  bool step_in_backward = false;
  GradientRelease release = GradientRelease::after_step;
  bool different_starts = false;  ///< ranks start with other values than rank 0's
  std::vector<FuzzGroup> groups = {};
  std::vector<FuzzParameter> parameters = {};
  std::vector<FuzzStep> steps = {};
  std::vector<FuzzChange> changes = {};
};

/// A case that is allowed: nothing in it is refused but what its idioms say.
FuzzCase draw_case(uint64_t seed, FuzzWorld world,
                   plan::GradientTransport transport = plan::GradientTransport::automatic);

/// Statements that build the case `c`, and nothing that is as by default.
std::string to_cpp(const FuzzCase& fuzz_case);

/// What a case is made of, each name once per case, idioms once per step: "idiom two_losses", "ranks 3", "late group".
void count_features(const FuzzCase& fuzz_case, std::map<std::string, int64_t>& counts);
/// Every name that count_features can give and a run must have.
std::vector<std::string> wanted_features();

bool does(const FuzzAction& action, int rank);
/// The parameter is used by this rank in this pass.
bool uses(const FuzzAction& action, int rank, int id);

}  // namespace fusedbun::testing
