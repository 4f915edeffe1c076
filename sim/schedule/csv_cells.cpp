#include "dualpipe/sim/schedule/csv_cells.h"

#include <fmt/format.h>

#include <algorithm>
#include <istream>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/op.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe::detail::schedule {
namespace {

// The longest op has 42 characters; the rest is room for quotes and spaces.
constexpr std::size_t cell_length_max = 128;
constexpr std::size_t comment_length_max = std::size_t{1} << 16U;

constexpr bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

CellReader::CellReader(std::istream& in, const std::string& source) : in_(in), source_(source) {
  fill();
  if (buffered().starts_with("\xef\xbb\xbf")) begin_ += 3;  // a byte order mark, as Windows writes it
  if (buffered().starts_with("\xff\xfe") || buffered().starts_with("\xfe\xff")) {  // what PowerShell's > writes
    throw InputError(fmt::format("{}: the file is UTF-16; save it as UTF-8, or plain ASCII", source_));
  }
}

std::optional<CellReader::Text> CellReader::next() {
  if (is_at_comment_) skip_comment();
  if (ends_row_) start_row();
  ++column_;
  if (end_ - begin_ <= cell_length_max) fill();
  if (begin_ == end_ && column_ == 1) return std::nullopt;
  if (++cells_ > op_count_max) fail(fmt::format("more than {} cells", op_count_max));
  const std::string_view ahead = buffered().substr(0, cell_length_max + 1);
  const auto end = std::ranges::find_if(ahead, [](char c) { return c == ',' || c == '\n' || c == '#'; });
  const bool ends_file = end == ahead.end();
  if (ends_file && ahead.size() > cell_length_max) {
    fail(fmt::format("{}: the cell has more than {} characters; expected an op like 3B7", quote(ahead),
                     cell_length_max));
  }
  const auto length = static_cast<std::size_t>(end - ahead.begin());
  begin_ += ends_file ? length : length + 1;
  is_at_comment_ = !ends_file && *end == '#';
  ends_row_ = ends_file || *end != ',';
  const std::string_view text = unquoted(trimmed(ahead.substr(0, length)));
  return Text{text, ends_row_, is_at_comment_ && column_ == 1 && text.empty()};
}

void CellReader::fail(std::string_view what) const {
  throw InputError(fmt::format("{}:{}: column {}: {}", source_, line_, column_, what));
}

void CellReader::start_row() {
  ++line_;
  column_ = 0;
  ends_row_ = false;
}

void CellReader::fill() {
  std::ranges::copy(buffered(), buffer_.begin());
  end_ -= begin_;
  begin_ = 0;
  if (!in_.good()) return;
  in_.read(buffer_.data() + end_, static_cast<std::streamsize>(buffer_.size() - end_));
  end_ += static_cast<std::size_t>(in_.gcount());
  if (in_.bad()) throw InputError(fmt::format("{}: cannot be read", source_));
}

// Up to the end of its line. The cell before it is read by now.
void CellReader::skip_comment() {
  is_at_comment_ = false;
  fill();
  for (std::size_t length = 0; begin_ != end_; fill()) {
    const auto end = buffered().find('\n');
    const std::size_t taken = std::min(end, buffered().size());
    begin_ += taken;
    if (end != std::string_view::npos) {
      ++begin_;
      return;
    }
    length += taken;
    if (length > comment_length_max) fail(fmt::format("the comment has more than {} characters", comment_length_max));
  }
}

// Python's csv module may put a cell into quotes, and its lists print with single ones. No op holds a comma or a quote,
// so no quoted cell does.
std::string_view CellReader::unquoted(std::string_view text) const {
  if (!text.starts_with('"') && !text.starts_with('\'')) return text;
  if (text.size() < 2 || text.back() != text.front()) fail(fmt::format("{}: the quote is not closed", quote(text)));
  return trimmed(text.substr(1, text.size() - 2));
}

}  // namespace dualpipe::detail::schedule
