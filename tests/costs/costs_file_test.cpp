#include "dualpipe/sim/costs/costs_file.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "tests/scratch.h"
#include "tests/support.h"

namespace dualpipe {
namespace {

GivenCosts read(const std::string& text) {
  std::istringstream in(text);
  return read_costs(in, "f.json");
}

std::string written(const GivenCosts& costs) {
  std::ostringstream out;
  write_costs(out, costs);
  return out.str();
}

std::string refusal(const std::string& text) {
  return test::refusal([&] { static_cast<void>(read(text)); });
}

const std::string header = R"({"format": "dualpipe-costs", "version": 1, )";
const std::string stage = R"({"forward_ns": 1, "backward_ns": 2, "input_gradient_ns": 1, "weight_gradient_ns": 1})";

const std::string part = R"({"forward_ns": 3, "backward_ns": 4, "input_gradient_ns": 2, "weight_gradient_ns": 2})";

// The refusal of a short file that has these keys, too.
std::string refusal_of(const std::string& keys) {
  return refusal(header + "\"stages\": [" + stage + "], " + keys + "}");
}
std::string refusal_of_stage(const std::string& object) { return refusal(header + "\"stages\": [" + object + "]}"); }

BOOST_AUTO_TEST_SUITE(costs_costs_file)

BOOST_AUTO_TEST_CASE(reads_what_the_header_shows) {
  const auto costs = std::get<Costs>(read(
      R"({"format": "dualpipe-costs", "version": 1,
          "stages": [{"forward_ns": 1000, "backward_ns": 2000, "input_gradient_ns": 1001, "weight_gradient_ns": 1002,
                      "recompute_ns": 1003, "overlapped_ns": 2500,
                      "activation_bytes": 1, "weight_stash_bytes": 2, "message_bytes": 3,
                      "forward_workspace_bytes": 4, "backward_workspace_bytes": 5, "input_gradient_workspace_bytes": 6,
                      "weight_gradient_workspace_bytes": 7, "overlapped_workspace_bytes": 8,
                      "parameter_bytes": 9, "gradient_bytes": 10, "optimizer_bytes": 11,
                      "recompute_activation_bytes": 0}],
          "communication": "links", "latency_ns": 500, "bandwidth_bytes_per_s": 5e10, "launch_ns": 7,
          "speed": [1, 1, 0.5, 1], "jitter": 0.05, "seed": 18446744073709551615, "release_early": true})"));
  Costs expected;
  expected.stages = {{1000, 2000, 1001, 1002, 1003, 2500, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0}};
  expected.model = CommunicationModel::links;
  expected.latency = 500;
  expected.bandwidth = 5e10;
  expected.launch = 7;
  expected.speed = {1, 1, 0.5, 1};
  expected.jitter = 0.05;
  expected.seed = std::numeric_limits<std::uint64_t>::max();
  expected.release_early = true;
  BOOST_TEST((costs == expected));
}

BOOST_AUTO_TEST_CASE(all_but_the_durations_may_be_left_out) {
  Costs expected;
  expected.stages = {{1, 2, 1, 1, 0, std::nullopt, 0, 0, 0, 0, 0, 0, 0, std::nullopt, 0, 0, 0, std::nullopt}};
  BOOST_TEST((read(header + "\"stages\": [" + stage + "]}") == GivenCosts(expected)));
}

BOOST_AUTO_TEST_CASE(an_entry_may_stand_for_several) {
  const std::string alike = R"({"count": 3, )" + stage.substr(1);
  const std::string other = R"({"forward_ns": 9, "backward_ns": 2, "input_gradient_ns": 1, "weight_gradient_ns": 1})";
  const auto costs = std::get<ModelCosts>(read(header + "\"parts\": [" + other + ", " + alike + "]}"));
  BOOST_REQUIRE(costs.parts.size() == 4);
  BOOST_TEST(costs.parts[0].forward == 9);
  for (const std::size_t i : {1U, 2U, 3U}) BOOST_TEST(costs.parts[i].forward == 1);
  BOOST_TEST(written(costs).find("{\"count\": 3, \"forward_ns\": 1,") != std::string::npos);
  BOOST_TEST((read(written(costs)) == GivenCosts(costs)));
  BOOST_TEST(refusal_of_stage(R"({"count": 0, )" + stage.substr(1)) ==
             "f.json: stages[0].count: expected a whole number from 1 to 65535, not 0");
  BOOST_TEST(refusal_of_stage(R"({"count": 65535, )" + stage.substr(1) + ", " + stage) ==
             "f.json: stages: more than 65535 of them");
}

BOOST_AUTO_TEST_CASE(whole_numbers_may_have_an_exponent) {
  const auto costs =
      std::get<Costs>(read(header + "\"latency_ns\": 2e6, \"launch_ns\": 3.0, \"stages\": [" + stage + "]}"));
  BOOST_TEST(costs.latency == 2'000'000);
  BOOST_TEST(costs.launch == 3);
}

BOOST_AUTO_TEST_CASE(random_costs_round_trip) {
  test::Random random(3);
  for (int i = 0; i < 300; ++i) {
    const auto model = static_cast<CommunicationModel>(random.between(0, 2));
    Costs costs = test::random_costs(random, straight(static_cast<int>(random.between(1, 5)), 1), model);
    costs.bandwidth =
        std::ldexp(static_cast<double>(random.between(0, 1LL << 53)), static_cast<int>(random.between(-80, 80)));
    costs.jitter = static_cast<double>(random.between(0, 999'999)) / 1e6;
    costs.speed.assign(static_cast<std::size_t>(random.between(0, 4)), 1.0 / 3 + static_cast<double>(i));
    costs.seed = random.next();
    costs.release_early = random.one_in(2);
    BOOST_REQUIRE((read(written(costs)) == GivenCosts(costs)));
  }
}

BOOST_AUTO_TEST_CASE(the_limits_are_taken) {
  Costs costs;
  costs.stages = {{time_max, time_max, time_max, time_max, time_max, time_max, bytes_max, 0, 0, 0, 0, 0, 0, bytes_max,
                   0, 0, bytes_max, std::nullopt}};
  costs.latency = time_max;
  costs.bandwidth = std::numeric_limits<double>::max();
  costs.launch = time_max;
  costs.speed = {1e6, 1e-6};
  costs.jitter = std::nextafter(1.0, 0.0);
  check(costs, straight(2, 1));
  BOOST_TEST((read(written(costs)) == GivenCosts(costs)));
}

BOOST_AUTO_TEST_CASE(values_that_do_not_fit_are_named) {
  const struct {
    std::string keys;
    std::string error;
  } cases[] = {
      {R"("latency_ns": -1)", "f.json: latency_ns: expected a whole number from 0 to 86400000000000, not -1"},
      {R"("latency_ns": 86400000000001)",
       "f.json: latency_ns: expected a whole number from 0 to 86400000000000, not 86400000000001"},
      {R"("latency_ns": 0.5)", "f.json: latency_ns: expected a whole number from 0 to 86400000000000"},
      {R"("latency_ns": "5")", "f.json: latency_ns: expected a whole number from 0 to 86400000000000, not string"},
      {R"("latency": 5)",
       "f.json: latency: unknown key; 'dualpipe-costs' has format, version, estimate, stages, parts, cut, "
       "communication, "
       "latency_ns, bandwidth_bytes_per_s, launch_ns, speed, jitter, seed, release_early"},
      {R"("communication": "nccl")",
       "f.json: communication: 'nccl' is no communication model; there are latency, links, stream"},
      {R"("bandwidth_bytes_per_s": -1)",
       "f.json: bandwidth_bytes_per_s: the bandwidth must be a finite number of bytes per second, or 0 for infinite; "
       "-1 "
       "is not"},
      {R"("bandwidth_bytes_per_s": 1e400)", "f.json: bandwidth_bytes_per_s: the number '1e400' is too large"},
      {R"("speed": 1)", "f.json: speed: expected a list, not number"},
      {R"("speed": [1, 0])", "f.json: speed[1]: a speed must be from 1e-6 to 1e6; 0 is not"},
      {R"("speed": [1000001])", "f.json: speed[0]: a speed must be from 1e-6 to 1e6; 1000001 is not"},
      {R"("speed": [null])", "f.json: speed[0]: expected a number, not null"},
      {R"("jitter": 1)", "f.json: jitter: the jitter must be at least 0 and below 1; 1 is not"},
      {R"("jitter": -0.1)", "f.json: jitter: the jitter must be at least 0 and below 1; -0.1 is not"},
      {R"("seed": -1)", "f.json: seed: expected a whole number from 0 to 2^64 - 1"},
      {R"("release_early": 1)", "f.json: release_early: expected true or false, not number"},
  };
  for (const auto& [keys, error] : cases) BOOST_TEST(refusal_of(keys) == error);
  BOOST_TEST(refusal_of(R"("jitter": NaN)").find("syntax error") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(stages_that_do_not_fit_are_named) {
  BOOST_TEST(refusal(header + "\"seed\": 1}") == "f.json: \"parts\" or \"stages\" is missing");
  BOOST_TEST(refusal(header + "\"stages\": []}") ==
             "f.json: stages: it is empty; give one entry for all stages, or one for each");
  BOOST_TEST(refusal_of_stage("7") == "f.json: stages[0]: expected an object, not number");
  BOOST_TEST(refusal_of_stage("{}") == "f.json: stages[0]: \"forward_ns\" is missing");
  BOOST_TEST(refusal_of_stage(stage + ", " + R"({"forward_ns": 5})") ==
             "f.json: stages[1]: \"backward_ns\" is missing");
  BOOST_TEST(refusal_of_stage(R"({"forward": 1})") ==
             "f.json: stages[0]: unknown key 'forward'; known are count, forward_ns, backward_ns, input_gradient_ns, "
             "weight_gradient_ns, recompute_ns, overlapped_ns, activation_bytes, weight_stash_bytes, message_bytes, "
             "forward_workspace_bytes, backward_workspace_bytes, input_gradient_workspace_bytes, "
             "weight_gradient_workspace_bytes, parameter_bytes, gradient_bytes, optimizer_bytes, "
             "recompute_activation_bytes, overlapped_workspace_bytes");
  BOOST_TEST(refusal_of_stage(R"({"forward_ns": 1, "forward_ns": 1})") ==
             "f.json: stages[0].forward_ns: is there twice");
  BOOST_TEST(refusal_of_stage(R"({"forward_ns": -5})") ==
             "f.json: stages[0].forward_ns: expected a whole number from 0 to 86400000000000, not -5");
  BOOST_TEST(refusal_of_stage(stage.substr(0, stage.size() - 1) + R"(, "activation_bytes": 1152921504606846977})") ==
             "f.json: stages[0].activation_bytes: expected a whole number from 0 to 1152921504606846976, not "
             "1152921504606846977");
}

BOOST_AUTO_TEST_CASE(no_beginning_of_a_file_is_a_file) {
  const std::string text = header + "\"stages\": [" + stage + "]}";
  for (std::size_t length = 0; length < text.size(); ++length) BOOST_TEST(!refusal(text.substr(0, length)).empty());
  BOOST_TEST(refusal(header + "\"stages\": " + std::string(200'000, '[')).find("nested too deeply") !=
             std::string::npos);
  BOOST_TEST(refusal(R"({"format": "dualpipe-costs", "version": 9, "new_key": 1})") ==
             "f.json: version: made by a newer version: this one reads up to 1");
}

BOOST_AUTO_TEST_CASE(parts_of_a_model_are_read) {
  ModelCosts expected;
  expected.parts.resize(2);
  std::tie(expected.parts[0].forward, expected.parts[0].backward) = std::tuple(1, 2);
  expected.parts[0].input_gradient = expected.parts[0].weight_gradient = 1;
  std::tie(expected.parts[1].forward, expected.parts[1].backward) = std::tuple(3, 4);
  expected.parts[1].input_gradient = expected.parts[1].weight_gradient = 2;
  expected.latency = 9;
  const std::string parts = header + "\"parts\": [" + stage + ", " + part + "]";
  BOOST_TEST((read(parts + ", \"latency_ns\": 9}") == GivenCosts(expected)));
  BOOST_TEST((read(written(expected)) == GivenCosts(expected)));
  for (const std::vector<int>& cut : {std::vector{1, 1}, {2}}) {
    expected.cut = cut;
    BOOST_TEST((read(written(expected)) == GivenCosts(expected)));
  }
  BOOST_TEST((read(parts + ", \"cut\": [2], \"latency_ns\": 9}") == GivenCosts(expected)));
}

BOOST_AUTO_TEST_CASE(random_models_round_trip) {
  test::Random random(4);
  for (int i = 0; i < 100; ++i) {
    const auto stages = test::random_costs(random, straight(static_cast<int>(random.between(1, 9)), 1), {});
    ModelCosts costs{stages, stages.stages, {}};
    if (random.one_in(2)) costs.cut.assign(costs.parts.size(), 1);
    BOOST_REQUIRE((read(written(costs)) == GivenCosts(costs)));
  }
}

BOOST_AUTO_TEST_CASE(parts_that_do_not_fit_are_named) {
  const std::string parts = header + "\"parts\": [" + stage + ", " + part + "]";
  BOOST_TEST(refusal(parts + "}") == "");
  BOOST_TEST(
      refusal(parts + ", \"stages\": [" + stage + "]}") ==
      "f.json: it has \"parts\" and \"stages\"; give what the parts of a model cost, or the stages of a schedule");
  BOOST_TEST(refusal(header + "\"parts\": []}") ==
             "f.json: parts: it is empty; give what each part of the model costs");
  BOOST_TEST(refusal(header + "\"parts\": {}}") == "f.json: parts: expected a list, not object");
  BOOST_TEST(refusal(header + "\"parts\": [" + stage + ", {}]}") == "f.json: parts[1]: \"forward_ns\" is missing");
  BOOST_TEST(refusal(parts + ", \"cut\": [1]}") == "f.json: cut: it has 1 parts, but the model has 2");
  BOOST_TEST(refusal(parts + ", \"cut\": []}") == "f.json: cut: it has 0 parts, but the model has 2");
  BOOST_TEST(refusal(parts + ", \"cut\": [2, 0]}") == "f.json: cut[1]: expected a whole number from 1 to 65535, not 0");
  BOOST_TEST(refusal(parts + ", \"cut\": 2}") == "f.json: cut: expected a list, not number");
  BOOST_TEST(refusal_of("\"cut\": [1]") == "f.json: cut: it says which parts a stage has; \"stages\" have none");
  const std::string long_part =
      R"({"forward_ns": 43200000000001, "backward_ns": 2, "input_gradient_ns": 1, "weight_gradient_ns": 1})";
  BOOST_TEST(refusal(header + "\"parts\": [" + long_part + ", " + long_part + "]}") ==
             "f.json: parts: forward_ns is more than 86400000000000 over all parts, the most that one stage may have");
}

BOOST_AUTO_TEST_CASE(a_file_is_loaded) {
  const test::Scratch scratch;
  Costs costs = test::uniform(1, 2, 1);
  costs.speed = {1, 0.5};
  {
    std::ofstream out(scratch / "costs");
    write_costs(out, costs);
  }
  BOOST_TEST((load_costs(scratch / "costs") == GivenCosts(costs)));
  const auto error_of = [&](const std::string& path) {
    return test::refusal([&] { static_cast<void>(load_costs(path)); });
  };
  BOOST_TEST(error_of(scratch / "none") == (scratch / "none") + ": cannot be opened: No such file or directory");
  BOOST_TEST(error_of(scratch.folder()) == scratch.folder() + ": is a folder, not a file");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
