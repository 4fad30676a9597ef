#include "fusedbun/launcher/bench/bench_command.h"

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/job/device_error.h"
#include "fusedbun/launcher/bench/local_launch.h"
#include "fusedbun/launcher/bench/rank_bench.h"
#include "fusedbun/launcher/bench/step_bench.h"
#include "fusedbun/launcher/cli/torch_program.h"
#include "fusedbun/launcher/env/versions.h"

namespace fusedbun::launcher {
namespace {

using bench::Json;

struct Flags {
  std::string model;
  std::vector<int> threads;
  int rounds = 3;
  int step_rounds = 9;
  int steps = 7;
  int ranks = 2;
  int mebibytes = 128;
  int bucket_mebibytes = 25;
  std::vector<std::string> only;
  std::string backend = "auto";
  std::string report_to;
  bool use_gpu = false;
  bool share_gpu = false;
  bool json = false;
};

void show(const Json& report, bool json) {
  if (json) {
    std::cout << report.dump(2) << '\n';
  } else {
    bench::print_table(report, std::cout);
  }
}

bench::Setting setting_of(const std::string& name, const Flags& flags) {
  return {.with_backward = name == "train",
          .on_gpu = flags.use_gpu,
          .bucket_bytes = int64_t{flags.bucket_mebibytes} << 20};
}

using Rows = std::function<Json(Job&, const bench::RankBenchOptions&)>;

/// What this process does when it is one rank of a job.
void take_part(const std::string& name, const Flags& flags, const Rows& measure) {
  at::set_num_threads(1);
  Job job({.backend = plan::parse_backend(flags.backend),
           .program = launcher::program_text(),
           .control = false,
           .use_gpu = flags.use_gpu,
           .share_gpu = flags.share_gpu});
  Json report = bench::empty_report(name);
  report["ranks"] = job.world_size();
  report["backend"] = job.backend().reason;
  try {
    report["rows"] =
        measure(job, {.model = bench::model_of(flags.model),
                      .contestants = bench::chosen(flags.only, setting_of(name, flags)),
                      .steps = flags.steps,
                      .bytes = int64_t{flags.mebibytes} << 20});
  } catch (const std::exception& error) {
    job.fail(error);
    throw;
  }
  job.finish();
  if (job.rank() != 0) return;
  if (!flags.report_to.empty()) {
    std::ofstream(flags.report_to) << report;
  } else {
    show(report, flags.json);
  }
}

/// Medians over rounds of every number that has quartiles; what does not vary is the last round's.
Json merged(const std::vector<Json>& rounds) {
  Json row = rounds.back();
  for (const auto& [key, value] : rounds.back().items()) {
    if (!row.contains(key + "_low")) continue;
    std::vector<double> medians;
    for (const Json& round : rounds) medians.push_back(round[key]);
    // One round's own quartiles are all there is.
    if (rounds.size() > 1) bench::put(row, key, bench::spread_of(medians));
  }
  return row;
}

/// Each row on ranks of its own, so that memory is the row's; rows take turns, round after round.
Json over_own_ranks(const std::string& name, const Flags& flags) {
  const auto words = [&](const std::string& row) {
    std::vector<std::string> all = {"bench",        name,
                                    "--steps",      std::to_string(flags.steps),
                                    "--mib",        std::to_string(flags.mebibytes),
                                    "--bucket-mib", std::to_string(flags.bucket_mebibytes),
                                    "--model",      flags.model,
                                    "--backend",    flags.backend};
    if (flags.use_gpu) all.insert(all.end(), {"--device", "cuda"});
    if (flags.share_gpu) all.emplace_back("--share-gpu");
    if (!row.empty()) all.insert(all.end(), {"--only", row});
    return all;
  };
  if (name == "collectives") return bench::run_on_own_ranks(flags.ranks, words(""));
  const auto rows = bench::chosen(flags.only, setting_of(name, flags));
  std::vector<std::vector<Json>> results(rows.size());
  Json report;
  for (int round = 0; round < flags.rounds; ++round) {
    for (size_t r = 0; r < rows.size(); ++r) {
      std::cerr << name << ' ' << flags.model << ", round " << round + 1 << " of " << flags.rounds
                << ": " << rows[r].name << '\n';
      report = bench::run_on_own_ranks(flags.ranks, words(rows[r].name));
      results[r].push_back(report["rows"][0]);
    }
  }
  report["rows"] = Json::array();
  for (const std::vector<Json>& rounds : results) report["rows"].push_back(merged(rounds));
  return report;
}

bool is_rank_of_a_job() {
  return plan::identify(read_environment(), {}).launcher != plan::Launcher::single;
}

Json step_report(const Flags& flags) {
  bench::StepBenchOptions options{
      .model = bench::model_of(flags.model), .rounds = flags.step_rounds, .use_gpu = flags.use_gpu};
  if (flags.use_gpu) {
    require_gpu({});
    options.threads = {1};  // one issues the launches
  }
  if (!flags.threads.empty()) options.threads = flags.threads;
  try {
    return bench::bench_step(options);
  } catch (const std::exception& error) {
    if (const auto device = device_error_behind(error, "bench step")) throw DeviceError(*device);
    throw;
  }
}

const std::map<std::string, Rows>& rank_benchmarks() {
  static const std::map<std::string, Rows> all = {{"collectives", bench::collective_rows},
                                                  {"exchange", bench::exchange_rows},
                                                  {"train", bench::train_rows}};
  return all;
}

void add_model_flag(CLI::App& command, Flags& flags, const std::string& usual) {
  flags.model = usual;
  command.add_option("--model", flags.model, "3m, 25m or 124m parameters, shaped as GPT-2");
}

void add_device_flag(CLI::App& command, Flags& flags) {
  const std::map<std::string, bool> devices = {{"cpu", false}, {"cuda", true}};
  command.add_option("--device", flags.use_gpu, "cpu or cuda")
      ->transform(CLI::CheckedTransformer(devices).description(""))
      ->type_name("NAME")
      ->default_str("cpu");
}

CLI::App* add_over_ranks(CLI::App& app, const std::string& name, const std::string& what,
                         const std::string& model, const std::string& examples) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command = app.add_subcommand(name, what);
  command->footer(examples);
  add_model_flag(*command, *flags, model);
  command->add_option("--ranks", flags->ranks, "Ranks to start, where no launcher started any");
  command->add_option("--rounds", flags->rounds, "Turns that each row takes, on ranks of its own");
  command->add_option("--steps", flags->steps, "Timed steps per turn");
  command->add_option("--only", flags->only, "This row; may be repeated")->default_str("all rows");
  command->add_option("--mib", flags->mebibytes, "Size of the buffers of collectives, MiB");
  command
      ->add_option("--bucket-mib", flags->bucket_mebibytes, "Gradients that travel together, MiB")
      ->check(CLI::PositiveNumber);
  command->add_option("--backend", flags->backend, "auto, gloo, mpi or nccl");
  add_device_flag(*command, *flags);
  command->add_flag("--share-gpu", flags->share_gpu, "Let several ranks be on one GPU; NCCL 2.30");
  command->add_flag("--json", flags->json, "Print JSON with `rows`, not a table");
  command->add_option("--report-to", flags->report_to)->group("");
  command->callback([flags, name] {
    if (is_rank_of_a_job()) return take_part(name, *flags, rank_benchmarks().at(name));
    show(over_own_ranks(name, *flags), flags->json);
  });
  return command;
}

void add_step(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command =
      app.add_subcommand("step", "Time one optimizer step beside LibTorch's fused AdamW");
  command->footer(
      "Examples:\n"
      "  fusedbun bench step --model 25m\n"
      "  fusedbun bench step --threads 1 --json\n"
      "  fusedbun bench step --device cuda");
  add_model_flag(*command, *flags, "124m");
  add_device_flag(*command, *flags);
  command->add_option("--threads", flags->threads, "Numbers of threads")
      ->delimiter(',')
      ->default_str("1,2; on a GPU 1");
  command->add_option("--rounds", flags->step_rounds, "Turns that each optimizer takes");
  command->add_flag("--json", flags->json, "Print JSON with `rows`, not a table");
  command->callback([flags] { show(step_report(*flags), flags->json); });
}

void add_all(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command = app.add_subcommand("all", "Run every benchmark for one model");
  add_model_flag(*command, *flags, "25m");
  command->add_option("--ranks", flags->ranks, "Ranks to start");
  command->add_option("--rounds", flags->rounds, "Turns that each row takes");
  command->add_flag("--json", flags->json, "Print a JSON array of reports, not tables");
  command->callback([flags] {
    Json reports = Json::array({step_report(*flags)});
    for (const auto& [name, rows] : rank_benchmarks()) {
      reports.push_back(over_own_ranks(name, *flags));
    }
    if (flags->json) {
      std::cout << reports.dump(2) << '\n';
      return;
    }
    for (const Json& report : reports) {
      std::cout << "\n## " << report["benchmark"].get<std::string>() << '\n';
      bench::print_table(report, std::cout);
    }
  });
}

}  // namespace

CLI::App* add_bench_command(CLI::App& app) {
  CLI::App* const command = add_torch_command(app, kBench);
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  fusedbun bench step\n"
      "  fusedbun bench train --model 25m --json\n"
      "  mpirun -np 2 fusedbun bench exchange --model 124m");
  add_step(*command);
  add_over_ranks(*command, "collectives", "Time reduce-scatter, all-gather, all-reduce, exchange",
                 "3m", "Examples:\n  fusedbun bench collectives --mib 128");
  add_over_ranks(*command, "exchange", "Time reduce + step + gather with given gradients", "124m",
                 "Examples:\n  fusedbun bench exchange --model 25m --only \"window, agreed\"");
  add_over_ranks(*command, "train",
                 "Time whole training steps, and what of them is not forward and backward", "25m",
                 "Examples:\n  fusedbun bench train --model 3m --rounds 1");
  add_all(*command);
  return command;
}

}  // namespace fusedbun::launcher
