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
#include "tests/thinned.h"

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
    Thinned shapes(ranks_max * micro_batches_max > 12 ? 5 : 1);
    for (int ranks = 1; ranks <= ranks_max; ++ranks) {
      for (std::int64_t micro_batches = 1; micro_batches <= micro_batches_max; ++micro_batches) {
        for (const Shape& shape : with_all_parameters(family, {ranks, micro_batches})) {
          if (has_shape(family, shape) && shapes.next()) cases.push_back({family.name, shape});
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

Costs random_run_costs(Random& random, const Placement& placement, CommunicationModel model) {
  Costs costs = random_costs(random, placement, model, random.one_in(3));
  costs.release_early = random.one_in(2);
  if (random.one_in(2)) costs.launch = random.between(1, 20);
  if (random.one_in(2)) {
    for (int rank = 0; rank < placement.ranks; ++rank) {
      costs.speed.push_back(static_cast<double>(random.between(1, 12)) / 4);
    }
  }
  return costs;
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
