#include "dualpipe/sim/trace/kineto_messages.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "dualpipe/sim/schedule/op.h"

namespace dualpipe::detail::trace {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t elements_max = std::int64_t{1} << 48U;

// Of PyTorch's names of element types, as operators and as collectives have them.
Bytes size_of(std::string_view type) {
  constexpr std::pair<std::string_view, Bytes> sizes[] = {
      {"float", 4}, {"double", 8}, {"half", 2}, {"bfloat16", 2},    {"long", 8},          {"int", 4},
      {"short", 2}, {"char", 1},   {"byte", 1}, {"signed char", 1}, {"unsigned char", 1}, {"bool", 1}};
  std::string lower(type.substr(type.starts_with("c10::") ? 5 : 0));
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  if (lower.starts_with("long")) lower = "long";
  if (lower.starts_with("float8")) return 1;
  const auto* const found = std::ranges::find(sizes, lower, &std::pair<std::string_view, Bytes>::first);
  return found == std::end(sizes) ? 0 : found->second;
}

Json list_of(const TraceEvent& event, std::string_view key) {
  if (!event.has(key)) return {};
  Json list = Json::parse(event.json(key), nullptr, false);
  return list.is_array() ? list : Json();
}

// A peer that is none of ranks: nothing.
std::optional<int> rank_in(const Json& value) {
  std::int64_t rank = -1;
  if (value.is_number_integer()) rank = value.get<std::int64_t>();
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (std::from_chars(text.data(), text.data() + text.size(), rank).ec != std::errc{}) return std::nullopt;
  }
  if (rank < 0 || rank >= std::int64_t{stage_count_max}) return std::nullopt;
  return static_cast<int>(rank);
}

Bytes bytes_of_elements(std::int64_t elements, Bytes size) {
  return elements < 0 || elements > elements_max ? 0 : elements * size;
}

// "Input Dims": [[16, 512]], "Input type": ["float"].
Bytes bytes_of_input(const TraceEvent& event) {
  const Json dims = list_of(event, "args.Input Dims");
  const Json types = list_of(event, "args.Input type");
  if (dims.empty() || types.empty() || !dims[0].is_array() || !types[0].is_string()) return 0;
  std::int64_t elements = 1;
  for (const Json& each : dims[0]) {
    if (!each.is_number_integer()) return 0;
    const auto size = each.get<std::int64_t>();
    if (size < 0 || (size > 0 && elements > elements_max / size)) return 0;
    elements *= size;
  }
  return bytes_of_elements(elements, size_of(types[0].get_ref<const std::string&>()));
}

void add_all(std::vector<RankMessage>& messages, std::vector<RankMessage>& operators, auto& transfers) {
  const auto by_start = [](const auto& each) { return each.span.start; };
  std::ranges::stable_sort(operators, {}, by_start);
  std::ranges::stable_sort(transfers, {}, by_start);
  const bool belong = operators.size() == transfers.size();
  for (std::size_t i = 0; i < operators.size(); ++i) {
    RankMessage message = operators[i];
    if (belong) {
      message.span.end = std::max(message.span.end, transfers[i].span.end);
      message.bytes = transfers[i].bytes;
    }
    messages.push_back(message);
  }
}

}  // namespace

void KinetoMessages::check_count(const TraceEvent& event) {
  if (++count_ > op_count_max) event.fail("too many messages");
}

void KinetoMessages::take(const TraceEvent& event) {
  if (event.is("cat", "cpu_op")) {
    if (event.is("name", "c10d::send")) return take_operator(event, true);
    if (event.is("name", "c10d::recv_")) return take_operator(event, false);
  } else if (event.is("cat", "user_annotation")) {
    if (event.is("name", "gloo:send")) return take_transfer(event, true);
    if (event.is("name", "gloo:recv")) return take_transfer(event, false);
  } else if (event.is("cat", "kernel") && event.has("args.Collective name")) {
    take_kernel(event);
  }
}

void KinetoMessages::take_operator(const TraceEvent& event, bool is_send) {
  const Json inputs = list_of(event, "args.Concrete Inputs");
  auto peer = inputs.size() > 2 ? rank_in(inputs[2]) : std::nullopt;
  if (!peer && ranks_ == 2) peer = 1 - rank_;
  if (!peer) {
    lacks_peers_ = true;
    return;
  }
  check_count(event);
  (is_send ? sends_ : receives_).operators.push_back({*peer, is_send, 0, event.span()});
}

void KinetoMessages::take_transfer(const TraceEvent& event, bool is_send) {
  check_count(event);
  (is_send ? sends_ : receives_).transfers.push_back({event.span(), bytes_of_input(event)});
}

void KinetoMessages::take_kernel(const TraceEvent& event) {
  const bool is_send = event.is("args.Collective name", "send");
  if (!is_send && !event.is("args.Collective name", "recv")) return;
  const std::string_view key = is_send ? "args.Dst Rank" : "args.Src Rank";
  if (!event.has(key)) return;
  const auto peer = rank_in(Json::parse(event.json(key), nullptr, false));
  if (!peer) return;
  check_count(event);
  const std::string_view count = is_send ? "args.In msg nelems" : "args.Out msg nelems";
  Bytes bytes = 0;
  if (event.has(count) && event.has("args.dtype")) {
    bytes = bytes_of_elements(event.integer(count, 0, elements_max), size_of(event.text("args.dtype")));
  }
  kernels_.push_back({*peer, is_send, bytes, event.span()});
}

std::vector<RankMessage> KinetoMessages::messages() && {
  std::vector<RankMessage> messages = std::move(kernels_);
  // With NCCL the operators only launch the kernels.
  if (messages.empty()) {
    for (Ends* ends : {&sends_, &receives_}) add_all(messages, ends->operators, ends->transfers);
  }
  std::ranges::stable_sort(messages, {}, [](const RankMessage& each) { return each.span.start; });
  return messages;
}

}  // namespace dualpipe::detail::trace
