#include "dualpipe/sim/trace/kineto.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/trace/event_reader.h"
#include "dualpipe/sim/trace/kineto_messages.h"
#include "dualpipe/sim/trace/range_name.h"

namespace dualpipe::detail::trace {
namespace {

void for_each_event(const std::string& path, const std::function<void(const TraceEvent&)>& take,
                    const TraceMembers& members = {}) {
  auto in = open_input_file(path);
  read_trace_events(in, path, take, members);
}

// Operators and kernels that move messages: what waits is no part of an op.
bool is_message(std::string_view name) {
  for (const std::string_view each : {"c10d::", "gloo:", "nccl", "record_param_comms"}) {
    if (name.starts_with(each)) return true;
  }
  return false;
}

bool is_one_of(const TraceEvent& event, std::string_view key, std::initializer_list<std::string_view> texts) {
  return std::any_of(texts.begin(), texts.end(), [&](std::string_view text) { return event.is(key, text); });
}

struct Range {
  std::vector<Op> ops;
  Span span;
  Span operators{std::numeric_limits<Time>::max(), std::numeric_limits<Time>::min()};
  Span kernels{std::numeric_limits<Time>::max(), std::numeric_limits<Time>::min()};

  // An op that runs no operator takes no time. (In PyTorch's runtime such is I of the first stage, which computes no
  // gradient of its input.) What its range holds is the wait for its message, so that it stands at the end.
  [[nodiscard]] Span ran() const {
    for (const Span& each : {kernels, operators}) {
      if (each.start <= each.end) return each;
    }
    return {span.end, span.end};
  }
};

void widen(Span& span, Span by) {
  span.start = std::min(span.start, by.start);
  span.end = std::max(span.end, by.end);
}

// Correlation numbers of launches, as runs of neighbours.
class Launches {
 public:
  void add(std::int64_t correlation, std::size_t range) {
    if (!runs_.empty() && runs_.back().range == range && runs_.back().last + 1 == correlation) {
      runs_.back().last = correlation;
    } else {
      runs_.push_back({correlation, correlation, range});
    }
  }
  void sort() { std::ranges::sort(runs_, {}, &Run::first); }
  [[nodiscard]] bool empty() const { return runs_.empty(); }
  [[nodiscard]] std::optional<std::size_t> range_of(std::int64_t correlation) const {
    const auto after = std::ranges::upper_bound(runs_, correlation, {}, &Run::first);
    if (after == runs_.begin() || correlation > (after - 1)->last) return std::nullopt;
    return (after - 1)->range;
  }

 private:
  struct Run {
    std::int64_t first;
    std::int64_t last;
    std::size_t range;
  };
  std::vector<Run> runs_;
};

class File {
 public:
  File(const std::string& path, int ranks, const ForeignOptions& options)
      : path_(path), ranks_(ranks), names_(ranks, options) {
    rank_.source = path;
  }

  [[nodiscard]] KinetoRank read(const ForeignOptions& options) {
    read_head();
    messages_.emplace(rank_.rank, ranks_);
    read_ranges();
    if (ranges_.empty()) name_by_order(options);
    read_operators();
    if (!launches_.empty()) read_kernels();
    for (const Range& range : ranges_) rank_.ops.push_back({range.ops, range.ran(), 0});
    number_steps();
    rank_.lacks_peers = messages_->lacks_peers();
    rank_.messages = std::move(*messages_).messages();
    return std::move(rank_);
  }

 private:
  static constexpr std::int64_t correlation_max = std::int64_t{1} << 53U;

