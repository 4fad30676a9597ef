#include "fusedbun/tests/dist/step/layout_fuzz_run.h"

#include <ATen/ATen.h>
#include <torch/serialize/archive.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/tests/dist/step/layout_fuzz_expected.h"
#include "fusedbun/tests/dist/step/layout_fuzz_values.h"

namespace fusedbun::testing {
namespace {

// A case takes some milliseconds; a machine under load has time enough, and a hang ends.
constexpr std::chrono::seconds kTimeout{30};

struct WrongResult : std::exception {
  explicit WrongResult(Failure found) : failure(std::move(found)) {}
  const char* what() const noexcept override { return failure.sentence.c_str(); }
  Failure failure;
};

/// Announces the case's changes at their steps.
class Script : public changes::ControlPort {
 public:
  explicit Script(const FuzzCase& c) : case_(c) {}
  int64_t newest_revision() override { return 0; }
  Boundary close_step(int64_t job_step) override {
    int64_t newest = 0;
    for (const FuzzChange& change : case_.changes) newest += change.announced <= job_step ? 1 : 0;
    return {newest, changes::LeaveRequest::none};
  }
  std::vector<changes::ChangeEntry> entries(int64_t after, int64_t up_to) override {
    std::vector<changes::ChangeEntry> entries;
    for (int64_t revision = after + 1; revision <= up_to; ++revision) {
      const FuzzChange& change = case_.changes[static_cast<size_t>(revision - 1)];
      entries.push_back({.revision = revision,
                         .effective_step = change.effective,
                         .field = change.field,
                         .group = change.group,
                         .value = change.value});
    }
    return entries;
  }
  void step_finished(const changes::StepReport&) override {}

 private:
  const FuzzCase& case_;
};

/// One rank's training program.
class Program {
 public:
  Program(const FuzzCase& c, comm::Communicator& communicator,
          const std::vector<ExpectedStep>& expected)
      : case_(c), communicator_(communicator), expected_(expected), script_(c) {
    const int start = c.different_starts ? rank() : 0;
    for (const FuzzParameter& p : c.parameters) {
      // Only what is trained from the beginning is broadcast.
      const bool is_late = c.groups[static_cast<size_t>(p.group)].joins_at > 0;
      tensors_.push_back(parameter_of(c, p, p.frozen || is_late ? 0 : start));
      joined_.push_back(!is_late);
    }
    make_optimizer();
    if (!c.changes.empty()) optimizer_->set_control(rank() == 0 ? &script_ : nullptr);
  }

  /// The parameters' bits after each step.
  const std::vector<std::vector<at::Tensor>>& history() const { return history_; }

  void run() {
    for (step_ = 0; step_ < case_.steps.size(); ++step_) {
      add_late_groups();
      const auto& actions = case_.steps[step_].actions;
      for (action_ = 0; action_ < actions.size(); ++action_) act(actions[action_]);
      take_step();
    }
    optimizer_->finish();
  }

 private:
  int rank() const { return communicator_.rank(); }

  // ---- the optimizer -----------------------------------------------------------------------------

  torch::optim::OptimizerParamGroup make_group(size_t g) const {
    std::vector<at::Tensor> members;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (case_.parameters[p].group != static_cast<int>(g)) continue;
      members.push_back(tensors_[p]);
      if (case_.parameters[p].tied) members.push_back(tensors_[p]);
    }
    return {members, std::make_unique<FusedbunOptions>(case_.groups[g].options())};
  }

  ShardedOptions options() const {
    ShardedOptions options{.min_rows_per_rank = case_.min_rows_per_rank,
                           .bucket_bytes = case_.bucket_bytes,
                           .in_place_bytes = case_.in_place_bytes,
                           .max_grad_norm = case_.max_grad_norm,
                           .transport = case_.transport,
                           .step_in_backward = case_.step_in_backward,
                           .host_window = case_.host_window,
                           .release = case_.release};
    if (case_.divisor > 0) options.gradient_divisor = case_.divisor;
    if (case_.wire_bf16) options.gradient_wire = GradientWire::bf16;
    if (case_.updates_bf16) options.update_wire = UpdateWire::bf16;
    return options;
  }

