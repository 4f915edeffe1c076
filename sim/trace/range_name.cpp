#include "dualpipe/sim/trace/range_name.h"

#include <fmt/format.h>

#include <charconv>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::trace {
namespace {

constexpr std::size_t name_size_max = 200;  // of one that the pattern is tried on: it recurses over the name

std::optional<std::int64_t> number(std::string_view text, std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0 || value > most) return std::nullopt;
  return value;
}

std::optional<Op> op(std::int64_t stage, Kind kind, std::optional<std::int64_t> micro_batch) {
  if (!micro_batch || stage < 0 || stage >= std::int64_t{stage_count_max}) return std::nullopt;
  return Op{static_cast<std::uint32_t>(*micro_batch), static_cast<std::uint16_t>(stage), kind, false};
}

std::vector<Op> list(std::optional<Op> op) { return op ? std::vector{*op} : std::vector<Op>(); }

std::optional<Kind> pass_by_letter(std::string_view text) {
  if (text.empty()) return std::nullopt;
  switch (text.front()) {
    case 'F':
    case 'f':
      return Kind::forward;
    case 'B':
    case 'b':
      return Kind::backward;
    case 'I':
    case 'i':
      return Kind::input_gradient;
    case 'W':
    case 'w':
      return Kind::weight_gradient;
    default:
      return std::nullopt;
  }
}

}  // namespace

RangeNames::RangeNames(int ranks, const ForeignOptions& options) : ranks_(ranks), options_(options) {
  if (options.range.empty()) return;
  try {
    pattern_.emplace(options.range, std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error& error) {
    throw InputError(fmt::format("'{}' is no pattern (ECMAScript): {}", options.range, error.what()));
  }
  if (has_micro_batch_group() || (pattern_->mark_count() == 1 && options.schedule != nullptr)) return;
  throw InputError(
      fmt::format("'{}' has {} groups; a pattern needs two: pass and micro-batch; and a third, stage, where a rank has "
                  "several; or pass alone where the order that ran is given (--schedule)",
                  options.range, pattern_->mark_count()));
}

// The rank's stage number `chunk`, in order.
std::optional<int> RangeNames::stage_of(int rank, int chunk) const {
  if (options_.schedule == nullptr) return chunk * ranks_ + rank;
  if (rank >= options_.schedule->ranks()) return std::nullopt;
  const auto stages = options_.schedule->placement.stages_on(rank);
  if (chunk < 0 || static_cast<std::size_t>(chunk) >= stages.size()) return std::nullopt;
  return stages[static_cast<std::size_t>(chunk)];
}

std::vector<Op> RangeNames::ops_of(std::string_view name, int rank) const {
  if (pattern_) return by_pattern(name, rank);
  auto ops = by_pytorch(name, rank);
  return ops.empty() ? by_letters(name, rank) : ops;
}

std::vector<Op> RangeNames::by_pattern(std::string_view name, int rank) const {
  if (!has_micro_batch_group() || name.size() > name_size_max) return {};
  std::cmatch match;
  if (!std::regex_search(name.data(), name.data() + name.size(), match, *pattern_)) return {};
  const auto pass = pass_by_letter(match[1].str());
  const bool has_stage = match.size() > 3 && match[3].matched;
  const std::int64_t stage = has_stage ? number(match[3].str(), stage_count_max - 1).value_or(-1)
                                       : std::int64_t{stage_of(rank, 0).value_or(-1)};
  if (!pass) return {};
  return list(op(stage, *pass, number(match[2].str(), micro_batch_count_max - 1)));
}

// "PP:2F0", "PP:(0F7;3B5)OVERLAP_F_B"; of schedules with one stage per rank "Forward 3", "Backward 3". Our own
// executor's have no "PP:".
std::vector<Op> RangeNames::by_pytorch(std::string_view name, int rank) const {
  for (const auto& [prefix, pass] :
       {std::pair(std::string_view("Forward "), Kind::forward), {"Backward ", Kind::backward}}) {
    const auto stage = stage_of(rank, 0);
    if (name.starts_with(prefix) && stage) {
      return list(op(*stage, pass, number(name.substr(prefix.size()), micro_batch_count_max - 1)));
    }
  }
  if (name.starts_with("PP:")) name.remove_prefix(3);
  if (name.find_first_of("(0123456789") != 0) return {};  // no cell begins like this
  try {
    const Cell cell = parse_cell(name);
    if (!is_compute(cell.first.kind)) return {};
    std::vector<Op> ops{cell.first};
    if (cell.second) {
      ops[0].with_next = true;
      ops.push_back(*cell.second);
    }
    return ops;
  } catch (const InputError&) {
    return {};  // of another kind
  }
}

// sail-sg's NVTX: pass, micro-batch, chunk, a running number; with W, its B is our I.
std::vector<Op> RangeNames::by_letters(std::string_view name, int rank) const {
  if (name.size() < 6 || name.size() > name_size_max || (name[0] != 'F' && name[0] != 'B' && name[0] != 'W')) return {};
  const std::size_t first = name.find('.');
  const std::size_t second = first == name.npos ? first : name.find('.', first + 1);
  if (second == name.npos || !number(name.substr(second + 1), INT64_MAX)) return {};
  const auto micro_batch = number(name.substr(1, first - 1), micro_batch_count_max - 1);
  const auto chunk = number(name.substr(first + 1, second - first - 1), stage_count_max - 1);
  const auto stage = chunk ? stage_of(rank, static_cast<int>(*chunk)) : std::nullopt;
  return stage ? list(op(*stage, *pass_by_letter(name), micro_batch)) : std::vector<Op>();
}

std::optional<Kind> RangeNames::pass_of(std::string_view name) const {
  if (has_micro_batch_group()) return std::nullopt;
  if (pattern_) {
    std::cmatch match;
    if (name.size() > name_size_max) return std::nullopt;
    if (!std::regex_search(name.data(), name.data() + name.size(), match, *pattern_)) return std::nullopt;
    const auto pass = pass_by_letter(match[1].str());
    return pass == Kind::input_gradient ? Kind::backward : pass;
  }
  // "megatron/core/pipeline_parallel/schedules.py(403): forward_step", "….schedules.forward_step"
  if (!name.ends_with("ward_step")) return std::nullopt;
  const std::size_t before = name.find_last_of(". ");
  const std::string_view function = before == name.npos ? name : name.substr(before + 1);
  if (function == "forward_step") return Kind::forward;
  return function == "backward_step" ? std::optional(Kind::backward) : std::nullopt;
}

}  // namespace dualpipe::detail::trace