  // The rank may stand behind all events, and names of ranges need it.
  void read_head() {
    static constexpr std::array<std::string_view, 2> keys = {"distributedInfo", "baseTimeNanoseconds"};
    std::optional<int> found;
    for_each_event(path_, [](const TraceEvent&) {}, {keys, [&](std::string_view key, std::string_view json) {
                                                       const auto value = nlohmann::json::parse(json, nullptr, false);
                                                       if (key == keys[0] && value.is_object() &&
                                                           value.contains("rank") &&
                                                           value["rank"].is_number_integer()) {
                                                         const auto rank = value["rank"].get<std::int64_t>();
                                                         if (rank >= 0 && rank < std::int64_t{stage_count_max})
                                                           found = static_cast<int>(rank);
                                                       }
                                                       if (key == keys[1] && value.is_number_integer())
                                                         rank_.base = value.get<std::int64_t>();
                                                     }});
    if (!found) found = rank_of_name();
    if (!found) {
      throw InputError(fmt::format(
          "{}: it does not say its rank: no distributedInfo; record it when the process group is there, or name the "
          "file …rank0…",
          path_));
    }
    rank_.rank = *found;
  }

  // "…rank3.json.gz", "rank_3".
  [[nodiscard]] std::optional<int> rank_of_name() const {
    const std::size_t at = path_.rfind("rank");
    if (at == path_.npos) return std::nullopt;
    const std::size_t begin = path_.find_first_not_of("_-", at + 4);
    if (begin == path_.npos) return std::nullopt;
    int rank = 0;
    const auto [end, error] = std::from_chars(path_.data() + begin, path_.data() + path_.size(), rank);
    const bool is_rank = error == std::errc{} && rank >= 0 && rank < static_cast<int>(stage_count_max);
    return is_rank ? std::optional(rank) : std::nullopt;
  }

  void read_ranges() {
    for_each_event(path_, [&](const TraceEvent& event) {
      if (!event.is("ph", "X")) return;
      messages_->take(event);
      if (!is_one_of(event, "cat", {"user_annotation", "cpu_op", "python_function"})) return;
      const std::string name = event.text("name");
      if (name.starts_with("ProfilerStep#")) return add_step(name.substr(13), event.span());
      if (ranges_.size() == op_count_max || marks_.size() == op_count_max) event.fail("too many ops");
      if (const auto ops = names_.ops_of(name, rank_.rank); !ops.empty()) return ranges_.push_back({ops, event.span()});
      if (const auto pass = names_.pass_of(name)) marks_.push_back({event.span(), *pass});
    });
    keep_outer(ranges_);
    keep_outer(marks_);
  }

  // In order of time. One within another is a part of it, as the halves of a pair are.
  template <typename Spanned>
  static void keep_outer(std::vector<Spanned>& all) {
    std::ranges::stable_sort(all, [](const Spanned& a, const Spanned& b) {
      return std::pair(a.span.start, -a.span.end) < std::pair(b.span.start, -b.span.end);
    });
    std::vector<Spanned> outer;
    for (Spanned& each : all) {
      if (outer.empty() || each.span.start >= outer.back().span.end) outer.push_back(std::move(each));
    }
    all = std::move(outer);
  }

  void add_step(const std::string& number, Span span) {
    std::int64_t step = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), step);
    if (error == std::errc{}) steps_.push_back({span, step});
  }

  [[nodiscard]] std::optional<std::size_t> range_at(Time time) const {
    const auto after = std::ranges::upper_bound(ranges_, time, {}, [](const Range& range) { return range.span.start; });
    if (after == ranges_.begin() || time >= (after - 1)->span.end) return std::nullopt;
    return static_cast<std::size_t>(after - ranges_.begin()) - 1;
  }

  void read_operators() {
    for_each_event(path_, [&](const TraceEvent& event) {
      if (!event.is("ph", "X")) return;
      const bool is_launch = is_one_of(event, "cat", {"cuda_runtime", "cuda_driver"});
      if (!is_launch && !event.is("cat", "cpu_op")) return;
      const Span span = event.span();
      const auto range = range_at(span.start);
      if (!range) return;
      if (is_launch) {
        if (event.has("args.correlation")) {
          launches_.add(event.integer("args.correlation", 0, correlation_max), *range);
        }
      } else if (const std::string name = event.text("name"); !is_whole_ && !is_message(name) && !is_range(name)) {
        widen(ranges_[*range].operators, span);
      }
    });
    launches_.sort();
  }

