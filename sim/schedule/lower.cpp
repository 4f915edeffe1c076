#include "dualpipe/sim/schedule/lower.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "dualpipe/sim/schedule/flow.h"
#include "dualpipe/sim/schedule/large_vector.h"

namespace dualpipe {

using detail::schedule::reserve_large;

namespace {

constexpr std::uint32_t nothing = std::numeric_limits<std::uint32_t>::max();

// What an op of one stage and pass receives before it runs, and sends when it has.
struct Route {
  std::uint32_t in = nothing;            // the box that its input comes through, and
  std::uint32_t out = nothing;           // that its result goes to
  std::uint16_t to = 0;                  // the stage, and
  std::uint16_t receiver = 0;            // the rank that gets the result
  Kind receive = Kind::receive_forward;  // as what it gets, and what it sends, is received
  Kind send = Kind::send_forward;
  std::uint8_t duration = 1;
};

// Every stage has two boxes: for its input, and for the gradient of its output.
std::uint32_t box_of(int stage, bool gradient) { return 2 * static_cast<std::uint32_t>(stage) + (gradient ? 1 : 0); }

Route route_of(Op op, const Placement& placement) {
  Route route;
  route.receive = receive_for(op).kind;
  route.send = send_of(op).kind;
  if (op.kind == Kind::backward) route.duration = 2;
  const bool gradient = !is_forward(op.kind);
  if (const auto from = producer_of(op, placement); from && from->is_remote) route.in = box_of(op.stage, gradient);
  if (const auto to = consumer_of(op, placement); to && to->is_remote) {
    route.out = box_of(to->stage, gradient);
    route.to = to->stage;
    route.receiver = to->rank;
  }
  return route;
}

// By stage, F B I W.
std::vector<std::array<Route, 4>> routes_of(const Placement& placement) {
  std::vector<std::array<Route, 4>> routes(placement.rank_of.size());
  for (std::size_t stage = 0; stage < routes.size(); ++stage) {
    for (const Kind pass : {Kind::forward, Kind::backward, Kind::input_gradient, Kind::weight_gradient}) {
      const Op op{0, static_cast<std::uint16_t>(stage), pass, false};
      routes[stage][static_cast<std::size_t>(pass)] = route_of(op, placement);
    }
  }
  return routes;
}

std::vector<bool> shared_stages(const Placement& placement) {
  std::vector<int> users(placement.rank_of.size());
  for (const auto weights : placement.weights_of) ++users[weights];
  std::vector<bool> shared;
  for (const auto weights : placement.weights_of) shared.push_back(users[weights] > 1);
  return shared;
}

struct Reduction {
  std::size_t position;  // of its slot
  std::uint16_t stage;
};

// Where the gradients of a rank's shared stages are complete: after their last W or B.
std::vector<Reduction> completions_of(const Schedule& schedule, int rank, std::span<const int> stages,
                                      const std::vector<bool>& shared) {
  const auto wanted = std::ranges::count_if(stages, [&](int stage) { return shared[static_cast<std::size_t>(stage)]; });
  std::vector<Reduction> found;
  std::vector<bool> is_found(shared.size());
  const auto ops = schedule.rank(rank);
  for (std::size_t i = ops.size(); i-- > 0 && std::ssize(found) < wanted;) {
    const Op op = ops[i];
    if (!shared[op.stage] || (op.kind != Kind::backward && op.kind != Kind::weight_gradient)) continue;
    if (is_found[op.stage]) continue;
    is_found[op.stage] = true;
    found.push_back({i + 1, op.stage});
  }
  return found;
}

// By rank, the last one first. All ranks reduce in one order of the weights, or two could wait for each other's: by
// when the last rank has its gradients. One that is ready out of turn waits for those before it.
std::vector<std::vector<Reduction>> reductions_of(const Schedule& schedule, const StagesByRank& by_rank) {
  const auto shared = shared_stages(schedule.placement);
  std::vector<std::vector<Reduction>> reductions;
  std::vector<std::size_t> ready(schedule.placement.rank_of.size());  // by weights
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    reductions.push_back(completions_of(schedule, rank, by_rank.on(rank), shared));
    for (const auto& [position, stage] : reductions.back()) {
      std::size_t& latest = ready[schedule.placement.weights_of[stage]];
      latest = std::max(latest, position);
    }
  }
  const auto turn = [&](const Reduction& each) {
    const std::size_t weights = schedule.placement.weights_of[each.stage];
    return std::tuple(ready[weights], weights, each.position);
  };
  for (auto& of_rank : reductions) {
    std::ranges::sort(of_rank, std::ranges::greater{}, turn);
    for (std::size_t i = of_rank.size(); i-- > 1;) {
      of_rank[i - 1].position = std::max(of_rank[i - 1].position, of_rank[i].position);
    }
  }
  return reductions;
}

class Lowering {
 public:
  explicit Lowering(Schedule schedule)
      : routes_(routes_of(schedule.placement)),
        sent_words_((schedule.micro_batches + 63) / 64),
        sent_(2 * routes_.size() * sent_words_) {
    program_.schedule = std::move(schedule);
    lay_out();
  }

