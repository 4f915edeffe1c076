#include "dualpipe/sim/schedule/csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <istream>
#include <optional>
#include <ostream>

#include "dualpipe/sim/schedule/csv_cells.h"
#include "dualpipe/sim/schedule/csv_letters.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/program_builder.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::CellReader;
using detail::schedule::LetterReader;
using detail::schedule::ProgramBuilder;
using detail::schedule::quote;

namespace {

std::string in_small_letters(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return result;
}

// What people and their tools put into a cell of idle time.
bool is_idle(std::string_view text) {
  constexpr std::array<std::string_view, 8> words{"none", "nan", "null", "idle", "noop", "bubble", "-", "."};
  if (text.empty()) return true;
  const char first = text.front();  // that of most cells settles it
  const bool may_be_word = first == '-' || first == '.' || std::isalpha(static_cast<unsigned char>(first)) != 0;
  return may_be_word && std::ranges::find(words, in_small_letters(text)) != words.end();
}

// "2", "rank 2", "Rank2:", "pp_rank 2": the number of the rank whose ops follow.
std::optional<std::uint64_t> rank_label(std::string_view text) {
  const std::string label = in_small_letters(text);
  std::string_view rest = label;
  if (rest.ends_with(':')) rest.remove_suffix(1);
  for (const std::string_view word : {"pp_rank", "pp rank", "rank", "device", "gpu", "worker"}) {
    if (!rest.starts_with(word)) continue;
    rest.remove_prefix(word.size());
    while (rest.starts_with(' ') || rest.starts_with('_')) rest.remove_prefix(1);
    break;
  }
  constexpr std::size_t digits_max = 9;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (rest.empty() || rest.size() > digits_max || !std::ranges::all_of(rest, is_digit)) return std::nullopt;
  return std::stoull(std::string(rest));
}

// What may stand in a header: a number, or a word that is no op with its stage left out.
bool is_header_cell(std::string_view text) {
  if (rank_label(text)) return true;
  if (std::isalpha(static_cast<unsigned char>(text.front())) == 0) return false;
  try {
    static_cast<void>(parse_cell("0" + std::string(text)));
    return false;
  } catch (const InputError&) {
    return true;
  }
}

// Where an op stands.
struct Place {
  Op op;
  std::size_t line = 0;
  std::size_t column = 0;
};

struct StageSeen {
  std::size_t count = 0;  // over all rows
  std::size_t in_row = 0;
  std::size_t most = 0;  // in one row, the first of equals
  int rank = 0;          // of that row
  Place first;
  bool keeps_column = true;
};

struct Row {
  std::size_t line = 0;
  std::size_t count = 0;
  Op first;
};

class CsvReader {
 public:
  CsvReader(std::istream& in, const std::string& source, const CsvOptions& options)
      : source_(source), options_(options), cells_(in, source), letters_(options.letters, source) {}

  [[nodiscard]] std::variant<Schedule, Program> read() {
    while (const auto cell = cells_.next()) {
      if (cell->is_comment) continue;
      if (!is_idle(cell->text)) take(cell->text);
      if (cell->ends_row) end_row();
    }
    if (builder_.ranks() == 0) fail("the file has no ops");
    Placement placement = chains_of(place());
    try {
      auto result = builder_.take(std::filesystem::path(source_).stem().string(), std::move(placement),
                                  micro_batches_ > 0 ? micro_batches_ : micro_batches_of_messages_);
      auto* program = std::get_if<Program>(&result);
      remark(letters_.settle(program != nullptr ? program->schedule : std::get<Schedule>(result)));
      return result;
    } catch (const InputError& error) {
      fail(fmt::format("{}; the last one is that of {} in line {}, column {}", error.what(),
                       to_text(last_micro_batch_.op), last_micro_batch_.line, last_micro_batch_.column));
    }
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw InputError(fmt::format("{}: {}", source_, what)); }

  void remark(std::string text) const {
    if (!text.empty() && options_.remarks != nullptr) options_.remarks->push_back(std::move(text));
  }

  // What stands in a cell: an op, or around the ops a header, or the label of a line.
  void take(std::string_view text) {
    if (row_.count == 0 && !label_) {
      if (const auto colon = text.find(':'); colon != std::string_view::npos && rank_label(text.substr(0, colon))) {
        take_label(text.substr(0, colon));
        text.remove_prefix(colon + 1);
        while (text.starts_with(' ')) text.remove_prefix(1);
        if (text.empty()) return;
      }
    }
    if (row_.count == 0 && (builder_.ranks() == 0 || !label_) && is_header_cell(text)) return take_label(text);
    if (labels_ > 1 || (label_ && !label_number_)) fail_at_label();
    add(text);
  }

