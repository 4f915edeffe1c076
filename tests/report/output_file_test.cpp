#include "dualpipe/sim/report/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "tests/scratch.h"

namespace dualpipe::test {
namespace {

namespace fs = std::filesystem;

void write(const std::string& path, const std::string& text, Durable durable = Durable::no) {
  write_output_file(
      path, [&](std::ostream& out) { out << text; }, durable);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(report_output_file)

BOOST_AUTO_TEST_CASE(a_file_is_made_and_replaced) {
  for (const Durable durable : {Durable::no, Durable::yes}) {
    const Scratch scratch;
    write(scratch / "a", "one", durable);
    BOOST_TEST(bytes_of(scratch / "a") == "one");
    write(scratch / "a", "2", durable);
    BOOST_TEST(bytes_of(scratch / "a") == "2");
    BOOST_TEST(scratch.files().size() == 1U);
  }
}

BOOST_AUTO_TEST_CASE(who_reads_it_sees_the_old_or_the_new) {
  const Scratch scratch;
  write(scratch / "a", "old");
  write_output_file(scratch / "a", [&](std::ostream& out) {
    out << std::string(100'000, 'n') << std::flush;
    BOOST_TEST(bytes_of(scratch / "a") == "old");
  });
  BOOST_TEST(bytes_of(scratch / "a").size() == 100'000U);
}

BOOST_AUTO_TEST_CASE(a_failure_leaves_all_as_it_was) {
  const Scratch scratch;
  const auto fails = [](std::ostream& out) {
    out << "half" << std::flush;
    throw std::runtime_error("no more");
  };
  BOOST_CHECK_THROW(write_output_file(scratch / "a", fails), std::runtime_error);
  BOOST_TEST(scratch.files().size() == 0U);
  write(scratch / "a", "old");
  BOOST_CHECK_THROW(write_output_file(scratch / "a", fails), std::runtime_error);
  BOOST_TEST(bytes_of(scratch / "a") == "old");
  BOOST_TEST(scratch.files().size() == 1U);
}

// Killed in the instant when what it wrote has a name, but not yet that of the file.
BOOST_AUTO_TEST_CASE(what_a_killed_process_left_is_removed_by_the_next_of_its_number) {
  for (const Durable durable : {Durable::no, Durable::yes}) {
    const Scratch scratch;
    write(scratch / "a", "old");
    std::ofstream(scratch / ("a." + std::to_string(getpid()) + ".part")) << "what was to be next";
    write(scratch / "a", "new", durable);
    BOOST_TEST(bytes_of(scratch / "a") == "new");
    BOOST_TEST(scratch.files().size() == 1U);
  }
}

BOOST_AUTO_TEST_CASE(a_link_stays_one) {
  const Scratch scratch;
  fs::create_directory(scratch / "elsewhere");
  write(scratch / "elsewhere/a", "old");
  fs::create_symlink("elsewhere/a", scratch / "link");
  write(scratch / "link", "new");
  BOOST_TEST(fs::is_symlink(scratch / "link"));
  BOOST_TEST(bytes_of(scratch / "elsewhere/a") == "new");
}

BOOST_AUTO_TEST_CASE(a_link_to_what_is_not_there_yet_stays_one) {
  const Scratch scratch;
  fs::create_directory(scratch / "elsewhere");
  fs::create_symlink("elsewhere/a", scratch / "link");
  fs::create_symlink(scratch / "link", scratch / "link to link");
  write(scratch / "link to link", "new");
  BOOST_TEST(fs::is_symlink(scratch / "link to link"));
  BOOST_TEST(fs::is_symlink(scratch / "link"));
  BOOST_TEST(bytes_of(scratch / "elsewhere/a") == "new");

  fs::create_symlink("none/a", scratch / "broken");
  const std::string expected = "cannot write " + (scratch / "broken") + ": No such file or directory";
  BOOST_TEST(refusal([&] { check_output_file(scratch / "broken"); }) == expected);
  BOOST_TEST(refusal([&] { write(scratch / "broken", "text"); }) == expected);
  BOOST_TEST(fs::is_symlink(scratch / "broken"));
}

// As /dev/stdout is where standard output goes to a file: what is moved to its name hides all else that was written.
BOOST_AUTO_TEST_CASE(a_file_that_is_open_is_not_replaced) {
  const Scratch scratch;
  write(scratch / "log", "so far");
  const int file = open((scratch / "log").c_str(), O_WRONLY | O_APPEND);
  fs::create_symlink("/proc/self/fd/" + std::to_string(file), scratch / "link");
  for (const std::string& path : {"/dev/fd/" + std::to_string(file), scratch / "link"}) {
    const std::string expected =
        "cannot write " + path + ": is a file that is open already; give its name, or - for standard output";
    BOOST_TEST(refusal([&] { check_output_file(path); }) == expected);
    BOOST_TEST(refusal([&] { write(path, "text"); }) == expected);
  }
  close(file);
  BOOST_TEST(bytes_of(scratch / "log") == "so far");
}

BOOST_AUTO_TEST_CASE(its_mode_is_that_of_any_new_file) {
  const Scratch scratch;
  const mode_t before = umask(027);
  write(scratch / "a", "text");
  umask(before);
  BOOST_TEST((fs::status(scratch / "a").permissions() == fs::perms{0640}));
}

BOOST_AUTO_TEST_CASE(devices_are_written_to) {
  BOOST_TEST(refusal([] { write("/dev/null", "text", Durable::yes); }) == "");
  BOOST_TEST(refusal([] { write("/dev/full", "text"); }) == "cannot write /dev/full: No space left on device");
  BOOST_TEST(fs::is_character_file("/dev/full"));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_written_is_known_before) {
  const Scratch scratch;
  for (const auto& each :
       {std::pair(scratch.folder(), "is a folder"), std::pair(scratch / "none/a", "No such file or directory")}) {
    const std::string& path = each.first;  // Clang 14 lets no lambda capture a structured binding
    const std::string expected = "cannot write " + path + ": " + each.second;
    BOOST_TEST(refusal([&] { check_output_file(path); }) == expected);
    BOOST_TEST(refusal([&] { write(path, "text"); }) == expected);
  }
  BOOST_TEST(refusal([&] { check_output_file(scratch / "a"); }) == "");
  BOOST_TEST(refusal([&] { check_output_file("/dev/full"); }) == "");
  BOOST_TEST(scratch.files().size() == 0U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
