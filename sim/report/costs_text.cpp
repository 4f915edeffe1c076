#include "dualpipe/sim/report/costs_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace dualpipe {
namespace {

// What lies between the least and the largest: "3 ms", "3 to 5.2 ms".
template <typename Number, typename Format>
std::string range_text(const std::vector<Number>& values, Format format) {
  const auto [least, most] = std::ranges::minmax_element(values);
  const std::string low = format(*least);
  const std::string high = format(*most);
  if (low == high) return high;
  const auto unit = [](const std::string& text) { return text.substr(text.find(' ') + 1); };
  return fmt::format("{} to {}", unit(low) == unit(high) ? low.substr(0, low.find(' ')) : low, high);
}

class Text {
 public:
  Text(std::span<const StageCosts> entries, ByteUnits units) : entries_(entries), units_(units) {}

  template <typename Figure>
  [[nodiscard]] std::vector<std::int64_t> all(Figure figure) const {
    std::vector<std::int64_t> values;
    for (const StageCosts& each : entries_) values.push_back(figure(each));
    return values;
  }
  template <typename Figure>
  [[nodiscard]] std::string times(Figure figure) const {
    return range_text(all(figure), format_time);
  }
  template <typename Figure>
  void add_bytes(std::vector<std::string>& pieces, std::string_view name, Figure figure) const {
    const auto values = all(figure);
    if (std::ranges::all_of(values, [](Bytes bytes) { return bytes == 0; })) return;
    const auto format = [&](Bytes bytes) { return format_bytes(bytes, units_); };
    pieces.push_back(fmt::format("{} {}", name, range_text(values, format)));
  }

  [[nodiscard]] std::vector<std::string> durations(bool has_pairs) const {
    std::vector<std::string> pieces{
        "F " + times([](const StageCosts& c) { return c.forward; }),
        fmt::format("B {} (I {}, W {})", times([](const StageCosts& c) { return c.backward; }),
                    times([](const StageCosts& c) { return c.input_gradient; }),
                    times([](const StageCosts& c) { return c.weight_gradient; }))};
    if (std::ranges::any_of(entries_, [](const StageCosts& c) { return c.recompute > 0; })) {
      pieces.push_back(fmt::format("recomputation {} more", times([](const StageCosts& c) { return c.recompute; })));
    }
    if (!has_pairs) return pieces;
    const bool is_known = std::ranges::all_of(entries_, [](const StageCosts& c) { return c.overlapped.has_value(); });
    pieces.push_back(is_known ? "F&B " + times([](const StageCosts& c) { return *c.overlapped; })
                              : "F&B = F + B (not measured)");
    return pieces;
  }

  [[nodiscard]] std::vector<std::string> memory() const {
    std::vector<std::string> pieces;
    add_bytes(pieces, "M_B", [](const StageCosts& c) { return c.activation; });
    add_bytes(pieces, "recomputed M_B", [](const StageCosts& c) { return c.recompute_activation.value_or(0); });
    add_bytes(pieces, "M_W", [](const StageCosts& c) { return c.weight_stash; });
    add_bytes(pieces, "workspace of F", [](const StageCosts& c) { return c.forward_workspace; });
    add_bytes(pieces, "of B", [](const StageCosts& c) { return c.backward_workspace; });
    add_bytes(pieces, "of I", [](const StageCosts& c) { return c.input_gradient_workspace; });
    add_bytes(pieces, "of W", [](const StageCosts& c) { return c.weight_gradient_workspace; });
    add_bytes(pieces, "parameters", [](const StageCosts& c) { return c.parameters; });
    add_bytes(pieces, "gradients", [](const StageCosts& c) { return c.gradients; });
    add_bytes(pieces, "optimizer", [](const StageCosts& c) { return c.optimizer; });
    if (pieces.empty()) pieces.emplace_back("no bytes given");
    return pieces;
  }

  [[nodiscard]] std::vector<std::string> communication(const MachineCosts& machine) const {
    constexpr std::string_view names[] = {"latency", "links", "stream"};
    std::vector<std::string> pieces{std::string(names[static_cast<std::size_t>(machine.model)])};
    const auto sizes = all([](const StageCosts& c) { return c.message; });
    const bool takes_bytes = machine.model != CommunicationModel::latency && machine.bandwidth > 0 &&
                             std::ranges::any_of(sizes, [](Bytes bytes) { return bytes > 0; });
    if (machine.latency > 0) pieces.push_back(format_time(machine.latency) + " a message");
    if (takes_bytes) {
      const auto format = [&](Bytes bytes) { return format_bytes(bytes, units_); };
      pieces.push_back(
          fmt::format("{} at {}/s", range_text(sizes, format),
                      format_bytes(static_cast<Bytes>(std::min(machine.bandwidth, 1e18)), ByteUnits::decimal)));
    }
    if (machine.latency == 0 && !takes_bytes) pieces.emplace_back("messages take no time");
    if (machine.release_early) pieces.emplace_back("pairs release F and B when each is ready");
    return pieces;
  }

 private:
  std::span<const StageCosts> entries_;
  ByteUnits units_;
};

std::vector<std::string> differences(const MachineCosts& machine) {
  std::vector<std::string> pieces;
  if (std::ranges::any_of(machine.speed, [](double speed) { return speed != 1; })) {
    pieces.push_back(
        fmt::format("speed {}", range_text(machine.speed, [](double x) { return fmt::format("{}x", x); })));
  }
  if (machine.launch > 0) pieces.push_back(format_time(machine.launch) + " between two ops");
  if (machine.jitter > 0)
    pieces.push_back(fmt::format("jitter {} (seed {})", format_rate(machine.jitter), machine.seed));
  return pieces;
}

}  // namespace

std::string costs_text(std::span<const StageCosts> entries, std::string_view of, const MachineCosts& machine,
                       bool has_pairs, ByteUnits units) {
  const Text of_entries(entries, units);
  std::string text;
  text += wrapped_list(fmt::format("per micro-batch, of {}:", of), of_entries.durations(has_pairs));
  text += wrapped_list("communication:", of_entries.communication(machine));
  text += wrapped_list("memory:", of_entries.memory());
  const auto different = differences(machine);
  if (!different.empty()) text += wrapped_list("ranks:", different);
  return text;
}

std::string costs_text(const Costs& costs, bool has_pairs, ByteUnits units) {
  const std::string of =
      costs.stages.size() == 1 ? "a stage" : fmt::format("each of its {} stages", costs.stages.size());
  return costs_text(costs.stages, of, costs, has_pairs, units);
}

}  // namespace dualpipe
