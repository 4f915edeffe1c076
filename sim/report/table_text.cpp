#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <string_view>
#include <utility>
#include <variant>

#include "dualpipe/sim/report/costs_text.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/report/table.h"

namespace dualpipe {
namespace {

// With at most two decimals: "8.5".
std::string number_text(double number) {
  std::string text = fmt::format("{:.2f}", number);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

// "1.24M", for what is large and not exact anyway.
std::string large_number_text(double number) {
  constexpr std::string_view steps[] = {"", "k", "M", "G", "T", "P"};
  std::size_t step = 0;
  while (number >= 999.5 && step + 1 < std::size(steps)) number /= 1000, ++step;
  return fmt::format("{:.3g}{}", number, steps[step]);
}

std::string activations_text(const TableRow& row) {
  const std::string most = number_text(row.peak_activations_most * row.share);
  if (row.peak_activations_least == row.peak_activations_most) return most;
  return fmt::format("{}..{}", number_text(row.peak_activations_least * row.share), most);
}

std::string bound_text(const TableRow& row) {
  if (!row.lower_bound) return "";
  if (row.makespan <= *row.lower_bound) return "optimal";
  const auto bound = static_cast<double>(*row.lower_bound);
  return "+" + format_rate((static_cast<double>(row.makespan) - bound) / std::max(bound, 1.0));
}

class TableColumns {
 public:
  TableColumns(const ScheduleTable& table, ByteUnits units) : table_(table), units_(units) {}

  // The number behind each column says when it goes where there is no room; those that stay have 0.
  [[nodiscard]] TextTable take() {
    if (any([](const TableRow& row) { return row.is_best; })) {
      add({"", Align::left}, [](const TableRow& row) { return row.is_best ? "*" : ""; });
    }
    add({"schedule", Align::left}, [](const TableRow& row) { return row.schedule; });
    if (differ(&TableRow::ranks)) add({"ranks"}, [](const TableRow& row) { return fmt::format("{}", row.ranks); });
    if (differ(&TableRow::micro_batches)) {
      add({"M"}, [](const TableRow& row) { return fmt::format("{}", row.micro_batches); });
    }
    if (any([](const TableRow& row) { return row.recompute.has_value(); })) {
      add({"recompute", Align::left},
          [](const TableRow& row) { return row.recompute == Recomputation::full ? "full" : "none"; });
    }
    add_times();
    add_idle();
    add_memory();
    add_rates();
    add_form();
    return std::move(text_);
  }

 private:
  template <typename Predicate>
  [[nodiscard]] bool any(Predicate predicate) const {
    return std::ranges::any_of(table_.rows, predicate);
  }
  template <typename Figure>
  [[nodiscard]] bool differ(Figure figure) const {
    return any([&](const TableRow& row) { return row.*figure != table_.rows[0].*figure; });
  }
  void add(Column column, const std::function<std::string(const TableRow&)>& cell) {
    std::vector<std::string> cells;
    for (const TableRow& row : table_.rows) cells.push_back(cell(row));
    text_.add_column(std::move(column), std::move(cells));
  }
  void add_time(Column column, const std::function<std::optional<Time>(const TableRow&)>& time) {
    std::vector<std::optional<Time>> times;
    for (const TableRow& row : table_.rows) times.push_back(time(row));
    text_.add_column(std::move(column), format_times(times));
  }

  void add_times() {
    if (table_.request.seeds > 0) {
      add_time({"median"}, [](const TableRow& row) { return row.makespans->median; });
      add_time({"5%", Align::right, 2}, [](const TableRow& row) { return row.makespans->low; });
      add_time({"95%", Align::right, 2}, [](const TableRow& row) { return row.makespans->high; });
      add({"median +-", Align::right, 4}, [](const TableRow& row) {
        return row.makespans->median > 0 ? format_rate(row.makespans->median_error()) : "";
      });
      if (table_.rows.size() > 1) {
        add({"wins", Align::right, 1}, [](const TableRow& row) { return fmt::format("{:.0f}%", 100 * *row.win_rate); });
      }
    } else {
      add_time({"makespan"}, [](const TableRow& row) { return row.makespan; });
    }
    if (table_.request.terms == EqualTerms::stages) return;  // on other ranks it says nothing
    add({"vs 1f1b", Align::right, 1},
        [](const TableRow& row) { return row.speedup ? fmt::format("{:.2f}x", *row.speedup) : ""; });
    if (any([](const TableRow& row) { return row.lower_bound.has_value(); })) {
      add({"bound", Align::right, 7}, bound_text);
    }
  }

  void add_idle() {
    add({"bubble", Align::right, 2}, [](const TableRow& row) { return format_rate(row.bubble_rate_makespan); });
    if (any([](const TableRow& row) { return row.imbalance_rate >= 0.000'05; })) {
      add({"imbalance", Align::right, 6}, [](const TableRow& row) { return format_rate(row.imbalance_rate); });
    }
    add({"by span", Align::right, 9}, [](const TableRow& row) { return format_rate(row.bubble_rate_span); });
    add({"idle/ideal", Align::right, 12}, [](const TableRow& row) { return format_rate(row.idle_per_ideal); });
  }

  void add_memory() {
    add({"activations", Align::right, 5}, activations_text);
    add({"parameters", Align::right, 5},
        [](const TableRow& row) { return number_text(row.parameters * row.share) + "x"; });
    if (any([](const TableRow& row) { return row.peak_memory > 0; })) {
      add({"memory", Align::right, 1}, [&](const TableRow& row) { return format_bytes(row.peak_memory, units_); });
    }
    if (!table_.request.memory_limit) return;
    add({"fits", Align::left}, [&](const TableRow& row) {
      return row.fits() ? "yes" : fmt::format("no, {} over", format_bytes(-*row.room, units_));
    });
  }

  void add_rates() {
    if (table_.request.tokens) {
      add({"tokens/s", Align::right, 3},
          [](const TableRow& row) { return row.tokens_per_second ? large_number_text(*row.tokens_per_second) : ""; });
    }
    if (table_.request.flops && table_.request.peak_flops) {
      add({"of peak", Align::right, 3},
          [](const TableRow& row) { return row.flops_utilization ? format_rate(*row.flops_utilization) : ""; });
    }
  }

  void add_form() {
    if (!any([](const TableRow& row) { return row.form.has_value(); })) return;
    add({"closed form", Align::left, 10},
        [](const TableRow& row) { return row.form ? row.form->formula + (row.form->by_span ? " by span" : "") : ""; });
    add_time({"it says", Align::right, 13},
             [](const TableRow& row) { return row.form ? std::optional(row.form->bubble) : std::nullopt; });
    add_time({"simulated", Align::right, 11},
             [](const TableRow& row) { return row.form ? std::optional(row.bubble) : std::nullopt; });
    add({"it holds", Align::left, 10}, [](const TableRow& row) {
      return !row.form ? "" : row.form->holds() ? "yes" : "no";
    });
  }

  const ScheduleTable& table_;
  ByteUnits units_;
  TextTable text_{{}};
};

struct NarrowedTable {
  TextTable table;
  std::vector<std::string> left_out;  // headers

  [[nodiscard]] bool has(std::string_view header) const { return table.has(header); }
};

// "dualpipe, dualpipev: the closed form needs …": each note once, with all whose it is.
class Notes {
 public:
  void add(const std::string& whose, const std::string& note) {
    auto found = std::ranges::find(notes_, note, &std::pair<std::string, std::vector<std::string>>::first);
    if (found == notes_.end()) found = notes_.insert(notes_.end(), {note, {}});
    auto& names = found->second;
    if (std::ranges::find(names, whose) == names.end()) names.push_back(whose);
  }

  [[nodiscard]] std::vector<std::string> take() const {
    std::vector<std::string> lines;
    for (const auto& [note, names] : notes_) lines.push_back(fmt::format("{}: {}", fmt::join(names, ", "), note));
    return lines;
  }

 private:
  std::vector<std::pair<std::string, std::vector<std::string>>> notes_;
};

// What stands under the table: which conditions are broken, and which rows are not there.
std::vector<std::string> notes_of(const ScheduleTable& table, bool has_forms) {
  Notes notes;
  for (const TableRow& row : table.rows) {
    if (has_forms && row.form && !row.form->holds()) notes.add(row.schedule, "the closed form " + row.form->broken);
  }
  std::vector<std::string> lines = notes.take();
  for (const LeftOut& each : table.left_out) {
    const std::string line = "no row for " + each.reason;
    if (std::ranges::find(lines, line) == lines.end()) lines.push_back(line);
  }
  return lines;
}

template <typename Count>
std::string counts_text(const std::vector<Count>& counts, std::string_view noun, std::string_view plural_ending) {
  if (counts.size() == 1) return format_count(static_cast<std::uint64_t>(counts[0]), noun, plural_ending);
  return fmt::format("{} or {} {}{}", fmt::join(counts.begin(), counts.end() - 1, ", "), counts.back(), noun,
                     plural_ending);
}

std::string heading(const ScheduleTable& table, ByteUnits units) {
  const TableRequest& request = table.request;
  const bool equal_ranks = request.terms == EqualTerms::ranks;
  std::string text = equal_ranks ? "one model on " : "";
  text += fmt::format("{}, {}", counts_text(request.ranks, equal_ranks ? "rank" : "stage", "s"),
                      counts_text(request.micro_batches, "micro-batch", "es"));
  if (request.memory_limit) text += fmt::format(", {} per rank", format_bytes(*request.memory_limit, units));
  if (request.seeds > 0) {
    text += fmt::format(", {} runs with jitter", request.seeds);
    if (request.straggler) text += fmt::format(", in each a rank of speed {}", *request.straggler);
  }

  const bool has_pairs = std::ranges::any_of(table.rows, [](const TableRow& row) { return row.has_pairs; });
  const auto entries = entries_of(request.costs);
  const bool is_model = std::holds_alternative<ModelCosts>(request.costs);
  std::string of = is_model || equal_ranks ? fmt::format("the model's {} parts", entries.size()) : "a stage";
  if (!is_model && equal_ranks && entries.size() == 1) of = "a rank's share of the model";
  return text + '\n' + costs_text(entries, of, machine_of(request.costs), has_pairs, units);
}

// What the columns are that do not say it themselves.
std::string legend(const NarrowedTable& shown, const TableRequest& request) {
  const bool equal_ranks = request.terms == EqualTerms::ranks;
  const bool has_limit = request.memory_limit.has_value();
  const std::pair<std::string_view, std::string_view> lines[] = {
      {"", has_limit ? "*            the shortest of those that fit" : "*            the shortest"},
      {"vs 1f1b", "vs 1f1b      how many times as fast as 1F1B on the same ranks"},
      {"median +-", "median +-    the median of all such runs is so near, with 95 % confidence"},
      {"wins", "wins         in how many runs it is the shortest of those that fit"},
      {"bound",
       "bound        how much longer than the least that any order of its placement can take\n"
       "             that holds no more activations at once"},
      {"bubble", "bubble       idle share of ranks x makespan (DeepSeek's)"},
      {"imbalance", "imbalance    of it, what comes of ranks with unequal work"},
      {"by span", "by span      bubble with the longest rank's span instead (zero-bubble papers')"},
      {"idle/ideal", "idle/ideal   idle over busy time (Megatron-LM's: (P-1)/M for 1F1B)"},
      {"activations", equal_ranks ? "activations  most alive at once on a rank, in its shares of the model"
                                  : "activations  most alive at once on a rank, of stages"},
      {"parameters", equal_ranks ? "parameters   held by a rank, in its shares of the model"
                                 : "parameters   held by a rank, of stages"},
      {"memory", "memory       of the rank that needs most, at its peak"},
      {"of peak", "of peak      model FLOP/s over the peak of all ranks (MFU)"},
      {"closed form",
       "closed form  idle time of the rank that idles most, as published; durations of a\n"
       "             stage, B = I + W the full backward; \"simulated\" is the true one"}};
  std::string text;
  for (const auto& [header, line] : lines) {
    if (shown.has(header)) text += fmt::format("{}\n", line);
  }
  return text;
}

}  // namespace

std::string to_text(const ScheduleTable& table, const TextLayout& layout) {
  NarrowedTable shown{TableColumns(table, layout.bytes).take(), {}};
  if (layout.width > 0) shown.left_out = shown.table.narrow_to(layout.width);
  std::string text = heading(table, layout.bytes) + "\n" + shown.table.to_text() + "\n";
  for (const std::string& note : notes_of(table, shown.has("closed form"))) text += wrapped(note);
  text += legend(shown, table.request);
  if (!shown.left_out.empty()) {
    text += wrapped_list(no_room_text(layout.width), shown.left_out);
  }
  return text;
}

std::string to_markdown(const ScheduleTable& table, const TextLayout& layout) {
  std::string text = heading(table, layout.bytes) + "\n" + TableColumns(table, layout.bytes).take().to_markdown();
  const auto notes = notes_of(table, true);
  if (!notes.empty()) text += "\n";
  for (const std::string& note : notes) text += "- " + note + "\n";
  return text;
}

std::string to_html(const ScheduleTable& table, const TextLayout& layout) {
  std::string text = "<pre>";
  std::istringstream lines(heading(table, layout.bytes));
  for (std::string line; std::getline(lines, line);) text += xml_text(line) + "\n";
  text += "</pre>\n" + TableColumns(table, layout.bytes).take().to_html();
  const auto notes = notes_of(table, true);
  if (notes.empty()) return text;
  text += "<ul>\n";
  for (const std::string& note : notes) text += fmt::format("<li>{}</li>\n", xml_text(note));
  return text + "</ul>\n";
}

}  // namespace dualpipe
