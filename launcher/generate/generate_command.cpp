#include "fusedbun/launcher/generate/generate_command.h"

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/torch_program.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/generate/generation.h"
#include "fusedbun/launcher/generate/tokenizer.h"
#include "fusedbun/launcher/model/pretrained.h"

namespace fusedbun::launcher {
namespace {

struct Flags {
  std::filesystem::path model;
  std::string prompt;
  bool is_chat = false;
  generate::GenerateOptions options;
  int threads = 0;
  bool is_bf16 = false;
};

void write(const std::string& text) {
  std::cout << text << std::flush;
  FUSEDBUN_REQUIRE(std::cout, IoError, "cannot write to standard output");
}

void run(const Flags& flags, OutputFormat format) {
  generate::validate(flags.options.sampling);
  at::set_num_threads(flags.threads > 0 ? flags.threads : usable_cores());
  const auto model = model::load_pretrained(flags.model);
  if (flags.is_bf16) model->to(at::kBFloat16);
  model->eval();
  const std::filesystem::path folder = model::model_at(flags.model).parent_path();
  generate::GenerateOptions options = flags.options;
  options.end_tokens = model::end_tokens(folder);

  generate::Tokenizer tokenizer(folder, model->vocab());
  const std::vector<int64_t> prompt = tokenizer.encode(flags.prompt, flags.is_chat);
  std::vector<int64_t> tokens;
  std::string text;
  const auto show = [&](const std::string& more) {
    text += more;
    if (format == OutputFormat::text) write(more);
  };
  const auto start = std::chrono::steady_clock::now();
  const generate::StopReason stopped =
      generate::generate(*model, prompt, options, [&](int64_t token) {
        tokens.push_back(token);
        show(tokenizer.decode(token));
      });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  show(tokenizer.finish());
  if (format == OutputFormat::text) return write(text.ends_with('\n') ? "" : "\n");
  const nlohmann::ordered_json report = {
      {"prompt", flags.prompt},
      {"prompt_tokens", prompt},
      {"text", text},
      {"tokens", tokens},
      {"tokens_per_second", static_cast<double>(tokens.size()) / took.count()},
      {"stopped", generate::name_of(stopped)}};
  // Bytes need not be UTF-8.
  write(report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace

CLI::App* add_generate_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command = add_torch_command(app, kGenerate);
  command->footer(
      "Examples:\n"
      "  fusedbun generate --model runs/first --prompt \"This program is\"\n"
      "  fusedbun generate --model SmolLM2/ --chat --prompt \"What is a compiler?\" --max-tokens "
      "256");
  command
      ->add_option(
          "--model", flags->model,
          "A Hugging Face folder of a GPT-2, Llama, Mistral, Qwen2 or Qwen3, such as a run "
          "folder, or its safetensors file")
      ->required();
  command->add_option("--prompt", flags->prompt, "The text that the model goes on with")
      ->required();
  command->add_flag(
      "--chat", flags->is_chat,
      "The prompt is what a user says: ask for the answer, by the tokenizer's chat template");
  command->add_option("--max-tokens", flags->options.max_tokens, "Stop after so many")
      ->check(CLI::PositiveNumber);
  command->add_option("--temperature", flags->options.sampling.temperature,
                      "Logits are divided by it; 0: always the likeliest token");
  command->add_option("--top-p", flags->options.sampling.top_p,
                      "Choose among the likeliest tokens that are this likely together");
  command->add_option("--seed", flags->options.seed,
                      "Of the choices: the same gives the same text");
  command->add_option("--threads", flags->threads, "0: as many as there are processors")
      ->check(CLI::NonNegativeNumber);
  const std::map<std::string, bool> precisions = {{"float32", false}, {"bf16", true}};
  command->add_option("--precision", flags->is_bf16, "float32 or bf16")
      ->transform(CLI::CheckedTransformer(precisions).description(""))
      ->type_name("NAME")
      ->default_str("float32");
  const auto format = add_output_flag(*command);
  command->callback([flags, format] { run(*flags, *format); });
  return command;
}

}  // namespace fusedbun::launcher
