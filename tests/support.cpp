#include "tests/support.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <sstream>
#include <stdexcept>

#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/lower.h"
#include "dualpipe/sim/simulate/memory.h"
#include "dualpipe/sim/simulate/simulate.h"
#include "tests/oracle.h"

namespace dualpipe {

std::ostream& operator<<(std::ostream& out, const Span& span) { return out << span.start << ".." << span.end; }

std::ostream& operator<<(std::ostream& out, const Op& op) { return out << to_text(op) << (op.with_next ? "+" : ""); }

std::ostream& operator<<(std::ostream& out, CommunicationModel model) {
  switch (model) {
    case CommunicationModel::latency:
      return out << "latency";
    case CommunicationModel::links:
      return out << "links";
    case CommunicationModel::stream:
      return out << "stream";
  }
  return out;
}

namespace test {
namespace {

// A constant, not a variable: test cases are listed while variables are still being initialised.
constexpr std::string_view goldens_dir = DUALPIPE_TESTS_DIR "/goldens/";

// Takes `text` off the end of `name`, if it ends so.
bool take_suffix(std::string& name, std::string_view text) {
  if (!name.ends_with(text)) return false;
  name.resize(name.size() - text.size());
  return true;
}

// Takes the last part, "_8mb" or "_v2", off the name: the number between `before` and `after`.
std::optional<std::int64_t> take_number(std::string& name, std::string_view before, std::string_view after) {
  const std::size_t at = name.rfind(before);
  if (at == std::string::npos || !take_suffix(name, after)) return std::nullopt;
  const std::int64_t number = std::stoll(name.substr(at + before.size()));
  name.resize(at);
  return number;
}

// kind_4ranks_8mb[_v2][_comms].csv, or kind_4ranks_8mb_f1i1w1c0.csv
Golden golden_of(const std::string& directory, std::string name) {
  Golden golden;
  golden.path = directory + "/" + name;
  take_suffix(name, ".csv");
  golden.lowered = take_suffix(name, "_comms");
  if (directory == "zero_bubble") name.resize(name.rfind('_'));  // its durations; index.csv has them
  if (!name.ends_with("mb")) golden.chunks = static_cast<int>(take_number(name, "_v", "").value());
  golden.micro_batches = take_number(name, "_", "mb").value();
  golden.ranks = static_cast<int>(take_number(name, "_", "ranks").value());
  golden.kind = name;
  if (golden.kind == "interleaved1f1b_v2") golden.chunks = 2;
  return golden;
}

std::vector<Golden> find_goldens() {
  std::vector<Golden> found;
  for (const std::string directory : {"deepseek", "pytorch", "zero_bubble"}) {
    for (const auto& entry : std::filesystem::directory_iterator(std::string(goldens_dir) + directory)) {
      const std::string name = entry.path().filename().string();
      if (name != "index.csv") found.push_back(golden_of(directory, name));
    }
  }
  std::ranges::sort(found, {}, &Golden::path);
  return found;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// Adds a rank written as text to a program.
void add_rank(Program& program, const std::string& text) {
  Schedule& schedule = program.schedule;
  const auto begin_slot = [&] {
    program.slot_begin.push_back(static_cast<std::uint32_t>(program.communication.size()));
  };
  begin_slot();
  for (std::string cell : split(text, ' ')) {
    if (cell.empty()) continue;
    const bool in_batch =
        cell.front() == '[' || (!program.communication.empty() && program.communication.back().with_next);
    if (cell.front() == '[') cell.erase(0, 1);
    const bool last = cell.back() == ']';
    if (last) cell.pop_back();
    const auto [first, second] = parse_cell(cell);
    if (!is_compute(first.kind)) {
      program.communication.push_back(first);
      program.communication.back().with_next = in_batch && !last;
      continue;
    }
    for (const auto& op : {std::optional(first), second}) {
      if (!op) continue;
      schedule.ops.push_back(*op);
      schedule.micro_batches = std::max(schedule.micro_batches, op->micro_batch + 1);
      begin_slot();
    }
    if (second) schedule.ops[schedule.ops.size() - 2].with_next = true;
  }
  schedule.rank_begin.push_back(schedule.ops.size());
}

}  // namespace

std::uint64_t Random::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31U);
}

std::int64_t Random::between(std::int64_t least, std::int64_t most) {
  return least + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(most - least + 1));
}

