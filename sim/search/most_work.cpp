#include "dualpipe/sim/search/most_work.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dualpipe::detail::search {
namespace {

constexpr std::int64_t exact_counts_max = 16'384;

Time stashed(const MostWork& p, Bytes left) {
  if (p.stash_work_most == 0 || p.stash_bytes == 0) return p.stash_work_most;
  __extension__ using Int128 = __int128;
  return static_cast<Time>(std::min<Int128>(Int128{left} * p.stash_work / p.stash_bytes, p.stash_work_most));
}

// One stage: linear up to where stashes no longer have all the room that they need, and again from there on; what is
// stashed is rounded down, which changes nothing in where the most is.
Time most_of_one(const MostWork& p, Time work, Bytes bytes, std::int64_t least, Bytes room) {
  const std::int64_t most = bytes > 0 ? std::min(p.most, room / bytes) : p.most;
  if (most < least) return -1;
  Time best = -1;
  const auto consider = [&](std::int64_t count) {
    const std::int64_t n = std::clamp(count, least, most);
    best = std::max(best, n * work + stashed(p, room - n * bytes));
  };
  consider(least);
  consider(most);
  if (bytes > 0 && p.stash_work > 0 && p.stash_bytes > 0) {
    const double all =
        static_cast<double>(p.stash_work_most) * static_cast<double>(p.stash_bytes) / static_cast<double>(p.stash_work);
    const auto turn = static_cast<std::int64_t>((static_cast<double>(room) - all) / static_cast<double>(bytes));
    for (std::int64_t n = turn - 2; n <= turn + 2; ++n) consider(n);
  }
  return best;
}

Time most_of_two(const MostWork& p) {
  Time best = -1;
  for (std::int64_t last = p.least; last <= p.most; ++last) {
    const Bytes room = p.room - last * p.bytes[1];
    if (room < last * p.bytes[0]) break;
    const Time first = most_of_one(p, p.work[0], p.bytes[0], last, room);
    if (first >= 0) best = std::max(best, first + last * p.work[1]);
  }
  return best;
}

// The dual of the linear program: for any price of a byte a bound, of which the least is taken.
Time most_of_shares(const MostWork& p) {
  std::vector<double> work, bytes;  // of one more micro-batch in the stages up to i
  double sum_work = 0;
  double sum_bytes = 0;
  for (std::size_t i = 0; i < p.work.size(); ++i) {
    work.push_back(sum_work += static_cast<double>(p.work[i]));
    bytes.push_back(sum_bytes += static_cast<double>(p.bytes[i]));
  }
  const auto least = static_cast<double>(p.least);
  const double room = static_cast<double>(p.room) - least * sum_bytes;
  if (room < 0) return -1;
  const bool prices_stash = p.stash_bytes > 0 && p.stash_work > 0;
  const double per_byte = prices_stash ? static_cast<double>(p.stash_work) / static_cast<double>(p.stash_bytes) : 0;
  std::vector<double> prices{0, per_byte};
  for (std::size_t i = 0; i < work.size(); ++i) {
    if (bytes[i] > 0) prices.push_back(work[i] / bytes[i]);
    for (std::size_t j = 0; j < i; ++j) {
      if (bytes[i] > bytes[j]) prices.push_back(std::max(0.0, (work[i] - work[j]) / (bytes[i] - bytes[j])));
    }
  }
  double best = std::numeric_limits<double>::max();
  for (const double price : prices) {
    double gain = 0;
    for (std::size_t i = 0; i < work.size(); ++i) gain = std::max(gain, work[i] - price * bytes[i]);
    const double stash = prices_stash ? std::max(0.0, 1 - price / per_byte) : 1;
    best = std::min(best, price * room + (static_cast<double>(p.most) - least) * gain +
                              stash * static_cast<double>(p.stash_work_most));
  }
  return static_cast<Time>(std::ceil((best + least * sum_work) * (1 + 1e-12)));
}

}  // namespace

Time most_work(const MostWork& p) {
  if (p.most < p.least) return -1;
  if (p.work.empty()) return stashed(p, std::max<Bytes>(p.room, 0));
  if (p.room < 0) return -1;
  if (p.work.size() == 1) return most_of_one(p, p.work[0], p.bytes[0], p.least, p.room);
  if (p.work.size() == 2 && p.most <= exact_counts_max) return most_of_two(p);
  return most_of_shares(p);
}

}  // namespace dualpipe::detail::search
