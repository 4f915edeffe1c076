// A file is known by its content, and read as what it is.
#include "dualpipe/sim/schedule/schedule_file.h"

#include <boost/test/unit_test.hpp>
#include <fstream>
#include <sstream>

#include "dualpipe/sim/generate/catalog.h"
#include "dualpipe/sim/schedule/csv.h"
#include "dualpipe/sim/schedule/json.h"
#include "dualpipe/sim/schedule/lower.h"
#include "tests/scratch.h"

namespace dualpipe::test {
namespace {

using Read = std::variant<Schedule, Program>;

template <typename T>
std::string csv_of(const T& each) {
  std::ostringstream out;
  write_csv(out, each);
  return out.str();
}
template <typename T>
std::string json_of(const T& each) {
  std::ostringstream out;
  write_json(out, each);
  return out.str();
}

Read read(const std::string& text, std::optional<int> chains = std::nullopt) {
  std::istringstream in(text);
  return read_schedule(in, "a name without an end", {.chains = chains});
}
std::string error_of(const std::string& text, std::optional<int> chains = std::nullopt) {
  return refusal([&] { static_cast<void>(read(text, chains)); });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(schedule_schedule_file)

BOOST_AUTO_TEST_CASE(the_content_tells_the_format) {
  const Schedule schedule = generate("1f1b", {4, 8});
  const Program program = lower(schedule);
  for (const std::string blanks : {"", " ", "\r\n\t ", "\xef\xbb\xbf"}) {
    BOOST_TEST((std::get<Schedule>(read(blanks + json_of(schedule))) == schedule));
    BOOST_TEST((std::get<Program>(read(blanks + json_of(program))) == program));
  }
  for (const std::string blanks : {"", " ", "\t ", "\xef\xbb\xbf"}) {
    BOOST_TEST((std::get<Schedule>(read(blanks + csv_of(schedule))).ops == schedule.ops));
    BOOST_TEST(std::get<Program>(read(blanks + csv_of(program))).communication.size() == program.communication.size());
  }
}

BOOST_AUTO_TEST_CASE(chains_are_of_csv_files) {
  const Schedule schedule = generate("dualpipe", {4, 8});
  BOOST_TEST((std::get<Schedule>(read(csv_of(schedule), 2)).placement == schedule.placement));
  BOOST_TEST(std::get<Schedule>(read(csv_of(schedule))).placement.chains() == 1);
  BOOST_TEST(error_of(json_of(schedule), 2) ==
             "a name without an end: a JSON file says itself which chains it has; the number of chains (--chains) is "
             "for CSV files");
}

// Blanks that were looked at before count in the places that errors name.
BOOST_AUTO_TEST_CASE(an_error_names_the_place) {
  BOOST_TEST(error_of(" \t0F0,what\n").find("a name without an end:1: column 2: ") == 0U);
  BOOST_TEST(error_of("\n\n {\"format\": x").find("a name without an end:3:") == 0U);
  BOOST_TEST(error_of("").find("a name without an end: the file has no ops") == 0U);
}

BOOST_AUTO_TEST_CASE(a_file_is_loaded) {
  const Scratch scratch;
  const Schedule schedule = generate("dualpipe", {4, 8});
  std::ofstream(scratch / "dualpipe") << csv_of(schedule);
  BOOST_TEST((std::get<Schedule>(load_schedule(scratch / "dualpipe", {.chains = 2})) == schedule));
  const auto refused = [&](const std::string& path) {
    return refusal([&] { static_cast<void>(load_schedule(path)); });
  };
  BOOST_TEST(refused(scratch / "none") == (scratch / "none") + ": cannot be opened: No such file or directory");
  BOOST_TEST(refused(scratch.folder()) == scratch.folder() + ": is a folder, not a file");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
