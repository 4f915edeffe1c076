#include "dualpipe/sim/trace/primus.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <istream>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/trace/byte_input.h"
#include "dualpipe/sim/trace/event_reader.h"
#include "dualpipe/sim/trace/steps.h"

namespace dualpipe::detail::trace {
namespace {

constexpr std::size_t file_size_max = std::size_t{256} << 20U;

nlohmann::json parsed(const std::string& path) {
  auto in = open_input_file(path);
  ByteInput input(in, path);
  std::string text;
  char buffer[1 << 16];
  for (std::size_t size = input.read(buffer, sizeof buffer); size > 0; size = input.read(buffer, sizeof buffer)) {
    text.append(buffer, size);
    if (text.size() > file_size_max) throw InputError(fmt::format("{}: it has more than 256 MiB", path));
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: not JSON: {}", path, error.what()));
  }
}

std::vector<Time> times_of(const nlohmann::json& iteration, const std::string& path, std::size_t number,
                           std::string_view key) {
  const auto place = [&] { return fmt::format("{}: [{}].{}", path, number, key); };
  const auto found = iteration.find(std::string(key));
  if (found == iteration.end() || !found->is_array()) throw InputError(fmt::format("{}: expected a list", place()));
  std::vector<Time> times;
  for (const auto& each : *found) {
    const double milliseconds = each.is_number() ? each.get<double>() : -1;
    if (!(milliseconds >= 0 && milliseconds < static_cast<double>(run_time_max) / 1e6 / 2)) {
      throw InputError(fmt::format("{}[{}]: expected a number of milliseconds", place(), times.size()));
    }
    times.push_back(std::llround(milliseconds * 1e6));
  }
  return times;
}

// pp_rank_3.json
int rank_of(const std::string& path) {
  const std::size_t at = path.rfind("rank");
  std::size_t digit = at == path.npos ? at : path.find_first_of("0123456789", at);
  if (digit == path.npos)
    throw InputError(fmt::format("{}: its name does not say the rank, as in pp_rank_3.json", path));
  int rank = 0;
  for (; digit < path.size() && path[digit] >= '0' && path[digit] <= '9' && rank < 100'000; ++digit)
    rank = rank * 10 + (path[digit] - '0');
  return rank;
}

class PrimusFile {
 public:
  PrimusFile(const std::string& path, int ranks, int chunks)
      : path_(path), ranks_(static_cast<std::size_t>(ranks)), chunks_(static_cast<std::size_t>(chunks)) {}

  [[nodiscard]] RankSteps read() {
    RankSteps result{path_, rank_of(path_), {}};
    const auto document = parsed(path_);
    if (!document.is_array()) throw InputError(fmt::format("{}: expected a list of iterations", path_));
    for (std::size_t i = 0; i < document.size(); ++i) {
      if (!document[i].is_object()) throw InputError(fmt::format("{}: [{}]: expected an object", path_, i));
      add(document[i], i, result);
    }
    return result;
  }

 private:
  void add(const nlohmann::json& iteration, std::size_t number, RankSteps& result) {
    for (const bool is_forward : {true, false}) {
      const std::string_view pass = is_forward ? "fwd" : "bwd";
      const auto starts = times_of(iteration, path_, number, fmt::format("{}_start", pass));
      const auto ends = times_of(iteration, path_, number, fmt::format("{}_end", pass));
      if (starts.size() != ends.size()) {
        throw InputError(fmt::format("{}: [{}]: {}_start has {} times, {}_end {}", path_, number, pass, starts.size(),
                                     pass, ends.size()));
      }
      for (std::size_t i = 0; i < starts.size(); ++i) {
        if (ends[i] < starts[i]) {
          throw InputError(fmt::format("{}: [{}].{}_end[{}]: before its start", path_, number, pass, i));
        }
        const Op op = op_at(i, is_forward, static_cast<std::size_t>(result.rank));
        result.ops.push_back({{op}, {starts[i], ends[i]}, static_cast<std::int64_t>(number)});
      }
    }
  }

  [[nodiscard]] Op op_at(std::size_t i, bool is_forward, std::size_t rank) const {
    const std::size_t turn = i / ranks_ % chunks_;
    const std::size_t chunk = is_forward ? turn : chunks_ - 1 - turn;
    const std::size_t micro_batch = chunks_ == 1 ? i : ranks_ * (i / (ranks_ * chunks_)) + i % ranks_;
    return {static_cast<std::uint32_t>(micro_batch), static_cast<std::uint16_t>(chunk * ranks_ + rank),
            is_forward ? Kind::forward : Kind::backward, false};
  }

  const std::string& path_;
  std::size_t ranks_;
  std::size_t chunks_;
};

}  // namespace

ForeignRun read_primus(std::span<const std::string> paths, const ForeignOptions& options) {
  const auto ranks = static_cast<int>(paths.size());
  if (options.chunks < 1 || std::int64_t{options.chunks} * ranks >= std::int64_t{stage_count_max}) {
    throw InputError(fmt::format("{} chunks on {} ranks are more stages than there can be", options.chunks, ranks));
  }
  std::vector<RankSteps> files;
  for (const std::string& path : paths) files.push_back(PrimusFile(path, ranks, options.chunks).read());
  return one_step(std::move(files), options.step);
}

ForeignRun read_pytorch_dump(const std::string& path) {
  std::map<int, RankSteps> ranks;
  auto in = open_input_file(path);
  read_trace_events(in, path, [&](const TraceEvent& event) {
    if (!event.is("ph", "X") || !event.is("cat", "computation")) return;
    const auto rank = static_cast<int>(event.integer("pid", 0, stage_count_max - 1));
    RanOp ran{{}, event.span(), 0};
    try {
      const Cell cell = parse_cell(event.text("name"));
      if (!is_compute(cell.first.kind)) return;
      ran.ops.push_back(cell.first);
      if (cell.second) {
        ran.ops[0].with_next = true;
        ran.ops.push_back(*cell.second);
      }
    } catch (const InputError& error) {
      event.fail("name", error.what());
    }
    RankSteps& steps = ranks.try_emplace(rank, RankSteps{path, rank, {}}).first->second;
    if (steps.ops.size() == op_count_max) event.fail("too many ops");
    steps.ops.push_back(std::move(ran));
  });
  std::vector<RankSteps> all;
  for (auto& [rank, steps] : ranks) all.push_back(std::move(steps));
  if (all.empty()) throw InputError(fmt::format("{}: no op is in it", path));
  return one_step(std::move(all), std::nullopt);
}

}  // namespace dualpipe::detail::trace