std::ostream& operator<<(std::ostream& out, const Golden& golden) { return out << golden.path; }

const std::vector<Golden>& goldens() {
  static const std::vector<Golden> all = find_goldens();
  return all;
}

const Golden& golden(std::string_view path) {
  const auto found = std::ranges::find(goldens(), path, &Golden::path);
  if (found == goldens().end()) throw std::runtime_error("there is no golden " + std::string(path));
  return *found;
}

std::string text_of(const std::string& path_below_goldens) {
  std::ifstream file(std::string(goldens_dir) + path_below_goldens, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + std::string(goldens_dir) + path_below_goldens);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::variant<Schedule, Program> read(const Golden& golden) {
  std::istringstream text(text_of(golden.path));
  return read_csv(text, golden.path, {.chains = golden.chains()});
}

Schedule read_schedule(const Golden& golden) {
  auto file = read(golden);
  if (auto* program = std::get_if<Program>(&file)) return std::move(program->schedule);
  return std::get<Schedule>(std::move(file));
}

Program read_program(const Golden& golden) {
  auto file = read(golden);
  if (auto* program = std::get_if<Program>(&file)) return std::move(*program);
  return lower(std::get<Schedule>(std::move(file)));
}

std::optional<std::string_view> catalog_name(const Golden& golden) {
  struct Name {
    std::string_view kind, name;
  };
  static constexpr Name names[] = {
      {"dualpipe", "dualpipe"},
      {"dualpipev", "dualpipev"},
      {"gpipe", "gpipe"},
      {"1f1b", "1f1b"},
      {"interleaved_1f1b", "interleaved"},
      {"interleaved1f1b_v2", "interleaved"},
      {"zbh1", "zb1p"},
      {"looped_bfs", "looped-bfs"},
      {"zbh2", "zb-h2"},
      {"vhalf", "v-half"},
      {"vmin", "v-min"},
      {"zb1p_auto", "zb-auto"},
      {"zb15p_auto", "zb-auto"},
      {"zb2p_auto", "zb-auto"},
      {"zbv", "zbv-auto"},
      {"zbv_hand", "zbv"},
      {"1f1b_v", "1f1b-v"},
  };
  if (golden.lowered) return std::nullopt;
  if (golden.kind == "interleaved_zero_bubble") return golden.chunks == 1 ? "zb1p" : "interleaved-zb";
  if (golden.path.starts_with("pytorch/zbv_")) return "zbv";  // the other files of that name are not by hand
  const auto found = std::ranges::find(names, golden.kind, &Name::kind);
  if (found == std::end(names)) return std::nullopt;
  return found->name;
}

std::vector<std::vector<std::string>> read_table(const std::string& path_below_goldens) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream text(text_of(path_below_goldens));
  bool header = true;
  for (std::string line; std::getline(text, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line.front() == '#') continue;
    if (!header) rows.push_back(split(line, ','));
    header = false;
  }
  return rows;
}

std::ostream& operator<<(std::ostream& out, const Case& a_case) {
  out << a_case.family << " with " << a_case.shape.ranks << " ranks, " << a_case.shape.micro_batches
      << " micro-batches";
  for (const Parameter& each : parameters()) {
    if (family(a_case.family).*each.is_taken) out << ", " << a_case.shape.*each.value << " " << each.name;
  }
  return out;
}

namespace {

// Shapes of so many ranks and micro-batches: with what stands for "not given" and then up to 3 of each parameter.
std::vector<Shape> with_all_parameters(const Family& family, const Shape& shape) {
  std::vector<Shape> shapes{shape};
  for (const Parameter& each : parameters()) {
    if (!(family.*each.is_taken)) continue;
    std::vector<Shape> more;
    for (Shape other : shapes) {
      for (other.*each.value = Shape{}.*each.value; other.*each.value <= 3; ++(other.*each.value)) {
        more.push_back(other);
      }
    }
    shapes = std::move(more);
  }
  return shapes;
}

bool has_shape(const Family& family, const Shape& shape) {
  try {
    (void)generate(family.name, shape);
  } catch (const ShapeError&) {
    return false;
  }
  return true;
}

}  // namespace