  void make_optimizer() {
    const Channels channels{&communicator_, &communicator_};
    const FusedbunOptions defaults(case_.groups[0].options());
    group_count_ = 0;
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (; group_count_ < case_.groups.size() && case_.groups[group_count_].joins_at == 0;
         ++group_count_) {
      groups.push_back(make_group(group_count_));
    }
    if (groups.size() > 1 || case_.seed % 2 == 0) {
      optimizer_ = std::make_unique<ShardedFusedbun>(channels, groups, defaults, options());
      return;
    }
    torch::OrderedDict<std::string, at::Tensor> named;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (!joined_[p]) continue;
      const std::string name = "p" + std::to_string(case_.parameters[p].id);
      named.insert(name, tensors_[p]);
      if (case_.parameters[p].tied) named.insert(name + "_again", tensors_[p]);
    }
    optimizer_ = std::make_unique<ShardedFusedbun>(channels, named, defaults, options());
  }

  void add_late_groups() {
    for (; group_count_ < case_.groups.size() &&
           case_.groups[group_count_].joins_at <= static_cast<int>(step_);
         ++group_count_) {
      optimizer_->add_param_group(make_group(group_count_));
      for (size_t p = 0; p < tensors_.size(); ++p) {
        if (case_.parameters[p].group == static_cast<int>(group_count_)) joined_[p] = true;
      }
    }
  }

  void save_and_load() {
    std::stringstream file;
    {
      torch::serialize::OutputArchive archive;
      optimizer_->save(archive);
      archive.save_to(file);
    }
    optimizer_.reset();
    make_optimizer();
    torch::serialize::InputArchive archive;
    archive.load_from(file);
    optimizer_->load(archive);
  }

  // ---- what the program does ---------------------------------------------------------------------

  void act(const FuzzAction& action) {
    if (!does(action, rank())) return;
    switch (action.act) {
      case Act::pass:
        return run_pass(action);
      case Act::begin_guard:
        return guards_.push_back(std::unique_ptr<Guard>(new Guard{optimizer_->no_sync()}));
      case Act::end_guard:
        return guards_.pop_back();
      case Act::zero_grad:
        return optimizer_->zero_grad(action.value == 1);
      case Act::collective:
        return use_channel();
      case Act::write:
        return optimizer_->write_parameters([&] { write(action); });
      case Act::set_lr:
        for (auto& group : optimizer_->param_groups()) {
          group.options().set_lr(group.options().get_lr() * action.value);
        }
        return;
      case Act::save_and_load:
        return save_and_load();
      case Act::write_directly:
      case Act::set_data:
        return write(action);
      default:
        return change_gradients(action);
    }
  }

  at::Tensor numbers(size_t p, Purpose purpose, int of_rank, int poisoned_rank = -1) const {
    std::vector<double> elements =
        values(case_, case_.parameters[p], of_rank, purpose, key_of(step_, action_));
    if (poisoned_rank == of_rank && !elements.empty()) elements.back() = std::nan("");
    if (purpose != Purpose::written) {
      for (double& element : elements) element *= case_.steps[step_].loss_scale;
    }
    return tensor_of(case_.parameters[p], elements);
  }

