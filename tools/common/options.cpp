#include "tools/common/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <iostream>
#include <limits>
#include <type_traits>

#include "dualpipe/sim/costs/costs_file.h"
#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/schedule/quote.h"
#include "dualpipe/sim/schedule/schedule_file.h"
#include "dualpipe/sim/simulate/memory_limit.h"
#include "tools/common/output.h"

namespace dualpipe {
namespace {

// Per-stage lists of one field: their common length, 1 where nothing was given.
class StageLists {
 public:
  explicit StageLists(Costs& costs) : costs_(costs) { costs_.stages.resize(1); }

  // `set` is called for every stage with its value.
  template <typename Parse, typename Set>
  void apply(std::string_view option, const std::vector<std::string>& list, Parse parse, Set set) {
    if (list.empty()) return;
    if (list.size() > 1 && costs_.stages.size() == 1) costs_.stages.resize(list.size(), costs_.stages[0]);
    if (list.size() > 1 && list.size() != costs_.stages.size()) {
      throw InputError(
          fmt::format("{}: {} values, but another option has {}; a list has one value for all stages, or one "
                      "per stage",
                      option, list.size(), costs_.stages.size()));
    }
    for (std::size_t i = 0; i < costs_.stages.size(); ++i) {
      set(costs_.stages[i], value_of(option, list.size() == 1 ? list[0] : list[i], parse));
    }
  }

 private:
  Costs& costs_;
};

CommunicationModel model_of(std::string_view name) {
  if (name == "links") return CommunicationModel::links;
  if (name == "stream") return CommunicationModel::stream;
  assert(name == "latency");
  return CommunicationModel::latency;
}

// "--chunks", and "--chunks,-v" where it has a letter.
std::string option_of(const Parameter& parameter) { return fmt::format("--{}", parameter.name); }
std::string names_of(const Parameter& parameter) {
  return option_of(parameter) + (parameter.name == "chunks" ? ",-v" : "");
}

}  // namespace

CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help) {
  const std::string option = name.substr(0, name.find(','));
  return app.add_option(name, value, help)
      ->type_name(fmt::format("{{{}}}", fmt::join(choices, ",")))
      ->default_str(value)
      ->check([option, choices](const std::string& text) {
        if (std::ranges::find(choices, text) != choices.end()) return std::string();
        throw InputError(fmt::format("{}: it is one of {}, and not {}{}", option, fmt::join(choices, ", "),
                                     detail::schedule::quote(text), did_you_mean(text, choices)));
      });
}

CLI::Option* add_output(CLI::App& app, const std::string& name, std::string& path, const std::string& help) {
  return app.add_option(name, path, help)->expected(0, 1)->default_str("-")->type_name("[FILE]");
}

CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help) {
  return app.add_option_function<std::string>(
      name,
      [&values, name](const std::string& text) {
        values.clear();
        for (std::size_t begin = 0; begin <= text.size();) {
          const std::size_t end = std::min(text.find(',', begin), text.size());
          values.push_back(text.substr(begin, end - begin));
          if (values.back().empty())
            throw CLI::ValidationError(name.substr(0, name.find(',')), "a value of the list is empty");
          begin = end + 1;
        }
      },
      help);
}

void ShapeOptions::add_to(CLI::App& app, const std::string& ranks_help) {
  const auto add = [&](const std::string& name, std::string& value, const std::string& help) {
    app.add_option(name, value, help)->type_name("N")->group("Shape");
  };
  add("--ranks,-p", ranks, ranks_help);
  add("--microbatches,-m", micro_batches, "Micro-batches, the total over both directions");
  add_parameters_to(app);
}

void ShapeOptions::add_parameters_to(CLI::App& app) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (families_that_take(each).empty()) continue;
    const auto otherwise = each.value == &Shape::chunks ? fmt::format(" ({})", default_chunks) : "";
    app.add_option(names_of(each), values[i],
                   fmt::format("{}: {}; of {}{}", each.symbol, each.what, families_that_take(each), otherwise))
        ->type_name("N")
        ->group("Shape");
  }
}

bool ShapeOptions::given() const {
  const auto is_given = [](const std::string& value) { return !value.empty(); };
  return is_given(ranks) || is_given(micro_batches) || std::ranges::any_of(values, is_given);
}