  [[nodiscard]] Lowered run() {
    for (std::uint32_t r = 0; r < ranks_.size(); ++r) starting_.push_back(r);
    for (std::size_t now = 0, quiet = 0; quiet < calendar_.size(); ++now) {
      auto& ending = calendar_[now % calendar_.size()];
      quiet = ending.empty() && starting_.empty() ? quiet + 1 : 0;
      for (const std::uint32_t r : ending) end_unit(ranks_[r]);
      starting_.insert(starting_.end(), ending.begin(), ending.end());
      ending.clear();
      for (const std::uint32_t r : starting_) start_unit(r, now);
      starting_.clear();
    }
    const bool completes = std::ranges::all_of(ranks_, [](const Rank& rank) { return rank.next == rank.end; });
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      while (ranks_[r].next < ranks_[r].end) force_unit(r);
      close_slot(r);
    }
    program_.slot_begin.back() = static_cast<std::uint32_t>(program_.communication.size());
    return {std::move(program_), completes};
  }

 private:
  struct Rank {
    const Op* next = nullptr;  // the op to start, or that is running
    const Op* end = nullptr;
    const Op* reduce_at = nullptr;        // where the slot is with its next reduction
    Op* cursor = nullptr;                 // where its next message goes
    Op* slot = nullptr;                   // the first message of the slot that is open
    std::uint32_t* slot_begin = nullptr;  // of that slot
    std::uint32_t awaited_box = nothing;  // what it idles for
    std::uint32_t awaited_micro_batch = 0;
  };

  // A valid schedule determines how many messages each rank has, so each writes straight to its place.
  void lay_out() {
    const Schedule& schedule = program_.schedule;
    const bool trains = std::ranges::any_of(schedule.ops, [](Op op) { return op.kind != Kind::forward; });
    ranks_.resize(static_cast<std::size_t>(schedule.ranks()));
    const StagesByRank by_rank(schedule.placement);
    reductions_ = reductions_of(schedule, by_rank);
    std::vector<std::size_t> counts;
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      std::size_t ends = 0;
      for (const int stage : by_rank.on(static_cast<int>(r))) {
        const Route& forward = routes_[static_cast<std::size_t>(stage)][0];
        ends += (forward.in != nothing ? 1U : 0U) + (forward.out != nothing ? 1U : 0U);
      }
      counts.push_back(ends * schedule.micro_batches * (trains ? 2 : 1) + reductions_[r].size());
    }
    const std::size_t total = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
    reserve_large(program_.communication, total);
    program_.communication.resize(total);
    reserve_large(program_.slot_begin, schedule.ops.size() + ranks_.size() + 1);
    program_.slot_begin.resize(schedule.ops.size() + ranks_.size() + 1);