  void take_label(std::string_view text) {
    ++labels_;
    if (label_) return;
    label_ = std::string(text);
    label_number_ = rank_label(text);
    label_column_ = cells_.column();
  }

  // The line is none of those that a label may begin, or a header may be.
  [[noreturn]] void fail_at_label() const {
    std::string what;
    try {
      static_cast<void>(parse_cell(*label_));
    } catch (const InputError& error) {
      what = error.what();
    }
    if (in_small_letters(*label_).starts_with("step")) {
      what += "; a line is a rank with all its ops, and not a step of all ranks";
    }
    throw InputError(fmt::format("{}:{}: column {}: {}", source_, cells_.line(), label_column_, what));
  }

  // Labels count from 0 or from 1.
  void check_label() {
    if (!label_number_) return;
    if (!first_label_) first_label_ = *label_number_;
    if (*first_label_ <= 1 && *label_number_ == *first_label_ + builder_.ranks()) return;
    fail(fmt::format("line {} is labelled {}, but is rank {}; lines are ranks in ascending order, none left out",
                     cells_.line(), quote(*label_), builder_.ranks()));
  }

  void add(std::string_view text) {
    if (empty_line_) {
      fail(fmt::format("line {} is empty, but more ops follow; a line is a rank, and each rank runs at least one op",
                       *empty_line_));
    }
    try {
      const Cell cell = letters_.parse(text, cells_.line());
      see(cell.first);
      if (cell.second) see(*cell.second);
      builder_.add(cell);
    } catch (const InputError& error) {
      cells_.fail(error.what());
    }
  }

  void see(Op op) {
    if (op.stage >= stages_.size()) stages_.resize(std::size_t{op.stage} + 1);
    StageSeen& stage = stages_[op.stage];
    if (stage.count++ == 0) stage.first = {op, cells_.line(), cells_.column()};
    stage.keeps_column = stage.keeps_column && stage.first.column == cells_.column();
    if (stage.in_row++ == 0) stages_of_row_.push_back(op.stage);
    if (row_.count++ == 0) row_.first = op;
    auto& micro_batches = is_compute(op.kind) ? micro_batches_ : micro_batches_of_messages_;
    if (op.micro_batch < micro_batches) return;
    micro_batches = op.micro_batch + 1;
    if (is_compute(op.kind) || micro_batches_ == 0) last_micro_batch_ = {op, cells_.line(), cells_.column()};
  }

  void end_row() {
    if (row_.count > 0) {
      check_label();
      hold_stages();
      row_.line = cells_.line();
      rows_.push_back(row_);
      try {
        builder_.end_rank();
      } catch (const InputError& error) {
        cells_.fail(error.what());
      }
    } else if (labels_ > 0) {
      if (builder_.ranks() > 0 || has_header_) fail_at_label();
      has_header_ = true;
    } else if (cells_.column() > 1) {
      fail(fmt::format("line {} has no ops; a line is a rank, and each rank runs at least one op", cells_.line()));
    } else if (!empty_line_ && builder_.ranks() > 0) {
      empty_line_ = cells_.line();
    }
    row_ = {};
    label_.reset();
    label_number_.reset();
    labels_ = 0;
  }

  // The row that has most of a stage's ops holds it; validate() reports the others.
  void hold_stages() {
    for (const std::uint16_t number : stages_of_row_) {
      StageSeen& stage = stages_[number];
      if (stage.in_row > stage.most) {
        stage.most = stage.in_row;
        stage.rank = static_cast<int>(builder_.ranks());
      }
      stage.in_row = 0;
    }
    stages_of_row_.clear();
  }

  [[nodiscard]] Placement place() const {
    std::vector<int> rank_of;
    std::vector<bool> used(builder_.ranks());
    for (std::size_t stage = 0; stage < stages_.size(); ++stage) {
      if (stages_[stage].count == 0) fail_without(stage);
      rank_of.push_back(stages_[stage].rank);
      used[static_cast<std::size_t>(stages_[stage].rank)] = true;
    }
    const auto idle = static_cast<std::size_t>(std::ranges::find(used, false) - used.begin());
    if (idle < used.size()) fail_idle(idle);
    return one_chain(rank_of);
  }

