// Costs as people say them: a value for each stage, or one for all, with its unit; or a file, and what else is to be.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/options/used.h"
#include "dualpipe/sim/report/text_table.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input, not wrong usage. Empty: not given.
struct CostOptions {
  std::string file;
  std::vector<std::string> forward, backward, weight, recompute, overlapped;  // per stage, or one for all
  std::vector<std::string> activation, recompute_activation, weight_stash, workspace, message, parameters, gradients,
      optimizer;
  std::string communication, latency, bandwidth, launch, jitter, seed;
  std::vector<std::string> speed;  // per rank
  bool release_early = false;

  // One that is given; empty: none is.
  [[nodiscard]] std::string given() const;
  // Throws UsageError where both a file is given and a value that the file has.
  void check_usage() const;
  // Throws InputError, and what check_usage() throws.
  [[nodiscard]] GivenCosts costs() const;
  // GB where the user says GB: in the value that comes first, or else in those of these options. GiB otherwise.
  [[nodiscard]] ByteUnits byte_units(const std::string& first = {}) const;
  // Throws UsageError where an option was given that does nothing with these costs, which costs() has made, and with
  // what runs. F, B and W are no such: together they say what a model costs, and B = I + W is looked at in any case.
  void check_used(const Used& used, const GivenCosts& costs) const;

 private:
  [[nodiscard]] std::vector<std::pair<const char*, const std::vector<std::string>*>> lists() const;
  [[nodiscard]] Costs of_stages() const;
  void apply_to(MachineCosts& costs) const;
};

}  // namespace dualpipe
