#include "tests/trace/perfetto.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <regex>
#include <set>
#include <sstream>
#include <tuple>

#include "tests/support.h"

namespace dualpipe::test::perfetto {
namespace {

using Json = nlohmann::json;

// Microseconds with three decimals, back to nanoseconds.
Time nanoseconds(const Json& microseconds) { return std::llround(microseconds.get<double>() * 1000); }

}  // namespace

Trace::Trace(const std::string& text) : text_(text) {
  const Json document = Json::parse(text);
  BOOST_TEST(document.size() == 1U);
  for (const Json& event : document.at("traceEvents")) read(event);
  check_text();
  check_names();
  check_nesting();
  check_arrows();
}

std::vector<std::string> Trace::rows() const {
  std::vector<std::string> rows;
  for (const auto& [track, name] : threads) rows.push_back(name);
  return rows;
}

std::vector<Slice> Trace::in_row(std::string_view row) const {
  std::vector<Slice> found;
  for (const Slice& slice : slices) {
    if (threads.at(slice.track) == row) found.push_back(slice);
  }
  return found;
}

std::vector<Slice> Trace::in_lane(int rank, std::string_view lane) const {
  return in_row(fmt::format("rank {:02} {}", rank, lane));
}

void Trace::read(const Json& event) {
  ++line_;
  const std::string phase = event.at("ph");
  const int pid = event.at("pid");
  const Track track{pid, event.value("tid", 0)};
  if (phase == "M") return read_name(event, track);
  const Time time = nanoseconds(event.at("ts"));
  if (phase == "C") {
    BOOST_TEST(event.at("args").size() == 1U);
    const auto arg = event.at("args").begin();
    counters[event.at("name").get<std::string>() + " " + arg.key()].emplace_back(time, arg->get<std::int64_t>());
    return;
  }
  BOOST_TEST(track.second >= 1);
  BOOST_TEST(track.second != pid);
  if (phase == "X") {
    const Span span{time, time + nanoseconds(event.at("dur"))};
    BOOST_TEST(span.start <= span.end);
    slices.push_back({track, span, event.at("name"), event.at("args"), line_});
  } else {
    BOOST_REQUIRE_MESSAGE(phase == "s" || phase == "f", event);
    BOOST_TEST(event.at("id").is_number_integer());
    (phase == "s" ? starts_ : finishes_).push_back({track, time, event, line_});
  }
}

void Trace::read_name(const Json& event, Track track) {
  const std::string name = event.at("name");
  if (name == "process_name") BOOST_TEST(processes.emplace(track.first, event["args"].at("name")).second);
  if (name == "thread_name") BOOST_TEST(threads.emplace(track, event["args"].at("name")).second);
  if (name == "thread_sort_index") BOOST_TEST(event["args"].at("sort_index") == track.second);
}

void Trace::check_text() const {
  // ts and dur come from integers, with three decimals.
  static const std::regex time("\"(ts|dur)\":([^,}]*)");
  static const std::regex exact("-?[0-9]+\\.[0-9]{3}");
  std::istringstream in(text_);
  for (std::string line; std::getline(in, line);) {
    for (std::sregex_iterator i(line.begin(), line.end(), time), end; i != end; ++i) {
      BOOST_TEST(std::regex_match((*i)[2].str(), exact), i->str());
    }
  }
}

void Trace::check_names() const {
  // The colour is a hash of the name without its numbers at the end.
  static const std::regex name(
      "(F'*|B'*|I'*|W'*|F'*&B'* [0-9]+|(SEND|RECV)_[FB]'*|REDUCE_GRAD'*) [0-9]+"
      "|[a-z]+( dW)? [0-9]+([FBIW]|RECV_[FB])[0-9]+"  // a part
      "|((F|B|I|W|F&B) else|[a-z])[a-z -]+");         // what an explanation adds: causes, transfers, launches
  for (const Slice& slice : slices) {
    BOOST_TEST(std::regex_match(slice.name, name), slice.name);
    BOOST_TEST(threads.contains(slice.track));
    BOOST_TEST(processes.contains(slice.track.first));
  }
}

// In one track, slices are disjoint; touching is fine.
void Trace::check_nesting() const {
  std::map<Track, std::vector<Slice>> tracks;
  for (const Slice& slice : slices) tracks[slice.track].push_back(slice);
  for (auto& [track, all] : tracks) {
    std::sort(all.begin(), all.end(), [](const Slice& a, const Slice& b) {
      return std::tuple(a.span.start, a.span.end) < std::tuple(b.span.start, b.span.end);
    });
    for (std::size_t i = 1; i < all.size(); ++i) {
      BOOST_TEST(all[i - 1].span.end <= all[i].span.start,
                 all[i - 1].name << " " << all[i - 1].span << " overlaps " << all[i].name << " " << all[i].span);
    }
  }
}

// The slice that is open at that time, and written before.
std::optional<Slice> Trace::open_at(const End& end) const {
  for (const Slice& slice : slices) {
    if (slice.track != end.track || slice.line > end.line) continue;
    if (slice.span.start <= end.time && end.time < slice.span.end) return slice;
  }
  return std::nullopt;
}

void Trace::check_arrows() {
  BOOST_TEST(starts_.size() == finishes_.size());
  std::set<std::int64_t> ids;
  for (std::size_t i = 0; i < std::min(starts_.size(), finishes_.size()); ++i) {
    const End& start = starts_[i];
    const End& finish = finishes_[i];
    for (const char* key : {"id", "cat", "name"}) BOOST_TEST(start.event.at(key) == finish.event.at(key));
    BOOST_TEST(ids.insert(start.event.at("id").get<std::int64_t>()).second);
    BOOST_TEST(finish.event.at("bp") == "e");
    BOOST_TEST(start.time <= finish.time);
    BOOST_TEST(start.line < finish.line);
    const auto from = open_at(start);
    const auto to = open_at(finish);
    BOOST_TEST(from.has_value());
    BOOST_TEST(to.has_value());
    if (from && to) arrows.push_back({*from, *to});
  }
}

}  // namespace dualpipe::test::perfetto