bool ShapeOptions::has_chunks() const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (parameters()[i].value == &Shape::chunks) return !values[i].empty();
  }
  return false;
}

void ShapeOptions::check_used(std::span<const std::string> families) const {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (values[i].empty()) continue;
    if (std::ranges::any_of(families, [&](const std::string& name) { return family(name).*each.is_taken; })) continue;
    throw CLI::ValidationError(option_of(each),
                               fmt::format("the {} cannot be chosen in {}; leave it out, or take one of: {}", each.noun,
                                           families.empty() ? "files" : fmt::format("{}", fmt::join(families, ", ")),
                                           families_that_take(each)));
  }
}

void ShapeOptions::keep_taken_by(const std::string& name) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!(family(name).*parameters()[i].is_taken)) values[i].clear();
  }
}

Shape ShapeOptions::shape(const std::optional<Shape>& defaults) const {
  if (!defaults && (ranks.empty() || micro_batches.empty())) {
    throw InputError("a schedule of the catalog needs its shape: give --ranks and --microbatches");
  }
  Shape shape = defaults.value_or(Shape{});
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const auto whole = [](std::int64_t limit) {
    return [limit](std::string_view text) { return parse_integer(text, 1, limit); };
  };
  if (!ranks.empty()) shape.ranks = static_cast<int>(value_of("--ranks", ranks, whole(stage_count_max)));
  if (!micro_batches.empty()) shape.micro_batches = value_of("--microbatches", micro_batches, whole(most));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Parameter& each = parameters()[i];
    if (values[i].empty()) continue;
    shape.*each.value = static_cast<int>(value_of(option_of(each), values[i], whole(each.most)));
  }
  return shape;
}

namespace {

void add_costs(CLI::App& app, const char* name, std::vector<std::string>& values, const char* type, const char* help,
               const char* group) {
  add_list(app, name, values, help)->type_name(type)->group(group);
}

void add_value(CLI::App& app, const char* name, std::string& text, const char* type, const char* help,
               const char* group) {
  app.add_option(name, text, help)->type_name(type)->group(group);
}

}  // namespace

void CostOptions::add_durations_to(CLI::App& app) {
  constexpr auto durations =
      "Durations of one stage (1.5ms, 850us, ...; a bare number is ms; A,B,... is one per stage)";
  add_costs(app, "--forward,-f", forward, "TIME", "F, forward (1ms)", durations);
  add_costs(app, "--backward,-b", backward, "TIME", "B, the full backward; I = B - W (2ms)", durations);
  add_costs(app, "--weight,-w", weight, "TIME", "W, the weight-gradient half of B (1ms)", durations);
  add_costs(app, "--recompute-time", recompute, "TIME", "The forward that runs again before B or I, on top of them (0)",
            durations);
  add_costs(app, "--overlapped", overlapped, "TIME", "F&B, one overlapped pair (F + B: no gain)", durations);
  add_value(app, "--costs", file, "FILE", "All costs, from a JSON file (dualpipe-costs), instead of those of stages",
            durations);
}

void CostOptions::add_to(CLI::App& app) {
  add_durations_to(app);

  constexpr auto memory = "Memory of one stage (64MiB, 2GB, ...)";
  add_costs(app, "--activation-bytes", activation, "BYTES", "M_B: held from F to B or I, per micro-batch (0)", memory);
  add_costs(app, "--recompute-activation-bytes", recompute_activation, "BYTES",
            "What of it is held where the forward runs again (all)", memory);
  add_costs(app, "--weight-stash-bytes", weight_stash, "BYTES", "M_W: what of it stays until W (0)", memory);
  add_costs(app, "--workspace-bytes", workspace, "BYTES", "What an op, of any pass, needs besides while it runs (0)",
            memory);
  add_costs(app, "--parameter-bytes", parameters, "BYTES", "Parameters (0)", memory);
  add_costs(app, "--gradient-bytes", gradients, "BYTES", "Gradients; reduced between stages that share weights (0)",
            memory);
  add_costs(app, "--optimizer-bytes", optimizer, "BYTES", "Optimizer state (0)", memory);

  constexpr auto messages = "Communication";
  add_choice(app, "--comm", communication, {"latency", "links", "stream"},
             "How messages move. latency: links never contend (default); links: each carries one message at a time; "
             "stream: a rank's "
             "messages go in order, as in NCCL")
      ->group(messages);
  add_value(app, "--latency", latency, "TIME", "Of one message (0; a bare number is ms)", messages);
  add_value(app, "--bandwidth", bandwidth, "RATE",
            "Of a link, with its unit: 50GB/s are bytes, 400Gbps bits; 0 is infinite (0)", messages);
  add_costs(app, "--bytes", message, "BYTES", "Of a message: a stage's output, and its gradient (0)", messages);

  constexpr auto differences = "Ranks that differ";
  add_costs(app, "--speed", speed, "X", "Per rank: durations are divided by it (1)", differences);
  add_value(app, "--launch", launch, "TIME", "Overhead between two ops of a rank (0; a bare number is ms)",
            differences);
  add_value(app, "--jitter", jitter, "X", "Durations vary evenly by up to this share (0)", differences);
  add_value(app, "--seed", seed, "N", "Of the jitter (0)", differences);
  app.add_flag("--release-early", release_early, "An F&B pair hands over F and B when each is ready, not at its end")
      ->group(differences);
}

