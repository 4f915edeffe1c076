#include "dualpipe/sim/estimate/estimate.h"

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "commands.h"
#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/estimate/estimate_file.h"
#include "dualpipe/sim/options/estimate_options.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/estimate_report.h"
#include "tools/common/options.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

struct EstimateCommand {
  bool list_gpus = false;
  EstimateOptions options;
  std::string calibrated, output, width;
};

std::vector<std::string> gpu_names() {
  std::vector<std::string> names;
  for (const Accelerator& each : accelerators()) names.emplace_back(each.name);
  return names;
}

void run(const EstimateCommand& command) {
  if (command.list_gpus) return print(accelerators_text());
  check_apart(std::vector<NamedFile>{{"--output", command.output, "costs"}},
              std::vector<NamedFile>{{"--config", command.options.config, "model"},
                                     {"--calibrated", command.calibrated, "measured costs"}});
  TextLayout layout{.width = static_cast<std::size_t>(terminal_width(0)), .bytes = ByteUnits::decimal};
  if (!command.width.empty()) {
    const auto columns = [](std::string_view number) { return parse_integer(number, 20, 100'000); };
    layout.width = static_cast<std::size_t>(value_of("--width", command.width, columns));
  }
  EstimateRequest request = command.options.request();
  if (!command.calibrated.empty()) set_measured(request, load_costs(command.calibrated));
  const Estimate found = estimate(request);
  if (!command.output.empty()) write_output(command.output, [&](std::ostream& out) { write_estimate(out, found); });
  if (command.output != "-") print(to_text(found, layout));
}

void add_model(CLI::App& estimate, EstimateOptions& options) {
  constexpr auto group = "Model";
  const auto add = [&](const char* name, std::string& value, const char* type, const char* help) {
    estimate.add_option(name, value, help)->type_name(type)->group(group);
  };
  add("--config", options.config, "FILE",
      "Hugging Face's config.json: gpt2, llama, mistral, qwen2, qwen3, mixtral, deepseek_v2, deepseek_v3");
  add_choice(estimate, "--style", options.style, {"llama", "gpt"},
             "Without a config. llama: RMSNorm, SwiGLU, rotary positions; gpt: GPT-2's, with dropout (llama)")
      ->default_str("")
      ->group(group);
  add("--layers", options.layers, "N", "Layers");
  add("--hidden", options.hidden, "N", "Hidden size, h");
  add("--heads", options.heads, "N", "Heads of attention");
  add("--kv-heads", options.key_value_heads, "N", "Heads of keys and values (as many)");
  add("--head-size", options.head_size, "N", "Of a head (hidden size / heads)");
  add("--intermediate", options.intermediate, "N", "Of the MLP (gpt: 4h; llama: 8h/3, to a multiple of 256)");
  add("--vocabulary", options.vocabulary, "N", "Tokens that there are (gpt: 50257; llama: 128256)");
}

void add_run(CLI::App& estimate, EstimateOptions& options) {
  constexpr auto group = "What runs";
  const auto add = [&](const char* name, std::string& value, const char* help) {
    estimate.add_option(name, value, help)->type_name("N")->group(group);
  };
  add("--sequence,-s", options.sequence, "Tokens of a sequence");
  add("--microbatch,-b", options.micro_batch, "Sequences of a micro-batch (1)");
  add("--tensor-parallel,-t", options.tensor, "Ranks that share each layer, with sequence parallelism (1)");
  add("--context-parallel", options.context, "Ranks that share each sequence (1)");
  add("--expert-parallel", options.expert, "Ranks that experts are spread over (1)");
  add("--data-parallel,-d", options.data, "Copies, which split the optimizer's state: ZeRO-1 (1)");
  add_choice(estimate, "--dtype", options.dtype, {"bf16", "fp16", "fp8"}, "Of matrix products; all else has 16 bits")
      ->group(group);
  add_choice(estimate, "--attention", options.attention, {"flash", "unfused"},
             "flash: keeps no scores; unfused: writes and keeps them")
      ->group(group);
  add_choice(estimate, "--recompute", options.recompute, {"none", "full"},
             "full: the costs say what a layer costs with its forward run again, and without")
      ->group(group);
}

void add_speed(CLI::App& estimate, EstimateCommand& command) {
  EstimateOptions& options = command.options;
  constexpr auto group = "How fast";
  add_choice(estimate, "--gpu", options.gpu, gpu_names(), "Its peak, memory and links, from its maker's data sheet")
      ->group(group);
  estimate.add_flag("--list-gpus", command.list_gpus, "Print what is known of each, with its source")->group(group);
  const auto add = [&](const char* name, std::string& value, const char* help) {
    estimate.add_option(name, value, help)->type_name("X")->group(group);
  };
  add("--mfu", options.mfu, "All FLOPs at this share of the peak, and nothing else counted");
  add("--matmul-efficiency", options.matmul_efficiency, "The share of the peak that matrix products reach (0.77)");
  add("--memory-efficiency", options.memory_efficiency, "The share of the memory's bandwidth that the rest has (0.63)");
}

}  // namespace

void add_estimate(CLI::App& app) {
  auto command = std::make_shared<EstimateCommand>();
  CLI::App& estimate =
      *app.add_subcommand("estimate", "Costs of a model on a GPU, before anything runs, for all that takes --costs");
  add_model(estimate, command->options);
  add_run(estimate, command->options);
  add_speed(estimate, *command);
  constexpr auto results = "Results";
  estimate
      .add_option("--calibrated", command->calibrated,
                  "Costs that were measured with these sizes instead, of each part that the file has times of; or one, "
                  "of every "
                  "layer. sweep --gpus takes them to other sizes")
      ->type_name("FILE")
      ->group(results);
  estimate.add_option("--output,-o", command->output, "The costs file, or - for stdout")
      ->type_name("FILE")
      ->group(results);
  estimate.add_option("--width", command->width, "Columns of the text (the terminal's)")
      ->type_name("N")
      ->group(results);
  estimate.footer(
      "Examples:\n"
      "  dualpipe-sim estimate --config config.json --sequence 8192 --tensor-parallel 8 -o costs.json\n"
      "  dualpipe-sim estimate --layers 32 --hidden 4096 --heads 32 --kv-heads 8 -s 4096 --gpu a100");
  estimate.callback([command] { run(*command); });
}

}  // namespace dualpipe