    Op* messages = program_.communication.data();
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const auto ops = schedule.rank(static_cast<int>(r));
      Rank& rank = ranks_[r];
      rank.next = ops.data();
      rank.end = ops.data() + ops.size();
      rank.reduce_at = reductions_[r].empty() ? nullptr : ops.data() + reductions_[r].back().position;
      rank.cursor = messages;
      rank.slot_begin = &program_.slot_begin[program_.slot_index(static_cast<int>(r), 0)];
      open_slot(rank);
      messages += counts[r];
    }
  }

  // Messages of a slot are one batch; reductions follow it.
  void close_slot(std::size_t r) {
    Rank& rank = ranks_[r];
    if (rank.cursor > rank.slot) rank.cursor[-1].with_next = false;
    if (rank.next != rank.reduce_at) return;
    auto& to_come = reductions_[r];
    const std::size_t position = to_come.back().position;
    for (; !to_come.empty() && to_come.back().position == position; to_come.pop_back()) {
      *rank.cursor++ = {0, to_come.back().stage, Kind::reduce_gradients, false};
    }
    rank.reduce_at = to_come.empty() ? nullptr : rank.next + (to_come.back().position - position);
  }
  void open_slot(Rank& rank) {
    *rank.slot_begin = static_cast<std::uint32_t>(rank.cursor - program_.communication.data());
    rank.slot = rank.cursor;
  }
  static void post(Rank& rank, Kind kind, std::uint16_t stage, std::uint32_t micro_batch) {
    *rank.cursor++ = {micro_batch, stage, kind, true};
  }

  // Whether something was sent to a box.
  [[nodiscard]] bool is_sent(std::uint32_t box, std::uint32_t micro_batch) const {
    return (sent_[box * sent_words_ + micro_batch / 64] >> (micro_batch % 64) & 1U) != 0;
  }
  void mark_sent(std::uint32_t box, std::uint32_t micro_batch) {
    sent_[box * sent_words_ + micro_batch / 64] |= std::uint64_t{1} << (micro_batch % 64);
  }

  [[nodiscard]] const Route& route_of(Op op) const { return routes_[op.stage][static_cast<std::size_t>(op.kind)]; }
  [[nodiscard]] static std::span<const Op> unit(const Rank& rank) {
    return {rank.next, rank.next->with_next ? 2U : 1U};
  }

  // A slot ends when the op after it starts; nothing stands inside a pair.
  void pass_slots(std::size_t r, std::size_t count) {
    close_slot(r);
    for (; count > 0; --count) {
      ++ranks_[r].slot_begin;
      open_slot(ranks_[r]);
    }
  }

  // If its inputs have been sent; else the rank idles.
  void start_unit(std::uint32_t r, std::size_t now) {
    Rank& rank = ranks_[r];
    if (rank.next == rank.end) return;
    std::size_t duration = 0;
    for (const Op op : unit(rank)) {
      const Route& route = route_of(op);
      duration += route.duration;
      if (route.in == nothing || is_sent(route.in, op.micro_batch)) continue;
      rank.awaited_box = route.in;
      rank.awaited_micro_batch = op.micro_batch;
      return;
    }
    pass_slots(r, unit(rank).size());
    calendar_[(now + duration) % calendar_.size()].push_back(r);
  }

  void end_unit(Rank& rank) {
    const auto ended = unit(rank);
    rank.next += ended.size();
    prefetch(rank);
    for (const Op op : ended) {
      const Route& route = route_of(op);
      if (route.out == nothing) continue;
      post(rank, route.send, op.stage, op.micro_batch);
      Rank& receiver = ranks_[route.receiver];
      post(receiver, route.receive, route.to, op.micro_batch);
      mark_sent(route.out, op.micro_batch);
      if (receiver.awaited_box != route.out || receiver.awaited_micro_batch != op.micro_batch) continue;
      receiver.awaited_box = nothing;
      starting_.push_back(route.receiver);
    }
  }

  // With a thousand ranks there are too many streams for the processor to foresee: one cache line ahead.
  static void prefetch(const Rank& rank) {
    __builtin_prefetch(ahead(rank.next, 8));
    __builtin_prefetch(ahead(rank.cursor, 8), 1);
    __builtin_prefetch(ahead(rank.slot_begin, 16), 1);
  }
  // By the number of the address: there the stream may have ended, and no pointer may point.
  template <typename T>
  static const void* ahead(const T* from, std::size_t count) {
    return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) + count * sizeof(T));
  }

  // A unit that the run never came to, as the schedule hangs.
  void force_unit(std::size_t r) {
    Rank& rank = ranks_[r];
    const auto forced = unit(rank);
    for (const Op op : forced) {
      const Route& route = route_of(op);
      if (route.in != nothing && !is_sent(route.in, op.micro_batch))
        post(rank, route.receive, op.stage, op.micro_batch);
    }
    pass_slots(r, forced.size());
    rank.next += forced.size();
    for (const Op op : forced) {
      const Route& route = route_of(op);
      if (route.out != nothing) post(rank, route.send, op.stage, op.micro_batch);
    }
  }

  std::vector<std::array<Route, 4>> routes_;
  std::size_t sent_words_;           // per box
  std::vector<std::uint64_t> sent_;  // by box, a bit per micro-batch
  std::vector<Rank> ranks_;
  std::vector<std::vector<Reduction>> reductions_;      // by rank, those to come
  std::array<std::vector<std::uint32_t>, 4> calendar_;  // ranks whose unit ends at a time, modulo 4
  std::vector<std::uint32_t> starting_;                 // ranks that may start their next unit now
  Program program_;
};

}  // namespace

Program lower(Schedule schedule) { return lower_checked(std::move(schedule)).program; }

Lowered lower_checked(Schedule schedule) { return Lowering(std::move(schedule)).run(); }

}  // namespace dualpipe