  // Stages have a gap: names what is on the wrong side of it.
  [[noreturn]] void fail_without(std::size_t missing) const {
    const auto present = static_cast<std::size_t>(
        std::ranges::count_if(stages_, [](const StageSeen& stage) { return stage.count > 0; }));
    if (missing == 0 && present + 1 == stages_.size()) {
      fail(fmt::format("stages count from 0, but those of the file are 1 to {}; subtract 1 from each", present));
    }
    const StageSeen& last = stages_.back();
    const std::size_t most = std::ranges::max_element(stages_, {}, &StageSeen::count)->count;
    if (2 * last.count < most) {
      fail(
          fmt::format("stage {} occurs only {} in line {}, column {}, and no rank runs stage {}; stages are numbered "
                      "without gaps",
                      stages_.size() - 1,
                      last.count == 1 ? fmt::format("as {}", to_text(last.first.op))
                                      : fmt::format("{} times, first as {}", last.count, to_text(last.first.op)),
                      last.first.line, last.first.column, missing));
    }
    fail(fmt::format("no rank runs stage {}, but stage {} occurs; stages must be numbered without gaps", missing,
                     stages_.size() - 1));
  }

  [[noreturn]] void fail_idle(std::size_t rank) const {
    const bool is_transposed =
        std::ranges::all_of(stages_, &StageSeen::keeps_column) &&
        std::ranges::any_of(stages_, [](const StageSeen& stage) { return stage.first.column > 1; });
    const Row& row = rows_[rank];
    const StageSeen& stage = stages_[row.first.stage];
    fail(fmt::format("rank {} (line {}) holds no stage: {} of stage {}, which rank {} (line {}) runs; {}", rank,
                     row.line,
                     row.count == 1 ? fmt::format("its only op, {}, is", to_text(row.first))
                                    : fmt::format("the first of its {} ops, {}, is", row.count, to_text(row.first)),
                     row.first.stage, stage.rank, rows_[static_cast<std::size_t>(stage.rank)].line,
                     is_transposed ? "the file has a column for each rank where it should have a line: transpose it"
                                   : "if the line is one too many, delete it"));
  }

  [[nodiscard]] Placement chains_of(const Placement& placement) const {
    try {
      return in_chains(placement, options_.chains);
    } catch (const InputError& error) {
      fail(error.what());
    }
  }

  const std::string& source_;
  const CsvOptions& options_;
  CellReader cells_;
  LetterReader letters_;
  ProgramBuilder builder_;
  std::vector<StageSeen> stages_;
  std::vector<std::uint16_t> stages_of_row_;
  std::vector<Row> rows_;  // by rank
  std::uint32_t micro_batches_ = 0;
  std::uint32_t micro_batches_of_messages_ = 0;  // which count where nothing else does
  Place last_micro_batch_;
  std::optional<std::size_t> empty_line_;
  bool has_header_ = false;
  std::optional<std::uint64_t> first_label_;

  Row row_;                           // that is being read
  std::optional<std::string> label_;  // what stood before its ops, if anything did; how many of that
  std::optional<std::uint64_t> label_number_;
  std::size_t label_column_ = 0;
  std::size_t labels_ = 0;
};

// Cells of one rank after another.
class CsvWriter {
 public:
  explicit CsvWriter(std::ostream& out) : out_(out) {}

  void cell(std::string_view text) {
    if (!row_starts_) out_.put(',');
    out_ << text;
    row_starts_ = false;
  }
  void end_row() {
    out_.put('\n');
    row_starts_ = true;
  }

 private:
  std::ostream& out_;
  bool row_starts_ = true;
};

}  // namespace

std::variant<Schedule, Program> read_csv(std::istream& in, const std::string& source, const CsvOptions& options) {
  return CsvReader(in, source, options).read();
}

void check_csv_can_hold(const Placement& placement) {
  const int length = placement.stages() / placement.chains();
  bool even = placement.stages() % placement.chains() == 0;
  for (int chain = 0; even && chain < placement.chains(); ++chain) {
    even = placement.chain_begin[static_cast<std::size_t>(chain)] == chain * length;
  }
  for (int stage = 0; even && stage < placement.stages(); ++stage) {
    even = placement.weights_of[static_cast<std::size_t>(stage)] == stage % length;
  }
  if (!even) throw InputError("a CSV cannot say which chains and shared weights this schedule has; use --to json");
}

void write_csv(std::ostream& out, const Schedule& schedule) {
  CsvWriter writer(out);
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    for (auto ops = schedule.rank(rank); !ops.empty(); ops = ops.subspan(unit_size(ops))) writer.cell(cell_text(ops));
    writer.end_row();
  }
}

void write_csv(std::ostream& out, const Program& program) {
  CsvWriter writer(out);
  for (int rank = 0; rank < program.schedule.ranks(); ++rank) {
    const auto slot = [&](std::size_t position) {
      for (const Op& message : program.slot(rank, position)) writer.cell(to_text(message));
    };
    const auto ops = program.schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); i += unit_size(ops.subspan(i))) {
      slot(i);
      writer.cell(cell_text(ops.subspan(i)));
    }
    slot(ops.size());
    writer.end_row();
  }
}

}  // namespace dualpipe
