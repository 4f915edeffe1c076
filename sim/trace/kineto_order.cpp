// Ops that no range marks.
#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/trace/event_reader.h"
#include "dualpipe/sim/trace/kineto.h"

namespace dualpipe::detail::trace {
namespace {

struct Piece {
  Span span{std::numeric_limits<Time>::max(), std::numeric_limits<Time>::min()};
  bool is_of_model = false;
  Time first_link = std::numeric_limits<Time>::max();

  void widen(Span by) {
    span.start = std::min(span.start, by.start);
    span.end = std::max(span.end, by.end);
  }
};

// What ran between two messages.
struct Between {
  Piece forward;
  Piece backward;
};

bool is_exchange(const TraceEvent& event) {
  if (!event.is("ph", "X") || !event.is("cat", "cpu_op")) return false;
  const std::string name = event.text("name");
  return name == "c10d::send" || name == "c10d::recv_" || name == "c10d::recv_any_source_";
}

// Autograd runs a backward's operators inside of these.
bool is_backward(std::string_view name) { return name.starts_with("autograd::engine::evaluate_function"); }

}  // namespace

std::vector<OperatorRun> operator_runs(const std::string& path) {
  const auto for_each_event = [&](const std::function<void(const TraceEvent&)>& take) {
    auto in = open_input_file(path);
    read_trace_events(in, path, take);
  };
  std::vector<Time> exchanges;
  for_each_event([&](const TraceEvent& event) {
    if (!is_exchange(event)) return;
    if (exchanges.size() == op_count_max) event.fail("too many messages");
    exchanges.push_back(event.span().start);
  });
  std::ranges::sort(exchanges);
  std::vector<Between> pieces(exchanges.size() + 1);
  const auto piece_at = [&](Time time) -> Between& {
    return pieces[static_cast<std::size_t>(std::ranges::upper_bound(exchanges, time) - exchanges.begin())];
  };
  // First the backwards, so that it is known what is inside of them.
  for_each_event([&](const TraceEvent& event) {
    if (event.is("ph", "X") && event.is("cat", "cpu_op")) {
      if (is_backward(event.text("name"))) piece_at(event.span().start).backward.widen(event.span());
    } else if (event.is("cat", "fwdbwd") && event.has("ts")) {
      // Of a flow the beginning is in the forward, the end in the backward.
      const Time time = event.time("ts");
      Between& between = piece_at(time);
      if (event.is("ph", "s")) {
        between.forward.is_of_model = true;
        between.forward.first_link = std::min(between.forward.first_link, time);
      }
      if (event.is("ph", "f")) between.backward.is_of_model = true;
    }
  });
  for_each_event([&](const TraceEvent& event) {
    if (!event.is("ph", "X") || !event.is("cat", "cpu_op")) return;
    const std::string name = event.text("name");
    if (name.starts_with("c10d::") || is_backward(name)) return;
    const Span span = event.span();
    Between& between = piece_at(span.start);
    const bool is_inside = span.start >= between.backward.span.start && span.start < between.backward.span.end;
    // Before the operator that the first link begins in stands what cuts a batch into micro-batches, and the like.
    if (!is_inside && span.end > between.forward.first_link) between.forward.widen(span);
  });
  std::vector<OperatorRun> runs;
  for (Between& between : pieces) {
    // What autograd does before its first operator is no forward.
    if (between.forward.is_of_model && between.backward.is_of_model &&
        between.forward.span.start < between.backward.span.start) {
      between.forward.span.end = std::min(between.forward.span.end, between.backward.span.start);
    }
    std::vector<OperatorRun> here;
    if (between.forward.is_of_model && between.forward.span.start <= between.forward.span.end)
      here.push_back({between.forward.span, Kind::forward});
    if (between.backward.is_of_model && between.backward.span.start <= between.backward.span.end)
      here.push_back({between.backward.span, Kind::backward});
    std::ranges::sort(here, {}, [](const OperatorRun& run) { return run.span.start; });
    runs.insert(runs.end(), here.begin(), here.end());
  }
  return runs;
}

}  // namespace dualpipe::detail::trace
