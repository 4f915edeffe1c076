#include "dualpipe/sim/report/difference_json.h"

#include "dualpipe/sim/report/json_text.h"

namespace dualpipe::detail::report {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(std::optional<Time> time) { return time ? Json(*time) : Json(nullptr); }

Json to_json(const StartError& starts) {
  return {{"median_ns", starts.median},
          {"percentile95_ns", starts.percentile95},
          {"largest_ns", starts.largest},
          {"largest_at", starts.op},
          {"rank", starts.rank}};
}

Json to_json(const RankDifference& rank) {
  Json json{{"rank", rank.rank},
            {"planned_busy_ns", rank.busy.planned},
            {"measured_busy_ns", rank.busy.measured},
            {"planned_idle_ns", rank.idle.planned},
            {"measured_idle_ns", rank.idle.measured},
            {"planned_peak_activations", rank.peak.planned.activations},
            {"measured_peak_activations", rank.peak.measured.activations},
            {"planned_peak_memory_bytes", rank.peak.planned.memory},
            {"measured_peak_memory_bytes", rank.peak.measured.memory},
            {"start_error", to_json(rank.starts)}};
  if (rank.causes.planned) json["planned_causes"] = causes_json(*rank.causes.planned);
  if (rank.causes.measured) json["measured_causes"] = causes_json(*rank.causes.measured);
  return json;
}

}  // namespace

Json to_json(const Difference& difference) {
  Json json;
  json["planned_makespan_ns"] = difference.makespan.planned;
  json["measured_makespan_ns"] = difference.makespan.measured;
  json["classes"] = Json::array();
  for (const ClassDifference& each : difference.classes) {
    json["classes"].push_back(Json{{"class", each.op_class},
                                   {"count", each.count},
                                   {"planned_median_ns", to_json(each.median.planned)},
                                   {"measured_median_ns", to_json(each.median.measured)},
                                   {"start_error", to_json(each.starts)}});
  }
  json["causes"] = Json::array();
  for (const CauseDifference& each : difference.causes) {
    json["causes"].push_back(
        Json{{"cause", name(each.cause)}, {"planned_ns", each.idle.planned}, {"measured_ns", each.idle.measured}});
  }
  json["start_error"] = to_json(difference.starts);
  json["per_rank"] = Json::array();
  for (const RankDifference& rank : difference.per_rank) json["per_rank"].push_back(to_json(rank));
  return json;
}

}  // namespace dualpipe::detail::report
