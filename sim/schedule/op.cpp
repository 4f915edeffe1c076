#include "dualpipe/sim/schedule/op.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

using detail::schedule::quote;

namespace {

constexpr std::array<std::string_view, kind_count> kind_names = {
    "F", "B", "I", "W", "SEND_F", "RECV_F", "SEND_B", "RECV_B", "UNSHARD", "RESHARD", "REDUCE_GRAD"};
constexpr std::string_view overlap = "OVERLAP_F_B";

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_kind_letter(char c) { return (c >= 'A' && c <= 'Z') || c == '_'; }

// Consumes one cell from left to right. Every failure says what stood there and what should have.
class CellParser {
 public:
  explicit CellParser(std::string_view text) : text_(text), rest_(text) {}

  Cell parse() {
    if (rest_.empty()) fail("it is empty; expected an op like 3B7");
    Cell cell;
    if (rest_.front() == '(') {
      cell = pair();
    } else {
      cell.first = op();
    }
    if (!rest_.empty()) fail(fmt::format("unexpected {} after the end of the op", quote(rest_)));
    return cell;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw InputError(fmt::format("{}: {}", quote(text_), what)); }

  Cell pair() {
    take("(");
    const Op first = op();
    take(";");
    const Op second = op();
    take(")");
    take(overlap);
    for (const Op& half : {first, second}) {
      if (!is_compute(half.kind))
        fail(fmt::format("{} cannot be part of a pair, only F, B, I and W can", to_text(half)));
    }
    Cell cell{first, second};
    cell.first.with_next = true;
    return cell;
  }

  Op op() {
    Op result;
    result.stage = static_cast<std::uint16_t>(number("stage", stage_count_max));
    result.kind = kind();
    if (has_micro_batch(result.kind)) result.micro_batch = number("micro-batch", micro_batch_count_max);
    return result;
  }

  // A decimal number below `count`, without a sign and without leading zeros: each op has one spelling.
  std::uint32_t number(std::string_view what, std::uint32_t count) {
    const auto end = std::find_if_not(rest_.begin(), rest_.end(), is_digit);
    const std::string_view digits = rest_.substr(0, static_cast<std::size_t>(end - rest_.begin()));
    if (digits.empty()) fail(fmt::format("expected a {} number, not {}{}", what, found(), remedy_without_number()));
    if (digits.size() > 1 && digits.front() == '0') {
      fail(fmt::format("the {} number {} has leading zeros", what, quote(digits)));
    }
    std::uint32_t value = 0;
    const auto status = std::from_chars(digits.data(), digits.data() + digits.size(), value).ec;
    if (status != std::errc{} || value >= count) {
      fail(fmt::format("the {} number {} is too large, at most {} is possible", what, quote(digits), count - 1));
    }
    rest_.remove_prefix(digits.size());
    return value;
  }

  // What stands where a number should.
  [[nodiscard]] std::string_view remedy_without_number() const {
    if (rest_.starts_with('-')) return "; stages and micro-batches count from 0";
    if (!rest_.empty() && is_kind_letter(rest_.front())) return "; an op is stage, pass and micro-batch, like 3B7";
    return "";
  }

  Kind kind() {
    const auto end = std::find_if_not(rest_.begin(), rest_.end(), is_kind_letter);
    const std::string_view letters = rest_.substr(0, static_cast<std::size_t>(end - rest_.begin()));
    const auto* const match = std::find(kind_names.begin(), kind_names.end(), letters);
    if (match == kind_names.end()) fail_kind(letters);
    rest_.remove_prefix(letters.size());
    return static_cast<Kind>(match - kind_names.begin());
  }

  [[noreturn]] void fail_kind(std::string_view letters) const {
    if (letters == "BW") {
      fail(
          "this is the dialect of older PyTorch versions, which wrote BW for the full backward and B for its "
          "input-gradient half; write B and I instead, or dump the schedule with a newer PyTorch");
    }
    fail(fmt::format("expected one of {}, not {}", fmt::join(kind_names, " "),
                     letters.empty() ? found() : quote(letters)));
  }

  void take(std::string_view token) {
    if (!rest_.starts_with(token)) fail(fmt::format("expected '{}', not {}", token, found()));
    rest_.remove_prefix(token.size());
  }

  [[nodiscard]] std::string found() const { return rest_.empty() ? "the end" : quote(rest_); }

  std::string_view text_;
  std::string_view rest_;
};

}  // namespace

std::string_view name(Kind kind) { return kind_names[static_cast<std::size_t>(kind)]; }

std::string to_text(Op op) {
  std::array<char, 32> buffer;  // "65534REDUCE_GRAD" and "65534SEND_F16777215" fit
  char* const last = buffer.data() + buffer.size();
  char* end = std::to_chars(buffer.data(), last, op.stage).ptr;
  end = std::ranges::copy(name(op.kind), end).out;
  if (has_micro_batch(op.kind)) end = std::to_chars(end, last, op.micro_batch).ptr;
  return {buffer.data(), end};
}

std::string cell_text(std::span<const Op> ops) {
  assert(!ops.empty());
  const bool pair = is_compute(ops[0].kind) && ops[0].with_next && ops.size() > 1;
  if (!pair) return to_text(ops[0]);
  std::string text = "(";
  text += to_text(ops[0]);
  text += ';';
  text += to_text(ops[1]);
  text += ')';
  text += overlap;
  return text;
}

Cell parse_cell(std::string_view text) { return CellParser(text).parse(); }

}  // namespace dualpipe
