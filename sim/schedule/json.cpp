#include "dualpipe/sim/schedule/json.h"

#include <fmt/format.h>

#include <array>
#include <istream>
#include <ostream>
#include <utility>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/json_reader.h"
#include "dualpipe/sim/schedule/program_builder.h"

namespace dualpipe {

using detail::schedule::JsonStream;
using detail::schedule::JsonValue;
using detail::schedule::ProgramBuilder;
using detail::schedule::read_json_document;

namespace {

using nlohmann::json;

constexpr std::string_view format_name = "dualpipe-schedule";
constexpr int format_version = 1;
constexpr std::array<std::string_view, 8> top_level_keys = {"format",        "version", "name",    "ranks",
                                                            "micro_batches", "chains",  "weights", "ops"};

// The list "ops": ranks, in them cells, and batches of messages.
class OpsReader {
 public:
  void on_event(JsonStream::Event event, std::string_view text) {
    switch (event) {
      case JsonStream::Event::open:
        return open();
      case JsonStream::Event::close:
        return close();
      case JsonStream::Event::text:
        return add(text);
    }
  }

  [[nodiscard]] ProgramBuilder& builder() { return builder_; }

 private:
  enum class Level : std::uint8_t { ranks, cells, batch };

  void open() {
    if (level_ == Level::batch) throw InputError("a batch holds messages, not lists");
    level_ = level_ == Level::ranks ? Level::cells : Level::batch;
    batch_size_ = 0;
  }

  void close() {
    if (level_ == Level::cells) builder_.end_rank();
    if (level_ == Level::batch && batch_size_ == 0) throw InputError("a batch without messages");
    level_ = level_ == Level::batch ? Level::cells : Level::ranks;
  }

  void add(std::string_view text) {
    if (level_ == Level::ranks) throw InputError("expected the list of a rank's ops, not a single op");
    const Cell cell = parse_cell(text);
    if (level_ == Level::cells) return builder_.add(cell);
    if (!is_send(cell.first.kind) && !is_receive(cell.first.kind)) {
      throw InputError(fmt::format("{} cannot be part of a batch, only messages can", to_text(cell.first)));
    }
    if (batch_size_++ == 0) {
      builder_.add(cell);
    } else {
      builder_.add_to_batch(cell.first);
    }
  }

  ProgramBuilder builder_;
  Level level_ = Level::ranks;
  std::size_t batch_size_ = 0;
};

std::uint16_t stage_number(const JsonValue& value) {
  return static_cast<std::uint16_t>(value.integer(0, std::int64_t{stage_count_max} - 1));
}

Placement read_placement(const JsonValue& document) {
  Placement placement;
  placement.ranks = static_cast<int>(document.at("ranks").integer(1, stage_count_max));
  placement.chain_begin = {0};
  const JsonValue chains = document.at("chains");
  for (std::size_t i = 0; i < chains.list_size(); ++i) {
    const JsonValue chain = chains[i];
    if (placement.rank_of.size() + chain.list_size() > stage_count_max) {
      chain.fail(fmt::format("more than {} stages", stage_count_max));
    }
    for (std::size_t j = 0; j < chain.list_size(); ++j) placement.rank_of.push_back(stage_number(chain[j]));
    placement.chain_begin.push_back(static_cast<std::uint16_t>(placement.rank_of.size()));
  }
  const JsonValue weights = document.at("weights");
  if (weights.list_size() > stage_count_max) weights.fail(fmt::format("more than {} stages", stage_count_max));
  for (std::size_t i = 0; i < weights.list_size(); ++i) placement.weights_of.push_back(stage_number(weights[i]));
  return placement;
}

std::variant<Schedule, Program> assemble(const JsonValue& document, ProgramBuilder& builder) {
  const auto micro_batches = static_cast<std::uint32_t>(document.at("micro_batches").integer(1, micro_batch_count_max));
  const std::string& name = document.at("name").text();
  Placement placement = read_placement(document);
  if (builder.ranks() != static_cast<std::size_t>(placement.ranks)) {
    document.at("ranks").fail(fmt::format("{} ranks, but \"ops\" has {} lists", placement.ranks, builder.ranks()));
  }
  try {
    check(placement);
    return builder.take(name, std::move(placement), micro_batches);
  } catch (const InputError& error) {
    document.fail(error.what());
  }
}

// Commas between the elements of a list.
class Separator {
 public:
  [[nodiscard]] std::string_view next() { return std::exchange(first_, false) ? "" : ", "; }

 private:
  bool first_ = true;
};

void write_chains(std::ostream& out, const Placement& placement) {
  Separator separator;
  out << '[';
  for (std::size_t chain = 0; chain + 1 < placement.chain_begin.size(); ++chain) {
    const auto begin = placement.chain_begin[chain];
    const std::span stages = std::span(placement.rank_of).subspan(begin, placement.chain_begin[chain + 1] - begin);
    out << separator.next() << fmt::format("[{}]", fmt::join(stages, ", "));
  }
  out << ']';
}

// One slot: single messages as strings, batches as lists of them.
void write_slot(std::ostream& out, std::span<const Op> messages, Separator& separator) {
  bool in_batch = false;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const bool joined = messages[i].with_next && i + 1 < messages.size();
    out << separator.next() << (joined && !in_batch ? "[\"" : "\"") << to_text(messages[i])
        << (in_batch && !joined ? "\"]" : "\"");
    in_batch = joined;
  }
}

// `slot(rank, position)` gives what is issued there.
template <typename Slot>
void write(std::ostream& out, const Schedule& schedule, const Slot& slot) {
  const std::string name = json(schedule.name).dump(-1, ' ', true, json::error_handler_t::replace);
  out << fmt::format("{{\n\"format\": \"{}\", \"version\": {}, \"name\": {}, \"ranks\": {}, \"micro_batches\": {},\n",
                     format_name, format_version, name, schedule.ranks(), schedule.micro_batches);
  out << "\"chains\": ";
  write_chains(out, schedule.placement);
  out << fmt::format(",\n\"weights\": [{}],\n\"ops\": [\n", fmt::join(schedule.placement.weights_of, ", "));
  for (int rank = 0; rank < schedule.ranks(); ++rank) {
    Separator separator;
    out << '[';
    const auto ops = schedule.rank(rank);
    for (std::size_t i = 0; i < ops.size(); i += unit_size(ops.subspan(i))) {
      write_slot(out, slot(rank, i), separator);
      out << separator.next() << '"' << cell_text(ops.subspan(i)) << '"';
    }
    write_slot(out, slot(rank, ops.size()), separator);
    out << (rank + 1 < schedule.ranks() ? "],\n" : "]\n");
  }
  out << "]\n}\n";
}

}  // namespace

std::variant<Schedule, Program> read_json(std::istream& in, const std::string& source) {
  OpsReader ops;
  const JsonStream stream{"ops", [&](JsonStream::Event event, std::string_view text) { ops.on_event(event, text); }};
  const json document = read_json_document(in, source, {format_name, format_version, top_level_keys}, stream);
  return assemble(JsonValue(document, source), ops.builder());
}

void write_json(std::ostream& out, const Schedule& schedule) {
  write(out, schedule, [](int, std::size_t) { return std::span<const Op>(); });
}

void write_json(std::ostream& out, const Program& program) {
  write(out, program.schedule, [&](int rank, std::size_t position) { return program.slot(rank, position); });
}

}  // namespace dualpipe
