#include "dualpipe/sim/schedule/csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <istream>
#include <optional>
#include <ostream>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/program_builder.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::ProgramBuilder;
using detail::schedule::quote;

namespace {

// The longest op has 42 characters; the rest is room for quotes and spaces.
constexpr std::size_t cell_length_max = 128;

constexpr bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// One cell after another through a buffer of fixed size, whatever the length of file, lines and cells.
class CellReader {
 public:
  struct Text {
    std::string_view text;  // without the spaces around it; valid until the next call
    bool ends_row;
  };

  CellReader(std::istream& in, const std::string& source) : in_(in), source_(source) {
    fill();
    if (buffered().starts_with("\xef\xbb\xbf")) begin_ += 3;  // a byte order mark, as Windows writes it
  }

  // Nothing at the end of the file.
  [[nodiscard]] std::optional<Text> next() {
    if (ends_row_) start_row();
    ++column_;
    if (end_ - begin_ <= cell_length_max) fill();
    if (begin_ == end_ && column_ == 1) return std::nullopt;
    if (++cells_ > op_count_max) fail(fmt::format("more than {} cells", op_count_max));

    const std::string_view ahead = buffered().substr(0, cell_length_max + 1);
    const auto end = std::ranges::find_if(ahead, [](char c) { return c == ',' || c == '\n'; });
    const bool ends_file = end == ahead.end();
    if (ends_file && ahead.size() > cell_length_max) {
      fail(fmt::format("{}: the cell has more than {} characters; expected an op like 3B7", quote(ahead),
                       cell_length_max));
    }
    const auto length = static_cast<std::size_t>(end - ahead.begin());
    begin_ += ends_file ? length : length + 1;
    ends_row_ = ends_file || *end == '\n';
    return Text{unquoted(trimmed(ahead.substr(0, length))), ends_row_};
  }

  // Both count from 1.
  [[nodiscard]] std::size_t line() const { return line_; }
  [[nodiscard]] std::size_t column() const { return column_; }

  // An error at the cell that was read last.
  [[noreturn]] void fail(std::string_view what) const {
    throw InputError(fmt::format("{}:{}: column {}: {}", source_, line_, column_, what));
  }

 private:
  [[nodiscard]] std::string_view buffered() const { return {buffer_.data() + begin_, end_ - begin_}; }

  void start_row() {
    ++line_;
    column_ = 0;
    ends_row_ = false;
  }

  void fill() {
    std::ranges::copy(buffered(), buffer_.begin());
    end_ -= begin_;
    begin_ = 0;
    if (!in_.good()) return;
    in_.read(buffer_.data() + end_, static_cast<std::streamsize>(buffer_.size() - end_));
    end_ += static_cast<std::size_t>(in_.gcount());
    if (in_.bad()) throw InputError(fmt::format("{}: cannot be read", source_));
  }

  // Python's csv module may put a cell into quotes. No op holds a comma or a quote, so no quoted cell does.
  [[nodiscard]] std::string_view unquoted(std::string_view text) const {
    if (!text.starts_with('"')) return text;
    if (text.size() < 2 || !text.ends_with('"')) fail(fmt::format("{}: the quote is not closed", quote(text)));
    return text.substr(1, text.size() - 2);
  }

  std::istream& in_;
  const std::string& source_;
  std::array<char, std::size_t{1} << 16U> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t line_ = 1;
  std::size_t column_ = 0;
  std::size_t cells_ = 0;
  bool ends_row_ = false;
};

class CsvReader {
 public:
  CsvReader(std::istream& in, const std::string& source) : source_(source), cells_(in, source) {}

  [[nodiscard]] std::variant<Schedule, Program> read(int chains) {
    while (const auto cell = cells_.next()) {
      if (!cell->text.empty()) add(cell->text);
      if (cell->ends_row) end_row();
    }
    if (builder_.ranks() == 0) fail("the file has no ops");
    Placement placement = divide_into_chains(place(), chains);
    try {
      return builder_.take(std::filesystem::path(source_).stem().string(), std::move(placement), micro_batches_);
    } catch (const InputError& error) {
      fail(error.what());
    }
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw InputError(fmt::format("{}: {}", source_, what)); }

  void add(std::string_view text) {
    if (empty_line_) {
      fail(fmt::format("line {} is empty, but more ops follow; a line is a rank, and each rank runs at least one op",
                       *empty_line_));
    }
    try {
      const Cell cell = parse_cell(text);
      see(cell.first);
      if (cell.second) see(*cell.second);
      builder_.add(cell);
    } catch (const InputError& error) {
      cells_.fail(error.what());
    }
    row_has_ops_ = true;
  }

  // The first rank that names a stage holds it; validate() reports the others.
  void see(Op op) {
    if (op.stage >= rank_of_.size()) rank_of_.resize(std::size_t{op.stage} + 1);
    auto& rank = rank_of_[op.stage];
    if (!rank) rank = static_cast<int>(builder_.ranks());
    micro_batches_ = std::max(micro_batches_, op.micro_batch + 1);
  }

  void end_row() {
    if (row_has_ops_) {
      try {
        builder_.end_rank();
      } catch (const InputError& error) {
        cells_.fail(error.what());
      }
    } else if (cells_.column() > 1) {
      fail(fmt::format("line {} has no ops; a line is a rank, and each rank runs at least one op", cells_.line()));
    } else if (!empty_line_) {
      empty_line_ = cells_.line();
    }
    row_has_ops_ = false;
  }

  [[nodiscard]] Placement place() const {
    std::vector<int> rank_of;
    std::vector<bool> used(builder_.ranks());
    for (const auto& rank : rank_of_) {
      if (!rank) {
        fail(fmt::format("no rank runs stage {}, but stage {} occurs; stages must be numbered without gaps",
                         rank_of.size(), rank_of_.size() - 1));
      }
      rank_of.push_back(*rank);
      used[static_cast<std::size_t>(*rank)] = true;
    }
    const auto idle = std::ranges::find(used, false) - used.begin();
    if (static_cast<std::size_t>(idle) < used.size()) {
      fail(fmt::format("rank {} (line {}) holds no stage: all that it names are named by ranks before it", idle,
                       idle + 1));
    }
    return one_chain(rank_of);
  }

  [[nodiscard]] Placement divide_into_chains(Placement placement, int chains) const {
    if (chains < 1 || placement.stages() % chains != 0) {
      fail(fmt::format("{} stages cannot be divided into {} equally long chains", placement.stages(), chains));
    }
    const int length = placement.stages() / chains;
    placement.chain_begin.clear();
    for (int begin = 0; begin <= placement.stages(); begin += length) {
      placement.chain_begin.push_back(static_cast<std::uint16_t>(begin));
    }
    for (auto& weights : placement.weights_of) weights = static_cast<std::uint16_t>(weights % length);
    return placement;
  }

  const std::string& source_;
  CellReader cells_;
  ProgramBuilder builder_;
  std::vector<std::optional<int>> rank_of_;  // per stage
  std::uint32_t micro_batches_ = 0;
  bool row_has_ops_ = false;
  std::optional<std::size_t> empty_line_;
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

std::variant<Schedule, Program> read_csv(std::istream& in, const std::string& source, int chains) {
  return CsvReader(in, source).read(chains);
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