std::vector<Case> small_cases(int ranks_max, std::int64_t micro_batches_max) {
  std::vector<Case> cases;
  for (const Family& family : catalog()) {
    for (int ranks = 1; ranks <= ranks_max; ++ranks) {
      for (std::int64_t micro_batches = 1; micro_batches <= micro_batches_max; ++micro_batches) {
        for (const Shape& shape : with_all_parameters(family, {ranks, micro_batches})) {
          if (has_shape(family, shape)) cases.push_back({family.name, shape});
        }
      }
    }
  }
  return cases;
}

Costs uniform(Time forward, Time input_gradient, Time weight_gradient, Time latency, std::optional<Time> overlapped) {
  StageCosts stage;
  stage.forward = forward;
  stage.backward = input_gradient + weight_gradient;
  stage.input_gradient = input_gradient;
  stage.weight_gradient = weight_gradient;
  stage.overlapped = overlapped;
  Costs costs;
  costs.stages = {stage};
  costs.latency = latency;
  return costs;
}

Costs random_costs(Random& random, const Placement& placement, CommunicationModel model, bool zeros) {
  const auto time = [&] { return zeros && random.one_in(3) ? 0 : random.between(1, 40); };
  Costs costs;
  for (int stage = 0; stage < placement.stages(); ++stage) {
    StageCosts& s = costs.stages.emplace_back();
    s.forward = time();
    s.input_gradient = time();
    s.weight_gradient = time();
    s.backward = random.one_in(4) ? time() : s.input_gradient + s.weight_gradient;
    if (random.one_in(4)) s.recompute = time();
    if (random.one_in(2)) s.overlapped = time();
    s.activation = random.between(0, 1000);
    s.weight_stash = random.one_in(4) ? random.between(0, 2000) : random.between(0, s.activation);
    s.message = random.between(0, 300);
    s.forward_workspace = random.between(0, 200);
    s.backward_workspace = random.between(0, 200);
    s.input_gradient_workspace = random.between(0, 200);
    s.weight_gradient_workspace = random.between(0, 200);
    if (random.one_in(2)) s.overlapped_workspace = random.between(-100, 300);
    s.parameters = random.between(0, 100);
    s.gradients = random.between(0, 100);
    s.optimizer = random.between(0, 100);
    if (s.recompute > 0 && random.one_in(2)) s.recompute_activation = random.between(0, s.activation);
  }
  costs.model = model;
  costs.latency = time();
  // An odd number of bytes per ns: no transfer takes just half a nanosecond too much, where rounding would depend on
  // how it is computed.
  if (model != CommunicationModel::latency && random.one_in(2)) {
    costs.bandwidth = 1e9 * static_cast<double>(2 * random.between(0, 9) + 1);
  }
  return costs;
}

namespace {

// The first difference between figures, by name.
class Differences {
 public:
  template <typename Value>
  void compare(const std::string& what, const Value& ours, const Value& oracles) {
    if (ours == oracles || !text_.str().empty()) return;
    text_ << what << " is " << ours << ", the oracle says " << oracles;
  }
  [[nodiscard]] std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

void compare_times(Differences& differences, const Program& program, const Timeline& ours,
                   const oracle::Result& oracles) {
  const Schedule& schedule = program.schedule;
  differences.compare("the number of op spans", ours.ops.size(), oracles.ops.size());
  differences.compare("the number of message spans", ours.communication.size(), oracles.messages.size());
  if (!differences.text().empty()) return;
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    differences.compare("the time of " + to_text(schedule.ops[i]), ours.ops[i], oracles.ops[i]);
  }
  for (std::size_t i = 0; i < program.communication.size(); ++i) {
    const Op op = program.communication[i];
    if (!is_send(op.kind) && !is_receive(op.kind)) continue;
    differences.compare("the time of " + to_text(op), ours.communication[i], oracles.messages[i]);
  }
  for (std::size_t r = 0; r < oracles.ranks.size(); ++r) {
    const std::string rank = " of rank " + std::to_string(r);
    differences.compare("the first start" + rank, ours.ranks[r].first_start, oracles.ranks[r].first_start);
    differences.compare("the last end" + rank, ours.ranks[r].last_end, oracles.ranks[r].last_end);
    differences.compare("the busy time" + rank, ours.ranks[r].busy, oracles.ranks[r].busy);
    differences.compare("the idle time" + rank, ours.idle(static_cast<int>(r)),
                        oracles.makespan - oracles.ranks[r].busy);
  }
  differences.compare("the makespan", ours.makespan(), oracles.makespan);
  differences.compare("the span", ours.span(), oracles.span);
  differences.compare("the end of the last reduction", ours.reduced, oracles.reduced);
}

void compare_memory(Differences& differences, const Program& program, const Costs& costs) {
  for (int r = 0; r < program.schedule.ranks(); ++r) {
    const RankMemory ours = rank_memory(program, costs, r);
    const oracle::Memory oracles = oracle::memory(program, costs, r);
    const std::string rank = " of rank " + std::to_string(r);
    differences.compare("the peak" + rank, ours.peak, oracles.peak);
    differences.compare("the position of the peak" + rank, ours.peak_position, oracles.peak_position);
    differences.compare("the peak activations" + rank, ours.peak_activations, oracles.peak_activations);
    differences.compare("the position of the peak activations" + rank, ours.peak_activations_position,
                        oracles.peak_activations_position);
  }
}

}  // namespace

