#include "dualpipe/exec/train/records.h"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

#include "dualpipe/exec/replay/rank_part.h"
#include "dualpipe/exec/train/exchange.h"

namespace dualpipe::detail::train {

using detail::transport::Packer;
using detail::transport::Unpacker;

namespace {

void shift(Span& span, Time offset) {
  if (span != Span{}) span = {span.start + offset, span.end + offset};
}

void pack(Packer& packer, const std::vector<PartSpan>& parts) {
  packer.put(parts.size());
  for (const auto& [op, lane, name, span] : parts) {
    packer.put(op);
    packer.put(lane);
    packer.put(name);
    packer.put(span);
  }
}

std::vector<PartSpan> unpack_parts(Unpacker& unpacker) {
  const auto count = unpacker.get<std::size_t>();
  std::vector<PartSpan> parts;
  for (std::size_t i = 0; i < count; ++i) {
    auto& [op, lane, name, span] = parts.emplace_back();
    unpacker.get(op);
    unpacker.get(lane);
    unpacker.get(name);
    unpacker.get(span);
  }
  return parts;
}

// What merge() and the reports take for granted.
void check_sizes(const RankRecord& record, const Program& program, int rank) {
  const std::size_t ops = program.schedule.rank(rank).size();
  const std::size_t messages = replay::messages_of(program, rank).size();
  const bool is_begun = !record.ops.empty() || ops == 0;
  const std::size_t of_ops = is_begun ? ops : 0;
  if (record.ops.size() == of_ops && record.waited.size() == of_ops &&
      record.communication.size() == (is_begun ? messages : 0) &&
      (record.memory.empty() || record.memory.size() == of_ops) && record.done <= of_ops) {
    return;
  }
  throw std::runtime_error(
      fmt::format("the record of rank {} has {} ops, of which {} are done, and {} messages, and the program {} and {}",
                  rank, record.ops.size(), record.done, record.communication.size(), ops, messages));
}

}  // namespace

// Written so that a member that is added to RankRecord is not forgotten: this does not compile then.
void pack(Packer& packer, const RankRecord& record, Time clock_offset) {
  auto [ops, communication, waited, memory, parts, done, peak_activations, peak_memory, losses, stopped_at] = record;
  for (Span& span : ops) shift(span, clock_offset);
  for (Span& span : communication) shift(span, clock_offset);
  for (PartSpan& part : parts) shift(part.span, clock_offset);
  packer.put(ops);
  packer.put(communication);
  packer.put(waited);
  packer.put(memory);
  pack(packer, parts);
  packer.put(done);
  packer.put(peak_activations);
  packer.put(peak_memory);
  packer.put(losses);
  packer.put(stopped_at);
}

RankRecord unpack_record(Unpacker& unpacker, const Program& program, int rank) {
  RankRecord record;
  auto& [ops, communication, waited, memory, parts, done, peak_activations, peak_memory, losses, stopped_at] = record;
  unpacker.get(ops);
  unpacker.get(communication);
  unpacker.get(waited);
  unpacker.get(memory);
  parts = unpack_parts(unpacker);
  unpacker.get(done);
  unpacker.get(peak_activations);
  unpacker.get(peak_memory);
  unpacker.get(losses);
  unpacker.get(stopped_at);
  check_sizes(record, program, rank);
  return record;
}

void gather_records(World& world, const Program& program, RankRecords& records) {
  if (world.processes() == 1) return;
  const int ranks = static_cast<int>(records.size());
  Packer packer;
  for (const int rank : world.ranks_here(ranks)) {
    pack(packer, records[static_cast<std::size_t>(rank)], world.clock_offset());
  }
  gather(world, "the records of all ranks", packer.take(), [&](std::size_t process, Unpacker& part) {
    for (const int rank : world.ranks_of(static_cast<int>(process), ranks)) {
      records[static_cast<std::size_t>(rank)] = unpack_record(part, program, rank);
    }
  });
}

void gather_results(World& world, const Program& program, TrainResult& result) {
  if (world.processes() == 1) return;
  // Calls `visit` with all that belongs to a rank, in one order: figures, and records with the program that they are
  // of.
  const auto visit_rank = [&](int rank, const auto& figures, const auto& record) {
    const auto place = static_cast<std::size_t>(rank);
    figures(result.peaks[place]);
    for (const int stage : program.schedule.placement.stages_on(rank)) {
      figures(result.stages[static_cast<std::size_t>(stage)]);
    }
    for (auto* const steps : {&result.warm_up, &result.measured}) {
      for (RankRecords& records : *steps) record(records[place], program);
    }
    for (RankRecords& records : result.warm_up_apart) record(records[place], result.apart);
    record(result.records[place], program);
  };
  const int ranks = program.schedule.ranks();
  Packer packer;
  for (const int rank : world.ranks_here(ranks)) {
    visit_rank(
        rank, [&](const auto& figures) { packer.put(figures); },
        [&](const RankRecord& record, const Program&) { pack(packer, record, world.clock_offset()); });
  }
  gather(world, "the end of the training", packer.take(), [&](std::size_t process, Unpacker& part) {
    for (const int rank : world.ranks_of(static_cast<int>(process), ranks)) {
      visit_rank(
          rank, [&](auto& figures) { part.get(figures); },
          [&](RankRecord& record, const Program& of) { record = unpack_record(part, of, rank); });
    }
  });
}

FailedStep hand_over_records(World& world, const Program& program, const Program& apart, FailedStep own) {
  const int ranks = program.schedule.ranks();
  Packer packer;
  packer.put(own.step);
  packer.put(own.program == &apart);
  for (const int rank : world.ranks_here(ranks)) {
    pack(packer, own.records[static_cast<std::size_t>(rank)], world.clock_offset());
  }
  const auto parts = world.hand_over(packer.take());
  if (parts.empty()) return own;
  FailedStep last = {-1, &program, RankRecords(static_cast<std::size_t>(ranks))};
  for (std::size_t process = 0; process < parts.size(); ++process) {
    if (!parts[process]) continue;
    try {
      Unpacker part(*parts[process]);
      const auto step = part.get<int>();
      const Program& ran = part.get<bool>() && !apart.schedule.ops.empty() ? apart : program;
      if (step < last.step) continue;
      if (step > last.step) last = {step, &ran, RankRecords(static_cast<std::size_t>(ranks))};
      for (const int rank : world.ranks_of(static_cast<int>(process), ranks)) {
        last.records[static_cast<std::size_t>(rank)] = unpack_record(part, *last.program, rank);
      }
    } catch (const std::runtime_error&) {  // must not hide why the run failed
    }
  }
  return last;
}

}  // namespace dualpipe::detail::train