void CostOptions::add_planned_to(CLI::App& app) {
  add_to(app);
  for (const char* const other : {"--overlapped", "--jitter", "--seed", "--release-early"}) {
    app.remove_option(app.get_option(other));
  }
}

std::vector<std::pair<const char*, const std::vector<std::string>*>> CostOptions::lists() const {
  return {{"--forward", &forward},
          {"--backward", &backward},
          {"--weight", &weight},
          {"--recompute-time", &recompute},
          {"--overlapped", &overlapped},
          {"--activation-bytes", &activation},
          {"--recompute-activation-bytes", &recompute_activation},
          {"--weight-stash-bytes", &weight_stash},
          {"--workspace-bytes", &workspace},
          {"--parameter-bytes", &parameters},
          {"--gradient-bytes", &gradients},
          {"--optimizer-bytes", &optimizer},
          {"--bytes", &message}};
}

void CostOptions::check_usage() const {
  for (const auto& [name, values] : lists()) {
    if (!file.empty() && !values->empty()) throw CLI::ExcludesError("--costs", name);
  }
}

ByteUnits CostOptions::byte_units(const std::string& first) const {
  const auto units_of = [](const std::string& text) -> std::optional<ByteUnits> {
    if (text.find_first_of("kKMGTP") == std::string::npos) return std::nullopt;
    return text.find('i') == std::string::npos ? ByteUnits::decimal : ByteUnits::binary;
  };
  if (const auto units = units_of(first)) return *units;
  for (const auto* values :
       {&activation, &recompute_activation, &weight_stash, &workspace, &parameters, &gradients, &optimizer, &message}) {
    for (const std::string& value : *values) {
      if (const auto units = units_of(value)) return *units;
    }
  }
  return ByteUnits::binary;
}

std::string CostOptions::given() const {
  for (const auto& [name, values] : lists()) {
    if (!values->empty()) return name;
  }
  const std::initializer_list<std::pair<const char*, bool>> others{
      {"--costs", !file.empty()},          {"--comm", !communication.empty()}, {"--latency", !latency.empty()},
      {"--bandwidth", !bandwidth.empty()}, {"--speed", !speed.empty()},        {"--launch", !launch.empty()}};
  for (const auto& [name, is_given] : others) {
    if (is_given) return name;
  }
  return {};
}

GivenCosts CostOptions::costs() const {
  check_usage();
  GivenCosts costs;
  if (file.empty()) {
    costs = of_stages();
  } else {
    costs = load_costs(file);
  }
  std::visit([&](MachineCosts& machine) { apply_to(machine); }, costs);
  return costs;
}