std::string difference_from_oracle(const Program& program, const Costs& costs) {
  const auto oracles = oracle::simulate(program, costs);
  const bool hangs = find_deadlock(program, costs.model).has_value();
  if (hangs == oracles.has_value())
    return hangs ? "a deadlock, where the oracle sees none" : "no deadlock, where the oracle hangs";
  std::optional<Timeline> ours;
  try {
    ours = simulate(program, costs, Record::spans);
  } catch (const DeadlockError&) {
  }
  if (ours.has_value() != oracles.has_value()) return "find_deadlock() and simulate() disagree";
  if (!ours) return {};
  Differences differences;
  compare_times(differences, program, *ours, *oracles);
  compare_memory(differences, program, costs);
  if (simulate(program, costs, Record::ranks).ranks != ours->ranks) return "Record::ranks and Record::spans disagree";
  return differences.text();
}

namespace {

bool same_op(Op a, Op b) { return a.kind == b.kind && a.stage == b.stage && a.micro_batch == b.micro_batch; }

// Where things stand in a rank.
class Places {
 public:
  Places(const Program& program, int rank) : program_(program), rank_(rank) {}

  [[nodiscard]] std::optional<std::size_t> of_op(Op op) const {
    const auto ops = program_.schedule.rank(rank_);
    const auto found = std::ranges::find_if(ops, [&](Op each) { return same_op(each, op); });
    return found == ops.end() ? std::nullopt : std::optional(static_cast<std::size_t>(found - ops.begin()));
  }
  // Where the op, or pair, begins that the op at `position` belongs to.
  [[nodiscard]] std::size_t unit_of(std::size_t position) const {
    return position > 0 && program_.schedule.rank(rank_)[position - 1].with_next ? position - 1 : position;
  }
  struct InSlot {
    std::size_t slot;
    std::size_t batch;  // counted over the rank
  };
  [[nodiscard]] std::optional<InSlot> of_message(Op message) const {
    std::size_t batch = 0;
    for (std::size_t slot = 0; slot <= program_.schedule.rank(rank_).size(); ++slot) {
      for (const Op each : program_.slot(rank_, slot)) {
        if (same_op(each, message)) return InSlot{slot, batch};
        batch += !each.with_next;
      }
    }
    return std::nullopt;
  }

