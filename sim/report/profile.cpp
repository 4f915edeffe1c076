#include "dualpipe/sim/report/profile.h"

#include <fmt/format.h>

#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "dualpipe/sim/report/percentile.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/units.h"

namespace dualpipe {

using detail::report::bounds_of;
using detail::report::class_names;
using detail::report::class_of;
using detail::report::median;
using detail::report::Unit;
using detail::report::units_of;

namespace {

// An input of an op: made by another rank, and then on its way.
struct Input {
  int rank;
  Time made;
  Time arrived;
};

class Profiler {
 public:
  Profiler(const Program& program, const Timeline& timeline)
      : program_(program), placement_(program.schedule.placement), timeline_(timeline) {
    for (std::size_t i = 0; i < program.schedule.ops.size(); ++i) {
      const Op op = program.schedule.ops[i];
      if (op.kind == Kind::weight_gradient) continue;
      made_[key_of(op)] = timeline.ops[i].end;
    }
    for (std::size_t i = 0; i < program.communication.size(); ++i) {
      const Op op = program.communication[i];
      if (!is_receive(op.kind)) continue;
      arrived_[key_of(op)] = timeline.communication[i].end;
    }
  }

  [[nodiscard]] Profile run() const {
    Profile profile;
    for (int rank = 0; rank < placement_.ranks; ++rank) profile.ranks.push_back(profile_rank(rank));
    add_overlap(profile);
    return profile;
  }

 private:
  [[nodiscard]] RankProfile profile_rank(int rank) const {
    const Span bounds = bounds_of(timeline_);
    RankProfile profile;
    profile.waiting_for.resize(static_cast<std::size_t>(placement_.ranks));
    std::optional<Time> free;
    for (const Unit& unit : units_of(program_, timeline_, rank)) {
      profile.busy[class_of(unit)] += unit.duration();
      if (free) {
        split_gap(unit, {*free, unit.span.start}, profile);
      } else {
        profile.before = unit.span.start - bounds.start;
      }
      free = unit.span.end;
    }
    profile.after = bounds.end - free.value_or(bounds.end);
    return profile;
  }

  // The input that comes last holds the op up: first until it is made, then until it is there.
  void split_gap(const Unit& unit, Span gap, RankProfile& profile) const {
    Time launch = gap.end - gap.start;
    if (const auto input = last_input(unit)) {
      const Time made = std::clamp(input->made, gap.start, gap.end);
      const Time arrived = std::clamp(input->arrived, made, gap.end);
      profile.waiting_for[static_cast<std::size_t>(input->rank)] += made - gap.start;
      profile.transfer += arrived - made;
      launch = gap.end - arrived;
    }
    profile.launch += launch;
  }

  [[nodiscard]] std::optional<Input> last_input(const Unit& unit) const {
    std::optional<Input> last;
    for (const Op op : unit.ops) {
      const auto input = input_of(op);
      if (input && (!last || input->arrived > last->arrived)) last = input;
    }
    return last;
  }

  [[nodiscard]] std::optional<Input> input_of(Op op) const {
    const auto producer = producer_of(op, placement_);
    if (!producer || !producer->is_remote) return std::nullopt;
    const auto made = made_.find(key_of({op.micro_batch, producer->stage, op.kind, false}));
    const auto arrived = arrived_.find(key_of(op));
    if (made == made_.end() || arrived == arrived_.end()) return std::nullopt;
    return Input{producer->rank, made->second, arrived->second};
  }

  void add_overlap(Profile& profile) const {
    std::map<std::pair<int, Kind>, std::vector<Time>> alone;
    for_each_unit([&](const Unit& unit) {
      if (!unit.is_pair()) alone[{unit.ops[0].stage, unit.ops[0].kind}].push_back(unit.duration());
    });
    for_each_unit([&](const Unit& unit) {
      if (!unit.is_pair()) return;
      const auto forward = alone.find({unit.ops[0].stage, Kind::forward});
      const auto backward = alone.find({unit.ops[1].stage, Kind::backward});
      if (forward == alone.end() || backward == alone.end()) return;
      profile.overlapped += unit.duration();
      profile.apart += median(forward->second) + median(backward->second);
    });
  }

  template <typename Visit>
  void for_each_unit(Visit visit) const {
    for (int rank = 0; rank < placement_.ranks; ++rank) {
      for (const Unit& unit : units_of(program_, timeline_, rank)) visit(unit);
    }
  }

  const Program& program_;
  const Placement& placement_;
  const Timeline& timeline_;
  std::unordered_map<std::uint64_t, Time> made_;     // when a result was ready; never iterated
  std::unordered_map<std::uint64_t, Time> arrived_;  // at the stage that needs it; never iterated
};

std::string waiting_text(const RankProfile& profile) {
  std::string text;
  for (std::size_t rank = 0; rank < profile.waiting_for.size(); ++rank) {
    if (profile.waiting_for[rank] == 0) continue;
    text += fmt::format("{}rank {}: {}", text.empty() ? "" : ", ", rank, format_time(profile.waiting_for[rank]));
  }
  return text;
}

}  // namespace

Profile profile(const Program& program, const Timeline& timeline) { return Profiler(program, timeline).run(); }

std::string to_text(const Profile& profile) {
  const auto runs = [&](std::size_t i) {
    return std::any_of(profile.ranks.begin(), profile.ranks.end(), [i](const auto& rank) { return rank.busy[i] > 0; });
  };
  std::vector<Column> columns{{"rank"}};
  for (std::size_t i = 0; i < class_names.size(); ++i) {
    if (runs(i)) columns.push_back({std::string(class_names[i])});
  }
  for (const Column& column :
       {Column{"before"}, Column{"after"}, Column{"waiting for", Align::left}, Column{"transfer"}, Column{"launch"}}) {
    columns.push_back(column);
  }
  TextTable table(std::move(columns));
  for (std::size_t rank = 0; rank < profile.ranks.size(); ++rank) {
    const RankProfile& of_rank = profile.ranks[rank];
    std::vector<std::string> row{std::to_string(rank)};
    for (std::size_t i = 0; i < class_names.size(); ++i) {
      if (runs(i)) row.push_back(format_time(of_rank.busy[i]));
    }
    for (const std::string& cell : {format_time(of_rank.before), format_time(of_rank.after), waiting_text(of_rank),
                                    format_time(of_rank.transfer), format_time(of_rank.launch)}) {
      row.push_back(cell);
    }
    table.add_row(std::move(row));
  }
  std::string text = table.to_text();
  if (profile.apart > 0) {
    text += fmt::format("\nF&B pairs take {} of the time of F and B one by one\n",
                        format_rate(static_cast<double>(profile.overlapped) / static_cast<double>(profile.apart)));
  }
  return text;
}

}  // namespace dualpipe