Costs CostOptions::of_stages() const {
  Costs costs;
  StageLists lists(costs);
  constexpr Time default_ms = 1'000'000;
  costs.stages[0].forward = costs.stages[0].weight_gradient = default_ms;
  costs.stages[0].backward = 2 * default_ms;
  lists.apply("--forward", forward, parse_duration, [](StageCosts& s, Time t) { s.forward = t; });
  lists.apply("--backward", backward, parse_duration, [](StageCosts& s, Time t) { s.backward = t; });
  lists.apply("--weight", weight, parse_duration, [](StageCosts& s, Time t) { s.weight_gradient = t; });
  lists.apply("--recompute-time", recompute, parse_duration, [](StageCosts& s, Time t) { s.recompute = t; });
  lists.apply("--overlapped", overlapped, parse_duration, [](StageCosts& s, Time t) { s.overlapped = t; });
  lists.apply("--activation-bytes", activation, parse_bytes, [](StageCosts& s, Bytes b) { s.activation = b; });
  lists.apply("--recompute-activation-bytes", recompute_activation, parse_bytes,
              [](StageCosts& s, Bytes b) { s.recompute_activation = b; });
  lists.apply("--weight-stash-bytes", weight_stash, parse_bytes, [](StageCosts& s, Bytes b) { s.weight_stash = b; });
  lists.apply("--workspace-bytes", workspace, parse_bytes, [](StageCosts& s, Bytes b) {
    s.forward_workspace = s.backward_workspace = s.input_gradient_workspace = s.weight_gradient_workspace = b;
  });
  lists.apply("--parameter-bytes", parameters, parse_bytes, [](StageCosts& s, Bytes b) { s.parameters = b; });
  lists.apply("--gradient-bytes", gradients, parse_bytes, [](StageCosts& s, Bytes b) { s.gradients = b; });
  lists.apply("--optimizer-bytes", optimizer, parse_bytes, [](StageCosts& s, Bytes b) { s.optimizer = b; });
  lists.apply("--bytes", message, parse_bytes, [](StageCosts& s, Bytes b) { s.message = b; });
  for (StageCosts& stage : costs.stages) {
    if (stage.weight_gradient > stage.backward) {
      throw InputError(
          fmt::format("--weight: W is {} ns and part of the full backward B, which is only {} ns; give a "
                      "longer --backward (I = B - W)",
                      stage.weight_gradient, stage.backward));
    }
    stage.input_gradient = stage.backward - stage.weight_gradient;
  }
  return costs;
}

void CostOptions::apply_to(MachineCosts& costs) const {
  if (!communication.empty()) costs.model = model_of(communication);
  if (!latency.empty()) costs.latency = value_of("--latency", latency, parse_duration);
  if (!bandwidth.empty()) costs.bandwidth = value_of("--bandwidth", bandwidth, parse_bandwidth);
  if (!launch.empty()) costs.launch = value_of("--launch", launch, parse_duration);
  if (!jitter.empty()) costs.jitter = value_of("--jitter", jitter, parse_real);
  if (!seed.empty()) {
    const auto any = [](std::string_view text) {
      return parse_integer(text, 0, std::numeric_limits<std::int64_t>::max());
    };
    costs.seed = static_cast<std::uint64_t>(value_of("--seed", seed, any));
  }
  if (!speed.empty()) costs.speed.clear();
  for (const std::string& each : speed) costs.speed.push_back(value_of("--speed", each, parse_real));
  costs.release_early = costs.release_early || release_early;
}

void ScheduleOptions::add_to(CLI::App& app, const std::string& name) {
  app.add_option(name, source,
                 "A name of the catalog (see `dualpipe-sim schedules`), or a CSV or JSON file; - reads one")
      ->required()
      ->type_name("NAME|FILE");
  shape.add_to(app);
  app.add_option("--chains", chains, "Of a CSV file: how many chains its stages are; 2 for DualPipe (1)")
      ->type_name("N")
      ->group("Shape");
  app.add_option(
         "--memory-limit", memory_limit,
         "Of the peak of every rank, as 40GiB; or of its activations, as 12microbatches. An automatic schedule "
         "keeps it, another one is refused if it does not (zbv-auto: as many micro-batches as ranks; else none)")
      ->type_name("BYTES")
      ->group("Memory of a rank");
  add_choice(app, "--letters", letters, {"new", "old"},
             "Of a CSV file: what B is. new: the full backward, F B I W; old: PyTorch's letters before that, as the "
             "zero-bubble papers', F BW B W (what the file shows)")
      ->group("Shape");
}

std::string ScheduleOptions::file() const {
  const bool in_catalog = std::ranges::find(catalog(), source, &Family::name) != catalog().end();
  return in_catalog ? "" : source;
}

std::optional<MemoryLimit> ScheduleOptions::limit() const {
  if (memory_limit.empty()) return std::nullopt;
  return value_of("--memory-limit", memory_limit, parse_memory_limit);
}