  void run_pass(const FuzzAction& action) {
    at::Tensor loss;
    const auto add = [&](const at::Tensor& parameter, const at::Tensor& gradient) {
      const at::Tensor part = (parameter * gradient).sum().to(at::kDouble);
      loss = loss.defined() ? loss + part : part;
    };
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (!is_trained(p) || !uses(action, rank(), case_.parameters[p].id)) continue;
      add(tensors_[p], numbers(p, Purpose::gradient, rank(), action.poisoned_rank));
      if (case_.parameters[p].tied) add(tensors_[p], numbers(p, Purpose::tied_gradient, rank()));
    }
    if (!loss.defined()) return;
    if (action.value == 2) loss.backward({}, /*retain_graph=*/true);
    loss.backward();
  }

  bool is_trained(size_t p) const { return joined_[p] && tensors_[p].requires_grad(); }

  void use_channel() {
    int64_t sum = rank() + 1;
    communicator_.all_reduce(comm::Buffer::of(std::span(&sum, 1)), comm::ReduceOp::sum).wait();
    if (sum != case_.ranks * (case_.ranks + 1) / 2) {
      throw WrongResult({"collective", "the user's all_reduce gave " + std::to_string(sum)});
    }
  }

  void write(const FuzzAction& action) {
    const at::NoGradGuard no_grad;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      if (!joined_[p] || case_.parameters[p].frozen) continue;
      if ((action.parameters >> case_.parameters[p].id & 1) == 0) continue;
      const at::Tensor written = numbers(p, Purpose::written, 0);
      action.act == Act::set_data ? tensors_[p].set_data(written)
                                  : (void)tensors_[p].copy_(written);
    }
  }

  void change_gradients(const FuzzAction& action) {
    const at::NoGradGuard no_grad;
    for (size_t p = 0; p < tensors_.size(); ++p) {
      at::Tensor& tensor = tensors_[p];
      if (!joined_[p] || !uses(action, rank(), case_.parameters[p].id)) continue;
      if (action.act == Act::unfreeze) tensor.requires_grad_();
      if (!is_trained(p)) continue;
      if (action.act == Act::set_grad) {
        tensor.mutable_grad() = numbers(p, Purpose::set_gradient, rank(), action.poisoned_rank);
      } else if (action.act == Act::drop_grad) {
        tensor.mutable_grad().reset();
      } else if (tensor.grad().defined() &&
                 (action.act == Act::scale_grad || action.act == Act::write_sent)) {
        tensor.mutable_grad().mul_(action.value);
      }
    }
  }

  // ---- the step ----------------------------------------------------------------------------------

  void take_step() {
    const ExpectedStep& expected = expected_[step_];
    const int64_t skipped_before = optimizer_->skipped_steps();
    const int64_t job_step_before = optimizer_->job_step();
    bool refused = false;
    std::string refusal;
    try {
      optimizer_->step(StepOptions{.loss_scale = case_.steps[step_].loss_scale});
    } catch (const ConfigError& error) {
      refused = true;
      refusal = error.what();
    }
    if (refused != expected.refused) {
      fail(refused ? "refused" : "not refused",
           refused ? "was refused: " + refusal : "was not refused");
    }
    if (refused) optimizer_->zero_grad();
    const bool skipped = optimizer_->skipped_steps() != skipped_before;
    if (skipped != expected.skipped) fail("skip", skipped ? "was skipped" : "was not skipped");
    if (optimizer_->job_step() != job_step_before + (refused ? 0 : 1)) {
      fail("count", "left job step " + std::to_string(optimizer_->job_step()));
    }
    history_.emplace_back();
    for (size_t p = 0; p < tensors_.size(); ++p) {
      history_.back().push_back(tensors_[p].detach().clone(at::MemoryFormat::Contiguous));
      if (joined_[p]) compare(p, history_.back()[p], expected.values[p], expected.tolerance[p]);
    }
  }

  void compare(size_t p, const at::Tensor& found, const at::Tensor& wanted, double tolerance) {
    if (found.equal(wanted)) return;
    const at::Tensor a = found.to(at::kDouble), b = wanted.to(at::kDouble);
    const double error = (a - b).abs().max().item<double>();
    const double largest = b.abs().max().item<double>();
    if (error <= tolerance * largest) return;
    std::ostringstream text;
    text << "gave parameter " << case_.parameters[p].id << " " << found.sizes() << " an error of "
         << error << " where the largest is " << largest << " and " << tolerance
         << " of it is allowed";
    fail("values", text.str());
  }

  [[noreturn]] void fail(const std::string& kind, const std::string& what) const {
    throw WrongResult({kind, "step " + std::to_string(step_) + " " + what + " on rank " +
                                 std::to_string(rank())});
  }

  struct Guard {
    ShardedFusedbun::NoSync no_sync;
  };

  const FuzzCase& case_;
  comm::Communicator& communicator_;
  const std::vector<ExpectedStep>& expected_;
  Script script_;
  std::vector<at::Tensor> tensors_;  // [parameter]
  std::vector<bool> joined_;
  std::unique_ptr<ShardedFusedbun> optimizer_;
  std::vector<std::unique_ptr<Guard>> guards_;
  size_t group_count_ = 0, step_ = 0, action_ = 0;
  std::vector<std::vector<at::Tensor>> history_;
};

