#include "dualpipe/sim/trace/run_reader.h"

#include <fmt/format.h>

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/trace/event_reader.h"

namespace dualpipe {
namespace {

// What the events tell: lanes that are ranks, and their ops. A lane is a thread; in older traces it is a process.
class Runs {
 public:
  explicit Runs(const std::string& source) : source_(source) {}

  void take(const TraceEvent& event) {
    if (event.is("ph", "M") && event.has("args.rank")) {
      if (event.is("name", "thread_name")) return add_rank(event, thread_of(event));
      if (event.is("name", "process_name")) return add_rank(event, std::string(event.json("pid")));
    }
    if (!event.is("ph", "X") || !event.is("cat", "compute") || !event.has("pid")) return;
    for (const std::string& lane : {thread_of(event), std::string(event.json("pid"))}) {
      const auto rank = lanes_.find(lane);
      if (rank != lanes_.end()) return add_op(event, *rank->second);
      others_.insert(lane);
    }
  }

  [[nodiscard]] std::vector<TraceRun> result() && {
    if (runs_.empty()) {
      throw InputError(
          fmt::format("{}: not a trace of dualpipe-sim or dualpipe-run: none of its lanes is a rank", source_));
    }
    std::vector<TraceRun> runs;
    for (auto& [label, ranks] : runs_) {
      TraceRun& run = runs.emplace_back(TraceRun{label, {}});
      for (auto& [number, rank] : ranks) {
        if (number != std::ssize(run.ranks)) fail_missing(static_cast<int>(std::ssize(run.ranks)));
        run.ranks.push_back(std::move(rank));
      }
    }
    return runs;
  }

 private:
  struct Run {
    std::string label;
    std::map<int, TraceRank> ranks;
  };

  [[noreturn]] void fail_missing(int rank) const {
    throw InputError(fmt::format(
        "{}: rank {} is missing; a trace that is read back has all ranks (leave out --trace-ranks)", source_, rank));
  }

  [[nodiscard]] static std::string thread_of(const TraceEvent& event) {
    const std::string process(event.json("pid"));
    return event.has("tid") ? fmt::format("{} {}", process, event.json("tid")) : process;
  }

  // We name a rank before its slices. Another program may have put them in another order; then slices were stepped over
  // that should not have been.
  void add_rank(const TraceEvent& event, const std::string& lane) {
    const std::string label = event.has("args.run") ? event.text("args.run") : "";
    const auto number = static_cast<int>(event.integer("args.rank", 0, stage_count_max - 1));
    const auto run = numbers_.try_emplace(label, runs_.size()).first->second;
    if (run == runs_.size()) runs_.push_back({label, {}});
    const auto [rank, is_new] = runs_[run].ranks.try_emplace(number);
    if (!is_new) event.fail(fmt::format("rank {} is there twice", number));
    if (others_.contains(lane)) event.fail(fmt::format("rank {} is named after its first slice", number));
    if (!lanes_.emplace(lane, &rank->second).second) {
      event.fail(event.is("name", "thread_name") ? "tid" : "pid", "is that of another rank");
    }
    rank->second.peak.activations = static_cast<int>(event.integer("args.peak_activations", 0, INT32_MAX));
    rank->second.peak.memory = event.integer("args.peak_memory_bytes", 0, INT64_MAX);
  }

  static void add_op(const TraceEvent& event, TraceRank& rank) {
    const Cell cell = cell_of(event);
    const Span span = event.span();
    if (!rank.spans.empty() && span.start < rank.spans.back().end) {
      event.fail("ts", fmt::format("{} starts before {} has ended", event.text("args.op"), to_text(rank.ops.back())));
    }
    rank.ops.push_back(cell.first);
    rank.spans.push_back(span);
    if (!cell.second) return;
    rank.ops.back().with_next = true;
    rank.ops.push_back(*cell.second);
    rank.spans.push_back(span);
  }

  [[nodiscard]] static Cell cell_of(const TraceEvent& event) {
    const std::string text = event.text("args.op");
    try {
      const Cell cell = parse_cell(text);
      if (is_compute(cell.first.kind)) return cell;
    } catch (const InputError& error) {
      event.fail("args.op", error.what());
    }
    event.fail("args.op", fmt::format("{} is not computed", text));
  }

  const std::string& source_;
  std::deque<Run> runs_;                               // in the order of the trace; addresses stay
  std::map<std::string, std::size_t> numbers_;         // of the runs, by label
  std::unordered_map<std::string, TraceRank*> lanes_;  // by pid and tid, or pid, as they are written
  std::set<std::string> others_;                       // those that compute, and were not known to be ranks
};

}  // namespace

std::vector<TraceRun> read_chrome_trace(std::istream& in, const std::string& source) {
  Runs runs(source);
  read_trace_events(in, source, [&](const TraceEvent& event) { runs.take(event); });
  return std::move(runs).result();
}

std::vector<TraceRun> load_chrome_trace(const std::string& path) {
  auto in = open_input_file(path);
  return read_chrome_trace(in, path);
}

}  // namespace dualpipe
