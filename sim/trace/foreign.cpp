#include "dualpipe/sim/trace/foreign.h"

#include <fmt/format.h>

#include <algorithm>
#include <istream>
#include <limits>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/trace/byte_input.h"
#include "dualpipe/sim/trace/event_reader.h"
#include "dualpipe/sim/trace/kineto.h"
#include "dualpipe/sim/trace/measured_run.h"
#include "dualpipe/sim/trace/primus.h"
#include "dualpipe/sim/trace/steps.h"

namespace dualpipe {
namespace {

using detail::trace::KinetoRank;

// Ends the reading of a file of which enough is known.
struct Known {
  TraceFormat format;
};

// Nanoseconds since 1970 would not leave room for times that are added to them: they count from the earliest.
void count_from_one_base(std::vector<KinetoRank>& ranks) {
  std::int64_t first = std::numeric_limits<std::int64_t>::max();
  for (const KinetoRank& rank : ranks) first = std::min(first, rank.base);
  for (KinetoRank& rank : ranks) {
    const auto later = static_cast<std::uint64_t>(rank.base) - static_cast<std::uint64_t>(first);
    constexpr auto most = static_cast<std::uint64_t>(run_time_max / 2);
    std::erase_if(rank.messages, [&](const auto& message) {
      return later > most || message.span.end > run_time_max / 2 || message.span.start < -run_time_max / 2;
    });
    for (auto& op : rank.ops) {
      if (later > most || op.span.end > run_time_max / 2 || op.span.start < -run_time_max / 2) {
        throw InputError(fmt::format("{}: its clock is years away from that of another rank", rank.source));
      }
      op.span.start += static_cast<Time>(later);
      op.span.end += static_cast<Time>(later);
    }
    for (auto& message : rank.messages) {
      message.span.start += static_cast<Time>(later);
      message.span.end += static_cast<Time>(later);
    }
  }
}

// sail-sg's B is our I where its W is a part of the step.
void split_backwards(std::vector<KinetoRank>& ranks) {
  const auto has = [&](Kind kind) {
    return std::ranges::any_of(ranks, [&](const KinetoRank& rank) {
      return std::ranges::any_of(rank.ops, [&](const auto& ran) { return ran.ops[0].kind == kind; });
    });
  };
  if (!has(Kind::weight_gradient) || has(Kind::input_gradient)) return;
  for (KinetoRank& rank : ranks) {
    for (auto& ran : rank.ops) {
      if (ran.ops[0].kind == Kind::backward) ran.ops[0].kind = Kind::input_gradient;
    }
  }
}

void check_order(const ForeignRun& run, const Schedule& schedule) {
  if (std::ssize(run.run.ranks) != schedule.ranks()) {
    throw InputError(
        fmt::format("there are traces of {} ranks, but the schedule has {}", run.run.ranks.size(), schedule.ranks()));
  }
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    const auto& ops = run.run.ranks[static_cast<std::size_t>(rank)].ops;
    const auto order = schedule.rank(rank);
    const auto [ran, planned] = std::ranges::mismatch(ops, order);
    if (ran == ops.end() && planned == order.end()) continue;
    const auto text = [](auto at, auto end) { return at == end ? std::string("nothing") : to_text(*at); };
    throw InputError(fmt::format("rank {}, op {}: {} ran, but the schedule has {}", rank, ran - ops.begin(),
                                 text(ran, ops.end()), text(planned, order.end())));
  }
}

ForeignRun read_kineto_run(std::span<const std::string> paths, const ForeignOptions& options) {
  std::vector<KinetoRank> ranks;
  for (const std::string& path : paths) {
    ranks.push_back(detail::trace::read_kineto(path, static_cast<int>(paths.size()), options));
  }
  count_from_one_base(ranks);
  if (options.range.empty()) split_backwards(ranks);
  return detail::trace::one_step(std::vector<detail::trace::RankSteps>(ranks.begin(), ranks.end()), options.step);
}

}  // namespace

TraceFormat format_of_trace(const std::string& path) {
  auto in = open_input_file(path);
  // Primus' is a list of objects that are no events.
  try {
    read_trace_events(in, path, [](const TraceEvent& event) {
      if (event.has("fwd_start") || event.has("bwd_start")) throw Known{TraceFormat::primus};
      if (event.is("ph", "M") && event.has("args.rank")) throw Known{TraceFormat::dualpipe};
      if (event.is("cat", "computation")) throw Known{TraceFormat::pytorch};
      for (const std::string_view of_kineto : {"cpu_op", "user_annotation", "cuda_runtime", "kernel"}) {
        if (event.is("cat", of_kineto)) throw Known{TraceFormat::kineto};
      }
    });
  } catch (const Known& known) {
    return known.format;
  }
  throw InputError(
      fmt::format("{}: none of its events is of a trace that can be read: dualpipe's own, torch.profiler's, "
                  "Primus', or the dump of PyTorch's schedule simulator",
                  path));
}

ForeignRun load_foreign_traces(std::span<const std::string> paths, TraceFormat format, const ForeignOptions& options) {
  ForeignRun run;
  if (paths.empty()) throw InputError("a trace is missing");
  if (format == TraceFormat::kineto) {
    run = read_kineto_run(paths, options);
  } else if (format == TraceFormat::primus) {
    run = detail::trace::read_primus(paths, options);
  } else if (paths.size() > 1) {
    throw InputError(fmt::format("{}: one file has all ranks; name one", paths[1]));
  } else if (format == TraceFormat::pytorch) {
    run = detail::trace::read_pytorch_dump(paths[0]);
  } else {
    auto runs = load_chrome_trace(paths[0]);
    const auto measured = std::ranges::find(runs, "measured", &TraceRun::label);
    run.run = measured != runs.end() ? *measured : runs[0];
  }
  if (options.schedule != nullptr) {
    check_order(run, *options.schedule);
    run.program = program_on(run.run, options.schedule->placement, paths[0]);
  } else if (format == TraceFormat::kineto) {
    run.program =
        program_of(run.run, [&](const Placement& placement) { return detail::trace::clocks_agree(run, placement); });
  }
  if (format == TraceFormat::kineto && run.program) {
    detail::trace::align_clocks(run, run.program->schedule.placement);
  }
  return run;
}

}  // namespace dualpipe