void ScheduleOptions::check_memory(const Program& program, const GivenCosts& costs) const {
  if (const auto most = limit()) check_memory_limit(program, stage_costs(costs, program.schedule.placement), *most);
}

void ScheduleOptions::check_used(const CostOptions& costs) const {
  const bool is_automatic = file().empty() && family(source).is_automatic;
  if (const std::string option = costs.given(); !option.empty() && !is_automatic && memory_limit.empty()) {
    throw CLI::ValidationError(option,
                               "the order of this schedule does not depend on costs; leave it out, or add "
                               "--memory-limit");
  }
}

std::variant<Schedule, Program> ScheduleOptions::load(const GivenCosts& costs,
                                                      std::vector<std::string>* remarks) const {
  if (file().empty()) {
    for (const auto& [option, value] : {std::pair("--letters", &letters), {"--chains", &chains}}) {
      if (value->empty()) continue;
      throw CLI::ValidationError(option, "it is for CSV files; leave it out with a schedule of the catalog");
    }
    shape.check_used(std::vector{source});
    Shape asked = shape.shape();
    if (family(source).takes_chunks && !shape.has_chunks()) {
      asked.chunks = default_chunks;
      if (remarks != nullptr) {
        remarks->push_back(fmt::format("{} chunks per rank, as --chunks does not say how many", default_chunks));
      }
    }
    return generate({.family = source, .shape = asked, .costs = costs, .memory_limit = limit()});
  }
  std::error_code error;
  if (source != "-" && !std::filesystem::exists(source, error) && source.find_first_of("./\\") == std::string::npos) {
    (void)family(source);  // says which names there are
  }
  if (shape.given()) {
    throw CLI::ValidationError(source, "a file has its own shape; leave out --ranks, --microbatches and the like");
  }
  const auto number = [](std::string_view text) { return parse_integer(text, 1, stage_count_max); };
  ScheduleFileOptions options;
  options.remarks = remarks;
  if (!chains.empty()) options.chains = static_cast<int>(value_of("--chains", chains, number));
  if (!letters.empty()) options.letters = letters == "old" ? Letters::old : Letters::current;
  return source == "-" ? read_schedule(std::cin, "standard input", options) : load_schedule(source, options);
}

const Schedule& schedule_of(const std::variant<Schedule, Program>& loaded) {
  const Program* program = std::get_if<Program>(&loaded);
  return program != nullptr ? program->schedule : std::get<Schedule>(loaded);
}

namespace {

// Whether all that is wrong is that the stages are two chains.
bool is_valid_as_two_chains(std::variant<Schedule, Program> loaded) {
  return std::visit(
      [](auto& each) {
        Placement* placement = nullptr;
        if constexpr (std::is_same_v<decltype(each), Schedule&>) {
          placement = &each.placement;
        } else {
          placement = &each.schedule.placement;
        }
        if (placement->chains() != 1 || placement->stages() % 2 != 0) return false;
        *placement = in_chains(*placement, 2);
        return validate(each).empty();
      },
      loaded);
}

}  // namespace

Program lower_valid(std::variant<Schedule, Program> loaded, bool all_violations, std::span<const std::string> remarks) {
  const auto violations = std::visit([](const auto& each) { return validate(each); }, loaded);
  if (!violations.empty()) {
    const Placement& placement = schedule_of(loaded).placement;
    throw InputError(fmt::format(
        "the schedule '{}' is not valid:\n{}{}{}", printable(schedule_of(loaded).name),
        violations_text(violations, placement, all_violations ? violations.size() : 20), remarks_text(remarks),
        is_valid_as_two_chains(loaded) ? "as two chains, which DualPipe has, it is valid: say --chains 2" : ""));
  }
  if (auto* program = std::get_if<Program>(&loaded)) return std::move(*program);
  return lower(std::get<Schedule>(std::move(loaded)));
}

std::string violations_text(const std::vector<Violation>& violations, const Placement& placement,
                            std::size_t shown_max) {
  std::string text;
  for (std::size_t i = 0; i < std::min(violations.size(), shown_max); ++i) {
    text += "  " + to_text(violations[i], placement) + "\n";
  }
  if (violations.size() > shown_max) {
    text += fmt::format("  … and {} more (dualpipe-sim validate --all lists them)\n", violations.size() - shown_max);
  }
  return text;
}

}  // namespace dualpipe
