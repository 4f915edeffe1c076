// A cut of a model's parts into stages, beside the balanced one; and how frameworks are told of it.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "dualpipe/sim/costs/model_costs.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/report/title.h"
#include "dualpipe/sim/schedule/placement.h"
#include "dualpipe/sim/search/partition.h"

namespace dualpipe {

struct PartitionReport : ReportTitle {
  Placement placement;
  ModelCosts costs;
  Partition partition;
  bool with_layout = false;  // the first part is the embedding, the last the head, those between are layers
  std::vector<std::string> remarks;
};

// Megatron-LM's --pipeline-model-parallel-layout: "Ettt|ttt|tttL". Throws InputError where Megatron has no such
// placement, which goes round the ranks, or there are fewer than two parts.
[[nodiscard]] std::string megatron_layout(const Placement& placement, const std::vector<int>& cut);
// What torchtitan calls module_fqns_per_model_part: a list for each stage, in JSON.
[[nodiscard]] std::string module_names(const std::vector<int>& cut);

[[nodiscard]] std::string to_text(const PartitionReport& report, const TextLayout& layout = {});
// One object; times in nanoseconds, `…_ns`.
void write_json(std::ostream& out, const PartitionReport& report);

}  // namespace dualpipe