 private:
  const Program& program_;
  int rank_;
};

// What the op needs from elsewhere, as its receive; none for an op that needs nothing.
std::optional<Op> awaited_receive(Op op) {
  if (op.kind == Kind::forward) return Op{op.micro_batch, op.stage, Kind::receive_forward, false};
  if (is_backward_half(op.kind)) return Op{op.micro_batch, op.stage, Kind::receive_backward, false};
  return std::nullopt;
}

// The op that makes what is sent, of either kind of backward.
bool makes(Op op, Op send) {
  const bool right_kind = send.kind == Kind::send_forward ? op.kind == Kind::forward : is_backward_half(op.kind);
  return right_kind && op.stage == send.stage && op.micro_batch == send.micro_batch;
}

// An op waits for its receive on its own rank (stream), or for its maker or the send on the other one.
std::string flaw_of_compute(const Wait& wait, const Wait& next, const Program& program) {
  const auto position = Places(program, wait.rank).of_op(wait.op);
  if (position != wait.position) return "is not at its position";
  const auto receive = awaited_receive(wait.op);
  if (!receive) return "needs nothing";
  const Places theirs(program, next.rank);
  if (same_op(wait.awaited, *receive)) {
    if (next.rank != wait.rank || next.lane != Wait::Lane::communication) return "its own stream is not next";
    return theirs.of_message(next.op)->batch <= theirs.of_message(*receive)->batch
               ? ""
               : "its receive comes before the next";
  }
  const Op send = peer_of(*receive, program.schedule.placement);
  if (program.schedule.placement.rank_of[send.stage] != next.rank) return "its sender is not next";
  if (next.lane != Wait::Lane::compute) return "its sender's computation is not next";
  if (makes(wait.awaited, send))
    return *theirs.of_op(wait.awaited) >= theirs.unit_of(next.position) ? "" : "its maker has run";
  if (!same_op(wait.awaited, send)) return "does not need what it waits for";
  return theirs.of_message(send)->slot > next.position ? "" : "its send was issued";
}

// A message waits for its other end, which stands behind the next link.
std::string flaw_of_communication(const Wait& wait, const Wait& next, const Program& program) {
  if (same_op(wait.awaited, wait.op)) return "waits for itself";
  if (!same_op(wait.awaited, peer_of(wait.op, program.schedule.placement))) return "does not wait for its other end";
  if (program.schedule.placement.rank_of[wait.awaited.stage] != next.rank) return "its other end is not next";
  if (next.lane != Wait::Lane::communication) return "its other end's stream is not next";
  const Places theirs(program, next.rank);
  return theirs.of_message(next.op)->batch < theirs.of_message(wait.awaited)->batch ? "" : "its other end has started";
}

// A reduction waits for the same weights' on another rank.
std::string flaw_of_reduction(const Wait& wait, const Wait& next, const Program& program) {
  const Placement& placement = program.schedule.placement;
  if (wait.awaited.kind != Kind::reduce_gradients || wait.op.kind != Kind::reduce_gradients) return "is no reduction";
  if (placement.weights_of[wait.op.stage] != placement.weights_of[wait.awaited.stage]) return "waits for other weights";
  if (placement.rank_of[wait.awaited.stage] != next.rank || next.rank == wait.rank) return "its peer is not next";
  if (next.lane != Wait::Lane::reduction) return "its peer's reductions are not next";
  const Places theirs(program, next.rank);
  return theirs.of_message(next.op)->batch < theirs.of_message(wait.awaited)->batch ? "" : "its peer has come to it";
}

std::string flaw_of(const Wait& wait, const Wait& next, const Program& program) {
  if (wait.lane == Wait::Lane::compute) return flaw_of_compute(wait, next, program);
  const auto place = Places(program, wait.rank).of_message(wait.op);
  if (!place || place->slot != wait.position) return "is not in its slot";
  return wait.lane == Wait::Lane::communication ? flaw_of_communication(wait, next, program)
                                                : flaw_of_reduction(wait, next, program);
}

}  // namespace

std::string flaw_of(const Deadlock& deadlock, const Program& program) {
  if (deadlock.cycle.empty()) return "there is no cycle";
  for (std::size_t i = 0; i < deadlock.cycle.size(); ++i) {
    const Wait& wait = deadlock.cycle[i];
    const std::string flaw = flaw_of(wait, deadlock.cycle[(i + 1) % deadlock.cycle.size()], program);
    if (!flaw.empty()) return to_text(wait.op) + " " + flaw;
  }
  return {};
}

Schedule schedule_of(Placement placement, const std::vector<std::string>& ranks) {
  return program_of(std::move(placement), ranks).schedule;
}

Program program_of(Placement placement, const std::vector<std::string>& ranks) {
  Program program;
  program.schedule.placement = std::move(placement);
  program.schedule.rank_begin = {0};
  for (const std::string& text : ranks) add_rank(program, text);
  program.slot_begin.push_back(static_cast<std::uint32_t>(program.communication.size()));
  return program;
}

std::string text_of_rank(const Schedule& schedule, int rank) {
  std::string text;
  const auto ops = schedule.rank(rank);
  for (std::size_t i = 0; i < ops.size(); i += unit_size(ops.subspan(i))) {
    text += (i > 0 ? " " : "") + cell_text(ops.subspan(i));
  }
  return text;
}

}  // namespace test
}  // namespace dualpipe
