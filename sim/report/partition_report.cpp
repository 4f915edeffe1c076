#include "dualpipe/sim/report/partition_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <ostream>

#include "dualpipe/sim/costs/costs_json.h"
#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/json_text.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe {
namespace {

// The parts of each stage: the first, and how many.
std::vector<std::pair<int, int>> runs_of(const std::vector<int>& cut) {
  std::vector<std::pair<int, int>> runs;
  int begin = 0;
  for (const int count : cut) {
    runs.emplace_back(begin, count);
    begin += count;
  }
  return runs;
}

nlohmann::ordered_json names_json(const std::vector<int>& cut) {
  nlohmann::ordered_json stages = nlohmann::ordered_json::array();
  const int parts = std::accumulate(cut.begin(), cut.end(), 0);
  for (const auto& [begin, count] : runs_of(cut)) {
    nlohmann::ordered_json names = nlohmann::ordered_json::array();
    for (int part = begin; part < begin + count; ++part) {
      if (part == 0) {
        names.push_back("tok_embeddings");
      } else if (part < parts - 1) {
        names.push_back(fmt::format("layers.{}", part - 1));
      } else {
        names.push_back("norm");
        names.push_back("output");
      }
    }
    stages.push_back(std::move(names));
  }
  return stages;
}

std::string stages_text(const PartitionReport& report, const TextLayout& layout) {
  const std::vector<int>& cut = report.partition.best.cut;
  ModelCosts model = report.costs;
  model.cut = cut;
  const Costs costs = stage_costs(model, report.placement);
  const auto runs = runs_of(cut);
  std::vector<std::string> stages, ranks, parts, counts, balanced, held;
  std::vector<std::optional<Time>> loads;
  for (std::size_t s = 0; s < cut.size(); ++s) {
    const StageCosts& cost = costs.of(static_cast<int>(s));
    stages.push_back(fmt::format("{}", s));
    ranks.push_back(fmt::format("{}", report.placement.rank_of[s]));
    parts.push_back(runs[s].second == 1 ? fmt::format("{}", runs[s].first)
                                        : fmt::format("{}-{}", runs[s].first, runs[s].first + runs[s].second - 1));
    counts.push_back(fmt::format("{}", runs[s].second));
    balanced.push_back(fmt::format("{}", report.partition.balanced.cut[s]));
    loads.emplace_back(cost.duration(Kind::forward) + cost.duration(Kind::backward));
    held.push_back(format_bytes(cost.parameters + cost.gradients + cost.optimizer, layout.bytes));
  }
  TextTable table{{}};
  table.add_column({"stage"}, stages);
  table.add_column({"rank"}, ranks);
  table.add_column({"parts", Align::left}, parts);
  table.add_column({"count"}, counts);
  table.add_column({"balanced", Align::right, 1}, balanced);
  table.add_column({"F + B"}, format_times(loads));
  if (std::ranges::any_of(report.costs.parts, [](const StageCosts& c) { return c.parameters + c.gradients > 0; })) {
    table.add_column({"weights", Align::right, 2}, held);
  }
  if (layout.width > 0) (void)table.narrow_to(layout.width);
  return table.to_text();
}

nlohmann::ordered_json figures_json(const CutFigures& figures) {
  return {{"cut", figures.cut},
          {"makespan_ns", figures.makespan},
          {"load_ns", figures.load},
          {"peak_memory_bytes", figures.peak_memory},
          {"fits", figures.fits}};
}

}  // namespace

std::string megatron_layout(const Placement& placement, const std::vector<int>& cut) {
  const int parts = std::accumulate(cut.begin(), cut.end(), 0);
  if (parts < 2) throw InputError("a layout needs parts for the embedding and the head: the first and the last one");
  if (placement.chains() != 1 || placement != straight(placement.ranks, placement.stages() / placement.ranks)) {
    throw InputError(
        "Megatron-LM's layout goes round the ranks, and this schedule's stages do not; take one that does, as 1f1b or "
        "interleaved");
  }
  std::string text;
  for (const auto& [begin, count] : runs_of(cut)) {
    const bool has_embedding = begin == 0;
    const bool has_head = begin + count == parts;
    const int layers = count - (has_embedding ? 1 : 0) - (has_head ? 1 : 0);
    if (!has_embedding) text += '|';
    if (has_embedding) text += 'E';
    if (layers > 0) text += layers == 1 ? "t" : fmt::format("t*{}", layers);
    if (has_head) text += 'L';
  }
  return text;
}

std::string module_names(const std::vector<int>& cut) { return names_json(cut).dump(); }

std::string to_text(const PartitionReport& report, const TextLayout& layout) {
  const CutFigures& best = report.partition.best;
  const CutFigures& balanced = report.partition.balanced;
  std::string text = title_text(report) + "\n";
  text += costs_text(report.costs.parts, fmt::format("the model's {} parts", report.costs.parts.size()), report.costs,
                     false, layout.bytes);
  text += "\n" + stages_text(report, layout) + "\n";
  text += fmt::format("makespan  {}, {} simulations\n", format_time(best.makespan), report.partition.simulations);
  if (best.cut == balanced.cut) {
    text += "balanced  the same: no run of cuts can be moved to gain anything\n";
  } else {
    text += fmt::format(
        "balanced  {}{}\n", format_time(balanced.makespan),
        balanced.fits
            ? fmt::format(", {} longer",
                          format_rate(static_cast<double>(balanced.makespan) / static_cast<double>(best.makespan) - 1))
            : ", and more memory than there is");
  }
  if (best.peak_memory > 0) text += fmt::format("memory    {}\n", format_bytes(best.peak_memory, layout.bytes));
  if (report.with_layout) {
    text += "\nMegatron-LM: ";
    try {
      text += "--pipeline-model-parallel-layout \"" + megatron_layout(report.placement, best.cut) + "\"\n";
    } catch (const InputError& error) {
      text += std::string("none. ") + error.what() + "\n";
    }
    text += "torchtitan: module_fqns_per_model_part = " + module_names(best.cut) + "\n";
  }
  for (const std::string& remark : report.remarks) text += wrapped(remark);
  return text;
}

void write_json(std::ostream& out, const PartitionReport& report) {
  nlohmann::ordered_json document = detail::report::json_title(report);
  document.update(figures_json(report.partition.best));
  document["balanced"] = figures_json(report.partition.balanced);
  document["simulations"] = report.partition.simulations;
  if (report.with_layout) {
    document["megatron_layout"] = nullptr;
    try {
      document["megatron_layout"] = megatron_layout(report.placement, report.partition.best.cut);
    } catch (const InputError&) {  // it has no such placement
    }
    document["module_fqns_per_model_part"] = names_json(report.partition.best.cut);
  }
  document["remarks"] = report.remarks;
  ModelCosts costs = report.costs;
  costs.cut = report.partition.best.cut;
  document["costs"] = detail::costs::costs_json(costs);
  out << detail::report::json_text(document);
}

}  // namespace dualpipe