using Communicators = std::vector<std::unique_ptr<comm::Communicator>>;

/// Calls body(rank) on a thread per rank; one that fails tells the others.
std::vector<std::exception_ptr> on_threads(Communicators& communicators,
                                           const std::function<void(int)>& body) {
  std::vector<std::exception_ptr> errors(communicators.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(static_cast<int>(rank));
      } catch (...) {
        errors[rank] = std::current_exception();
        if (communicators[rank]) communicators[rank]->abort("rank failed");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

/// `store` outlives the communicators: groups are made through it.
Communicators connect(const FuzzCase& c, std::unique_ptr<comm::StoreServer>& store) {
  if (c.world == FuzzWorld::local) return comm::make_local_communicators(c.ranks, kTimeout);
  store = comm::serve_store("127.0.0.1", 0);
  Communicators communicators(static_cast<size_t>(c.ranks));
  for (const std::exception_ptr& error : on_threads(communicators, [&](int rank) {
         communicators[static_cast<size_t>(rank)] =
             comm::connect_gloo({.rank = rank,
                                 .size = c.ranks,
                                 .master_port = store->port(),
                                 .serve_store = false,
                                 .timeout = kTimeout});
       })) {
    if (error) std::rethrow_exception(error);
  }
  return communicators;
}

Failure failure_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const WrongResult& wrong) {
    return wrong.failure;
  } catch (const PeerLostError& lost) {
    return {"peer lost", lost.what()};
  } catch (const TimeoutError& timeout) {
    return {"timeout", timeout.what()};
  } catch (const std::exception& other) {
    return {"exception", other.what()};
  }
}

/// Another rank's failure shows as a lost peer, so anything else comes first.
Failure first_failure(const std::vector<std::exception_ptr>& errors) {
  Failure found;
  for (const std::exception_ptr& error : errors) {
    if (!error) continue;
    Failure failure = failure_of(error);
    if (!found || found.kind == "peer lost") found = std::move(failure);
  }
  return found;
}

Failure difference_between_ranks(const std::vector<std::vector<std::vector<at::Tensor>>>& ranks) {
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    for (size_t step = 0; step < ranks[0].size(); ++step) {
      for (size_t p = 0; p < ranks[0][step].size(); ++p) {
        const at::Tensor &a = ranks[0][step][p], &b = ranks[rank][step][p];
        if (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0)
          continue;
        return {"ranks", "after step " + std::to_string(step) + " parameter at place " +
                             std::to_string(p) + " has other bits on rank " + std::to_string(rank) +
                             " than on rank 0"};
      }
    }
  }
  return {};
}

}  // namespace

Failure run_case(const FuzzCase& fuzz_case) {
  std::vector<ExpectedStep> expected;
  std::unique_ptr<comm::StoreServer> store;
  Communicators communicators;
  try {
    expected = run_alone(fuzz_case);
    communicators = connect(fuzz_case, store);
  } catch (const std::exception& error) {
    return {"alone", error.what()};
  }
  std::vector<std::vector<std::vector<at::Tensor>>> histories(communicators.size());
  Failure failure = first_failure(on_threads(communicators, [&](int rank) {
    const auto index = static_cast<size_t>(rank);
    {
      Program program(fuzz_case, *communicators[index], expected);
      program.run();
      histories[index] = program.history();
    }
    communicators[index]->barrier().wait();
  }));
  // Some backends take leave of one another.
  on_threads(communicators, [&](int rank) { communicators[static_cast<size_t>(rank)].reset(); });
  return failure ? failure : difference_between_ranks(histories);
}

}  // namespace fusedbun::testing
