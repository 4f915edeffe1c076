#include "dualpipe/sim/report/estimate_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace dualpipe {
namespace {

std::string figure_text(const EstimatedFigure& figure, ByteUnits bytes) {
  switch (figure.unit) {
    case EstimatedFigure::Unit::parameters:
      return format_number(figure.value);
    case EstimatedFigure::Unit::flops:
      return format_number(figure.value, "FLOP");
    case EstimatedFigure::Unit::bytes:
      return format_bytes(std::llround(figure.value), bytes);
    case EstimatedFigure::Unit::time:
      return format_time(std::llround(figure.value));
  }
  return {};
}

std::string parts_text(const Estimate& estimate, const TextLayout& layout) {
  TextTable table({{"part", Align::left},
                   {"count"},
                   {"parameters"},
                   {"F"},
                   {"I"},
                   {"W"},
                   {"M_B"},
                   {"M_W", Align::right, 2},
                   {"message", Align::right, 3},
                   {"optimizer", Align::right, 1}});
  for (const EstimatedPart& part : estimate.parts) {
    const StageCosts& costs = part.costs;
    const auto bytes = [&](Bytes amount) { return format_bytes(amount, layout.bytes); };
    table.add_row({part.name, fmt::format("{}", part.count), format_number(part.figures.front().value),
                   format_time(costs.forward), format_time(costs.input_gradient), format_time(costs.weight_gradient),
                   bytes(costs.activation), bytes(costs.weight_stash), bytes(costs.message), bytes(costs.optimizer)});
  }
  if (layout.width > 0) table.narrow_to(layout.width);
  return table.to_text();
}

}  // namespace

std::string format_number(double value, std::string_view unit) {
  constexpr std::pair<double, std::string_view> prefixes[] = {
      {1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
  for (const auto& [size, prefix] : prefixes) {
    if (value < size) continue;
    const double number = value / size;
    const int decimals = number >= 1000 ? 0 : number >= 100 ? 1 : number >= 10 ? 2 : 3;
    // Of things that are counted, people say billions.
    const std::string_view letter = unit.empty() && prefix == "G" ? "B" : prefix;
    return fmt::format("{:.{}f} {}{}", number, decimals, letter, unit);
  }
  return fmt::format("{:.4g}{}{}", value, unit.empty() ? "" : " ", unit);
}

std::string to_text(const Estimate& estimate, const TextLayout& layout) {
  const EstimateRequest& request = estimate.request;
  const Accelerator& gpu = accelerator(request.gpu);
  std::string text = fmt::format("{}: {} layers, {} parameters", request.model.name, request.model.layers,
                                 format_number(static_cast<double>(estimate.parameters)));
  if (estimate.active_parameters != estimate.parameters) {
    text += fmt::format(", {} of them for each token", format_number(static_cast<double>(estimate.active_parameters)));
  }
  text += fmt::format("\nmicro-batch: {} x {} tokens, {} forward and backward\n", request.micro_batch, request.sequence,
                      format_number(estimate.flops, "FLOP"));
  text += fmt::format("t = {} tensor, c = {} context, e = {} expert, d = {} data parallel\n", request.tensor,
                      request.context, request.expert, request.data);
  text += fmt::format("{}: {}, {}, {}\n", gpu.title, format_number(gpu.flops_16bit, "FLOP/s"),
                      format_bytes(gpu.memory, ByteUnits::decimal), format_number(gpu.memory_bandwidth, "B/s"));
  if (request.mfu) {
    text += fmt::format("all at {} of the peak\n", *request.mfu);
  } else {
    text += fmt::format("products at {} of the peak, all else at {} of the memory's bandwidth\n",
                        request.matmul_efficiency, request.memory_efficiency);
  }
  text += "\n" + parts_text(estimate, layout);
  if (const std::size_t count = measured_count(request); count > 0) {
    text += "\n" + wrapped(fmt::format(
                       "{} of {} parts were measured, and what was takes the place of what stands here in the costs",
                       count, estimate.costs.parts.size()));
  }
  for (const EstimatedPart& part : estimate.parts) {
    text += fmt::format("\n{}, on one rank\n", part.name);
    std::size_t name_width = 0;
    std::size_t value_width = 0;
    for (const EstimatedFigure& each : part.figures) {
      name_width = std::max(name_width, display_width(each.name));
      value_width = std::max(value_width, display_width(figure_text(each, layout.bytes)));
    }
    for (const EstimatedFigure& each : part.figures) {
      const std::string value = figure_text(each, layout.bytes);
      text += fmt::format("  {}{}  {}{}  {}\n", each.name, std::string(name_width - display_width(each.name), ' '),
                          std::string(value_width - display_width(value), ' '), value, each.formula);
    }
  }
  return text;
}

std::string accelerators_text() {
  TextTable table({{"GPU", Align::left},
                   {"16 bits"},
                   {"8 bits"},
                   {"memory"},
                   {"its bandwidth"},
                   {"link"},
                   {"to one"},
                   {"network"}});
  std::string sources;
  for (const Accelerator& each : accelerators()) {
    table.add_row({std::string(each.name), format_number(each.flops_16bit, "FLOP/s"),
                   each.flops_8bit > 0 ? format_number(each.flops_8bit, "FLOP/s") : "-",
                   format_bytes(each.memory, ByteUnits::decimal), format_number(each.memory_bandwidth, "B/s"),
                   format_number(each.link_bandwidth, "B/s"), format_number(each.peer_bandwidth, "B/s"),
                   format_number(each.network_bandwidth, "B/s")});
    sources += fmt::format("{}: {}\n", each.name, each.source);
  }
  return table.to_text() + "\n" + sources;
}

}  // namespace dualpipe