  [[nodiscard]] bool is_range(std::string_view name) const {
    return names_.pass_of(name) || !names_.ops_of(name, rank_.rank).empty();
  }

  void read_kernels() {
    for_each_event(path_, [&](const TraceEvent& event) {
      if (!event.is("ph", "X") || !is_one_of(event, "cat", {"kernel", "gpu_memcpy", "gpu_memset"})) return;
      if (!event.has("args.correlation")) return;
      const auto range = launches_.range_of(event.integer("args.correlation", 0, correlation_max));
      if (range && !is_message(event.text("name"))) widen(ranges_[*range].kernels, event.span());
    });
  }

  // What ran is, step after step, what stands in the rank's order: by ranges that say the pass alone, or without any by
  // what autograd and the messages tell.
  void name_by_order(const ForeignOptions& options) {
    constexpr std::string_view remedy =
        "record with PyTorch's multi-stage schedules, mark each op (torch.profiler.record_function) and say --range, "
        "or say which order ran (--schedule)";
    if (options.schedule == nullptr) {
      throw InputError(fmt::format("{}: no range marks {}; {}", path_,
                                   marks_.empty() ? "an op" : "the micro-batch of an op", remedy));
    }
    if (rank_.rank >= options.schedule->ranks()) {
      throw InputError(fmt::format("{}: it is of rank {}, but the schedule has {} ranks", path_, rank_.rank,
                                   options.schedule->ranks()));
    }
    is_whole_ = marks_.empty();
    const auto runs = is_whole_ ? operator_runs(path_) : std::move(marks_);
    const auto order = options.schedule->rank(rank_.rank);
    if (order.empty() || runs.empty() || runs.size() % order.size() != 0 || has_pairs(*options.schedule)) {
      throw InputError(
          fmt::format("{}: {} {} forwards and backwards, where the schedule has {} ops; mark each op "
                      "(torch.profiler.record_function) and say --range",
                      path_, is_whole_ ? "no range marks an op, and between its messages it has" : "its ranges mark",
                      runs.size(), order.size()));
    }
    const auto text = [](Kind pass) { return pass == Kind::forward ? "forward" : "backward"; };
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Op op = order[i % order.size()];
      const Kind planned = op.kind == Kind::input_gradient ? Kind::backward : op.kind;
      if (planned != runs[i].pass) {
        throw InputError(fmt::format("{}: {} of the schedule is a {}, but what ran at its place is a {}", path_,
                                     to_text(op), text(planned), text(runs[i].pass)));
      }
      ranges_.push_back({{op}, runs[i].span});
      if (is_whole_) ranges_.back().operators = runs[i].span;
    }
  }

  // By the thread's time: kernels may run when its step has ended.
  void number_steps() {
    std::map<std::uint64_t, std::int64_t> ran;
    const auto key = [](Op op) { return key_of(op) << 2U | static_cast<std::uint64_t>(op.kind); };
    for (std::size_t i = 0; i < ranges_.size(); ++i) {
      const Time start = ranges_[i].span.start;
      RanOp& op = rank_.ops[i];
      op.step = ran[key(op.ops[0])]++;
      for (const Step& step : steps_) {
        if (step.span.start <= start && start < step.span.end) op.step = step.number;
      }
    }
  }

  struct Step {
    Span span;
    std::int64_t number;
  };

  const std::string& path_;
  int ranks_;
  RangeNames names_;
  KinetoRank rank_;
  std::vector<Range> ranges_;       // by start
  std::vector<OperatorRun> marks_;  // ranges that say the pass alone; by start
  bool is_whole_ = false;           // the operators of the ranges are known
  std::vector<Step> steps_;
  Launches launches_;
  std::optional<KinetoMessages> messages_;  // once the rank is known
};

}  // namespace

KinetoRank read_kineto(const std::string& path, int ranks, const ForeignOptions& options) {
  return File(path, ranks, options).read(options);
}

}  // namespace dualpipe::detail::trace
