#include "dualpipe/sim/explain/measured_messages.h"

#include <algorithm>
#include <map>
#include <utility>

#include "dualpipe/sim/report/percentile.h"

namespace dualpipe {

using detail::report::percentile;

std::vector<MessageTimes> times_by_size(std::span<const MeasuredMessage> messages) {
  std::map<Bytes, std::vector<Time>> times;
  for (const MeasuredMessage& each : messages) {
    if (each.bytes == 0) continue;
    times[each.bytes].push_back(std::max<Time>(0, each.received.end - std::max(each.sent.start, each.received.start)));
  }
  std::vector<MessageTimes> sizes;
  for (auto& [bytes, of_size] : times) sizes.push_back({bytes, std::move(of_size)});
  return sizes;
}

double bandwidth_of(std::span<const MessageTimes> sizes) {
  const auto [least, most] = std::ranges::minmax_element(sizes, {}, &MessageTimes::bytes);
  if (least == sizes.end() || least->times.empty() || most->times.empty()) return 0;
  if (percentile(least->times, 75) >= percentile(most->times, 25)) return 0;

  // The slope of the line through the medians, in nanoseconds per byte.
  double count = 0, mean_bytes = 0, mean_time = 0;
  for (const MessageTimes& size : sizes) {
    if (size.times.empty()) continue;
    ++count;
    mean_bytes += static_cast<double>(size.bytes);
    mean_time += static_cast<double>(percentile(size.times, 50));
  }
  mean_bytes /= count;
  mean_time /= count;
  double products = 0, squares = 0;
  for (const MessageTimes& size : sizes) {
    if (size.times.empty()) continue;
    const double bytes = static_cast<double>(size.bytes) - mean_bytes;
    products += bytes * (static_cast<double>(percentile(size.times, 50)) - mean_time);
    squares += bytes * bytes;
  }
  return products > 0 ? 1e9 * squares / products : 0;
}

}  // namespace dualpipe
