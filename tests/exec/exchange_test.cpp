// What other processes bring to a training is not trusted: a process that is not what it says it is ends the run with
// an error that names it, and never by reading what is not there.
#include "dualpipe/exec/train/exchange.h"

#include <boost/test/unit_test.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dualpipe/exec/train/records.h"
#include "dualpipe/exec/train/reference.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/pack.h"
#include "tests/exec/training.h"
#include "tests/support.h"

namespace dualpipe::test {

using detail::train::FailedStep;
using detail::train::gather_records;
using detail::train::hand_over_records;
using detail::train::pack;
using detail::transport::Packer;

namespace {

// Process 0 of two. Process 1 brings what process 0 does, or what `spoil` makes of that.
class World0 final : public World {
 public:
  using Spoil = std::function<std::string(const std::string& place, std::string part)>;
  explicit World0(Spoil spoil) : World(0, 2), spoil_(std::move(spoil)) {}

  [[nodiscard]] std::string_view transport() const override { return "none"; }
  [[nodiscard]] std::vector<std::string> all_gather(const std::string& place, std::string part) override {
    return {part, spoil_(place, part)};
  }
  [[nodiscard]] std::vector<std::optional<std::string>> hand_over(std::string part) override {
    return {part, spoil_("the end", part)};
  }
  [[nodiscard]] std::vector<std::string> end(const Ending&) override { return {}; }
  [[nodiscard]] bool close() override { return true; }

 protected:
  // Both ranks are threads of this process, of which train() runs one.
  [[nodiscard]] std::vector<std::unique_ptr<Transport>> make_transports(const Placement& placement,
                                                                        const TransportOptions& options) override {
    return thread_transports(placement, options);
  }

 private:
  Spoil spoil_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const TransportError& error) {
    return error.what();
  }
  return "no error";
}

// The records of a rank of this program that has run.
RankRecord whole(const Program& program, int rank) {
  RankRecord record;
  record.ops.resize(program.schedule.rank(rank).size());
  record.waited.resize(record.ops.size());
  record.done = record.ops.size();
  for (std::size_t slot = 0; slot <= record.ops.size(); ++slot) {
    record.communication.resize(record.communication.size() + program.slot(rank, slot).size());
  }
  return record;
}

std::string packed(const RankRecord& record) {
  Packer packer;
  pack(packer, record, 0);
  return packer.take();
}

BOOST_AUTO_TEST_SUITE(exec_exchange)

BOOST_AUTO_TEST_CASE(records_of_a_peer_are_those_of_the_program) {
  const Program program = program_of("1f1b", 2);
  const auto error = [&](const std::function<void(RankRecord&)>& spoil, const std::string& behind = "") {
    World0 world([&](const std::string&, const std::string&) {
      RankRecord record = whole(program, 1);
      spoil(record);
      return packed(record) + behind;
    });
    RankRecords records = {whole(program, 0), {}};
    return error_of([&] { gather_records(world, program, records); });
  };
  const std::string start = "the records of all ranks: process 1 brings what cannot be read: ";
  const std::string sizes = start + "the record of rank 1 has ";
  BOOST_TEST(error([](RankRecord&) {}) == "no error");
  BOOST_TEST(error([](RankRecord& record) { record = {}; }) == "no error");  // not begun
  BOOST_TEST(error([](RankRecord&) {}, "x") == start + "another process sent more than was expected");
  BOOST_TEST(error([](RankRecord& record) { record.ops.pop_back(); }).starts_with(sizes));
  BOOST_TEST(error([](RankRecord& record) { record.waited.clear(); }).starts_with(sizes));
  BOOST_TEST(error([](RankRecord& record) { record.communication.pop_back(); }).starts_with(sizes));
  BOOST_TEST(error([](RankRecord& record) { record.memory.resize(1); }).starts_with(sizes));
  BOOST_TEST(error([](RankRecord& record) { record.done = 9; }) ==
             sizes + "8 ops, of which 9 are done, and 8 messages, and the program 8 and 8");
}

// Two ranks without a message between them: process 0 can do its part alone.
Program two_chains() {
  Placement placement = straight(2, 1);
  placement.chain_begin = {0, 1, 2};
  return program_of(placement, {"0F0 0B0", "1F0 1B0"});
}

BOOST_AUTO_TEST_CASE(a_peer_that_brings_too_little_or_too_much_ends_a_training) {
  const Program program = two_chains();
  for (const std::string place : {"nowhere", "the start of the training", "the check of the gradients",
                                  "the end of step 1", "the end of the training"}) {
    for (const bool too_much : {false, true}) {
      World0 world([&](const std::string& here, std::string part) {
        if (here == place && too_much) part += "more";
        if (here == place && !too_much) part.pop_back();
        return part;
      });
      const std::string error =
          error_of([&] { static_cast<void>(checked(world, program, two_steps(program, "mlp"))); });
      BOOST_TEST(error == (place == "nowhere"
                               ? "no error"
                               : place + ": process 1 brings what cannot be read: another process sent " +
                                     (too_much ? "more" : "less") + " than was expected"));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_peer_that_hands_over_something_else_has_done_nothing) {
  const Program program = program_of("1f1b", 2);
  const Program none;
  const auto handed_over = [&](const std::function<std::string(std::string)>& spoil) {
    World0 world([&](const std::string&, const std::string&) {
      Packer packer;
      packer.put(3);
      packer.put(false);
      return spoil(packer.take() + packed(whole(program, 1)));
    });
    return hand_over_records(world, program, none, {3, &program, {whole(program, 0), {}}});
  };
  const FailedStep sound = handed_over([](std::string part) { return part; });
  BOOST_TEST(sound.records[1].done == sound.records[1].ops.size());
  BOOST_TEST(!sound.records[1].ops.empty());
  const FailedStep torn = handed_over([](std::string part) { return part.substr(0, part.size() / 2); });
  const FailedStep empty = handed_over([](std::string) { return ""; });
  const FailedStep of_another = handed_over([](std::string part) {
    part[4] = 1;  // of a program that there is not: the one there is stands for it
    return part;
  });
  for (const FailedStep& step : {torn, empty, of_another}) {
    BOOST_TEST(step.step == 3);
    BOOST_TEST(step.program == &program);
    BOOST_TEST(step.records[0].done == step.records[0].ops.size());
  }
  BOOST_TEST(torn.records[1].ops.empty());
  BOOST_TEST(empty.records[1].ops.empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
