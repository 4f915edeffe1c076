#include "dualpipe/sim/schedule/csv_letters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::detail::schedule {
namespace {

constexpr std::string_view old_full = "BW";

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_blank(char c) { return c == ' ' || c == '\t'; }
bool is_small(char c) { return c >= 'a' && c <= 'z'; }

// The cell as PyTorch would write it. A space between two words stays, and is an error.
std::string as_written_by_pytorch(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_blank(text[i])) {
      const auto next = std::find_if_not(text.begin() + static_cast<std::ptrdiff_t>(i), text.end(), is_blank);
      const bool is_between_words = !result.empty() && is_word(result.back()) && next != text.end() && is_word(*next);
      if (!is_between_words) continue;
    }
    result += is_small(text[i]) ? static_cast<char>(text[i] - 'a' + 'A') : text[i];
  }
  return result;
}

// As parse_cell(); of the two errors that there may be, the one of the text as it stands.
Cell parse_either(std::string_view text, std::string_view otherwise) {
  try {
    return parse_cell(otherwise);
  } catch (const InputError&) {
    return parse_cell(text);
  }
}

}  // namespace

Cell LetterReader::parse(std::string_view text, std::size_t line) {
  Cell cell;
  bool is_old_full = false;
  if (std::ranges::any_of(text, [](char c) { return is_small(c) || is_blank(c); }) ||
      (letters_ != Letters::current && text.find(old_full) != std::string_view::npos)) {
    std::string written = as_written_by_pytorch(text);
    const auto at = written.find(old_full);
    is_old_full = letters_ != Letters::current && at != std::string::npos;
    if (is_old_full) written.erase(at + 1, 1);
    cell = parse_either(text, written);
  } else {
    cell = parse_cell(text);
  }
  see(cell.first, text, line, is_old_full);
  if (cell.second) see(*cell.second, text, line, is_old_full);
  return cell;
}

void LetterReader::see(Op op, std::string_view text, std::size_t line, bool is_old_full) {
  if (!is_compute(op.kind)) return;
  const std::size_t number = ops_++;
  has_weights_ = has_weights_ || op.kind == Kind::weight_gradient;
  if (is_old_full && op.kind == Kind::backward) {
    old_full_.push_back(number);
    if (!old_) old_ = {std::string(text), line};
  }
  if (op.kind == Kind::input_gradient && !current_) current_ = {std::string(text), line};
  if (!current_) return;
  if (letters_ == Letters::old) {
    throw InputError(
        fmt::format("{} has the letter I, which PyTorch's old letters (--letters old) do not have", current_->op));
  }
  if (!old_) return;
  throw InputError(
      fmt::format("{} in line {} has PyTorch's old letters, where B is the input-gradient half, and {} in line {} the "
                  "current ones, where that is I; a file must keep to either",
                  old_->op, old_->line, current_->op, current_->line));
}

// Whether B may be either: not written BW, and not of a pair, whose backward is always a full one.
bool LetterReader::is_plain(const Schedule& schedule, std::size_t op) const {
  const bool is_in_pair = schedule.ops[op].with_next || (op > 0 && schedule.ops[op - 1].with_next);
  return !is_in_pair && !std::ranges::binary_search(old_full_, op);
}

LetterReader::Backwards LetterReader::backwards_of(const Schedule& schedule) const {
  Backwards found;
  if (!has_weights_) return found;
  std::vector<bool> has_weight(schedule.placement.rank_of.size() * schedule.micro_batches);
  const auto at = [&](Op op) { return std::size_t{op.stage} * schedule.micro_batches + op.micro_batch; };
  for (const Op op : schedule.ops) {
    if (op.kind == Kind::weight_gradient) has_weight[at(op)] = true;
  }
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    Op op = schedule.ops[i];
    if (op.kind != Kind::backward || !is_plain(schedule, i)) continue;
    ++found.all;
    if (!has_weight[at(op)]) continue;
    op.kind = Kind::weight_gradient;
    if (found.with_weight++ == 0) found.a_weight = op;
  }
  return found;
}

std::string LetterReader::settle(Schedule& schedule) const {
  if (letters_ == Letters::current || current_) return {};
  const Backwards backwards = backwards_of(schedule);
  const bool is_old = letters_ == Letters::old || old_ || 2 * backwards.with_weight > backwards.all;
  const auto share = [&] {
    return backwards.with_weight == backwards.all
               ? "every B has a W of its own"
               : fmt::format("{} of {} B have a W of their own, as {} is one", backwards.with_weight, backwards.all,
                             to_text(backwards.a_weight));
  };
  if (!is_old) {
    if (backwards.with_weight == 0) return {};
    return fmt::format("{}: {}; B is read as the full backward (--letters old: as I, its input-gradient half)", source_,
                       share());
  }
  for (std::size_t i = 0; i < schedule.ops.size(); ++i) {
    Op& op = schedule.ops[i];
    if (op.kind == Kind::backward && is_plain(schedule, i)) op.kind = Kind::input_gradient;
  }
  if (letters_ == Letters::old) return {};  // as the user said
  return fmt::format(
      "{}: PyTorch's old letters, as {}: B is read as I, the input-gradient half{} (--letters new: as the "
      "full backward)",
      source_, old_ ? fmt::format("line {} has {}", old_->line, old_->op) : share(), old_ ? ", and BW as B" : "");
}

}  // namespace dualpipe::detail::schedule
