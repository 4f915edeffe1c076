#include "python/binding/sim/arguments.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <regex>
#include <sstream>

#include "dualpipe/sim/costs/quantity.h"
#include "dualpipe/sim/options/usage_error.h"
#include "dualpipe/sim/options/value.h"
#include "dualpipe/sim/report/printable.h"
#include "dualpipe/sim/schedule/nearest.h"

namespace dualpipe::python {
namespace {

std::string option_of(std::string_view keyword) {
  std::string option = "--" + std::string(keyword);
  std::ranges::replace(option, '_', '-');
  return option;
}

[[noreturn]] void refuse_type(std::string_view keyword, nb::handle value, const char* wanted) {
  const auto type = nb::cast<std::string>(nb::str(nb::handle(value.type()).attr("__name__")));
  throw nb::type_error((std::string(keyword) + ": it is " + wanted + ", and not a " + type).c_str());
}

// All digits, and no exponent, which quantities have not.
std::string number_text(double number) {
  std::array<char, 400> digits{};  // enough for the largest and the smallest
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number, std::chars_format::fixed).ptr;
  return {digits.data(), end};
}

void split(const std::string& text, std::vector<std::string>& values) {
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) values.push_back(item);
}

void read_list(std::string_view keyword, nb::handle value, std::vector<std::string>& values) {
  values.clear();
  if (nb::isinstance<nb::str>(value)) {
    split(*text_of(keyword, value), values);
  } else if (nb::hasattr(value, "__iter__")) {
    for (const nb::handle item : value) {
      const auto text = text_of(keyword, item);
      if (!text) refuse_type(keyword, item, "a number, or a text with its unit");
      values.push_back(*text);
    }
    if (values.empty()) throw UsageError(option_of(keyword), "the list is empty");
  } else {
    values.push_back(*text_of(keyword, value));
  }
}

void append(Keywords& keywords, const Keywords& more) { keywords.insert(keywords.end(), more.begin(), more.end()); }

}  // namespace

Keywords keywords_of(ShapeOptions& shape) {
  Keywords keywords;
  for (std::size_t i = 0; i < shape.values.size(); ++i) keywords.push_back({parameters()[i].name, &shape.values[i]});
  return keywords;
}

Keywords keywords_of(ScheduleOptions& schedule) {
  Keywords keywords{{"ranks", &schedule.shape.ranks}, {"microbatches", &schedule.shape.micro_batches}};
  append(keywords, keywords_of(schedule.shape));
  append(keywords,
         {{"chains", &schedule.chains}, {"letters", &schedule.letters}, {"memory_limit", &schedule.memory_limit}});
  return keywords;
}

Keywords keywords_of(CostOptions& costs) {
  return {{.name = "forward", .list = &costs.forward},
          {.name = "backward", .list = &costs.backward},
          {.name = "weight", .list = &costs.weight},
          {.name = "recompute_time", .list = &costs.recompute},
          {.name = "overlapped", .list = &costs.overlapped},
          {.name = "activation_bytes", .list = &costs.activation},
          {.name = "recompute_activation_bytes", .list = &costs.recompute_activation},
          {.name = "weight_stash_bytes", .list = &costs.weight_stash},
          {.name = "workspace_bytes", .list = &costs.workspace},
          {.name = "parameter_bytes", .list = &costs.parameters},
          {.name = "gradient_bytes", .list = &costs.gradients},
          {.name = "optimizer_bytes", .list = &costs.optimizer},
          {.name = "comm", .text = &costs.communication},
          {.name = "latency", .text = &costs.latency},
          {.name = "bandwidth", .text = &costs.bandwidth},
          {.name = "bytes", .list = &costs.message},
          {.name = "speed", .list = &costs.speed},
          {.name = "launch", .text = &costs.launch},
          {.name = "jitter", .text = &costs.jitter},
          {.name = "seed", .text = &costs.seed},
          {.name = "release_early", .flag = &costs.release_early}};
}

Keywords keywords_of(TableOptions& table) {
  Keywords keywords{{.name = "ranks", .list = &table.ranks}, {.name = "microbatches", .list = &table.micro_batches}};
  append(keywords, keywords_of(table.shape));
  append(keywords, {{.name = "schedules", .list = &table.schedules, .names_files = true},
                    {.name = "equal", .text = &table.equal},
                    {.name = "memory_limit", .text = &table.memory_limit},
                    {.name = "recompute", .list = &table.recompute},
                    {.name = "seeds", .text = &table.seeds},
                    {.name = "straggler", .text = &table.straggler},
                    {.name = "tokens", .text = &table.tokens},
                    {.name = "flops", .list = &table.flops},
                    {.name = "sort", .text = &table.sort}});
  return keywords;
}

Keywords keywords_of(SweepOptions& sweep) {
  Keywords keywords{{.name = "ranks", .list = &sweep.ranks}, {.name = "microbatches", .list = &sweep.micro_batches}};
  for (std::size_t i = 0; i < sweep.parameters.size(); ++i) {
    keywords.push_back({.name = parameters()[i].name, .list = &sweep.parameters[i]});
  }
  append(keywords, {{.name = "schedules", .list = &sweep.schedules, .names_files = true},
                    {.name = "memory_limit", .list = &sweep.memory_limits},
                    {.name = "recompute", .list = &sweep.recompute},
                    {.name = "cuts", .list = &sweep.cuts},
                    {.name = "seeds", .text = &sweep.seeds},
                    {.name = "straggler", .list = &sweep.stragglers},
                    {.name = "tokens", .text = &sweep.tokens},
                    {.name = "gpus", .text = &sweep.gpus},
                    {.name = "global_batch", .text = &sweep.global_batch}});
  return keywords;
}

std::string signature_of(const Keywords& keywords) {
  std::string signature;
  for (const Keyword& each : keywords) {
    if (!signature.empty()) signature += ", ";
    signature += std::string(each.name);
    const std::string value = each.names_files ? path_type : "str | float";
    if (each.flag != nullptr) {
      signature += ": bool = False";
    } else if (each.list != nullptr) {
      signature += ": " + value + " | collections.abc.Iterable[" + value + "] | None = None";
    } else {
      signature += ": " + value + " | None = None";
    }
  }
  return signature;
}

void read(const nb::kwargs& given, const Keywords& keywords) {
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    const auto found = std::ranges::find(keywords, name, &Keyword::name);
    if (found == keywords.end()) {
      std::vector<std::string> names;
      for (const Keyword& each : keywords) names.emplace_back(each.name);
      throw nb::type_error(("there is no keyword " + name + did_you_mean(name, names)).c_str());
    }
    if (value.is_none()) continue;
    if (found->flag != nullptr) {
      *found->flag = nb::cast<bool>(value);
    } else if (found->list != nullptr) {
      read_list(name, value, *found->list);
    } else {
      *found->text = *text_of(name, value);
    }
  }
}

std::optional<std::string> text_of(std::string_view keyword, nb::handle value) {
  if (value.is_none()) return std::nullopt;
  if (nb::isinstance<nb::bool_>(value)) refuse_type(keyword, value, "a number, or a text with its unit");
  if (nb::isinstance<nb::float_>(value)) return number_text(nb::cast<double>(value));
  const bool is_path = nb::hasattr(value, "__fspath__");
  if (!nb::isinstance<nb::str>(value) && !is_path && !nb::hasattr(value, "__index__") &&
      !nb::hasattr(value, "__float__")) {
    refuse_type(keyword, value, "a number, or a text with its unit");
  }
  std::string text = is_path ? path_of(value) : nb::cast<std::string>(nb::str(value));
  if (text.empty()) throw UsageError(option_of(keyword), "the value is empty");
  return text;
}

std::string path_of(nb::handle path) {
  const nb::module_ os = nb::module_::import_("os");
  const nb::bytes bytes(os.attr("fsencode")(path));
  return {bytes.c_str(), bytes.size()};
}

std::optional<Span> window_of(nb::handle window) {
  if (window.is_none()) return std::nullopt;
  std::vector<std::string> ends;
  read_list("window", window, ends);
  if (ends.size() != 2) throw InputError("--window: it takes two times, when it begins and when it ends");
  return Span{value_of("--window", ends[0], parse_duration), value_of("--window", ends[1], parse_duration)};
}

nb::module_ package(const char* name) {
  try {
    return nb::module_::import_(name);
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_ModuleNotFoundError)) throw;
    const std::string text = std::string("this needs the package ") + name + ": pip install " + name;
    nb::raise_from(error, PyExc_ImportError, "%s", text.c_str());
  }
}

nb::object from_json(const std::string& text) { return nb::module_::import_("json").attr("loads")(text); }

std::string written(const std::function<void(std::ostream&)>& write) {
  std::ostringstream out;
  write(out);
  return out.str();
}

std::size_t columns_of_terminal() {
  const nb::object size = nb::module_::import_("shutil").attr("get_terminal_size")(nb::make_tuple(0, 0));
  return nb::cast<std::size_t>(size.attr("columns"));
}

std::string in_python(std::string_view text) {
  // A remedy that is a command, or an option with its value, or one alone.
  static const std::regex spelled(
      "(dualpipe-(?:sim|run) [^;)\n]*)|--([a-z]+(?:-[a-z]+)*)(?:[ "
      "](?:([0-9][0-9.]*)|(latency|links|stream|old|new)\\b))?");
  const std::string all = printable_lines(text);
  std::string result;
  auto rest = all.cbegin();
  for (std::sregex_iterator match(all.begin(), all.end(), spelled), end; match != end; ++match) {
    result.append(rest, (*match)[0].first);
    rest = (*match)[0].second;
    if ((*match)[1].matched) {
      result += (*match)[1];
      continue;
    }
    std::string name = (*match)[2];
    std::ranges::replace(name, '-', '_');
    result += name;
    if ((*match)[3].matched) result += "=" + (*match)[3].str();
    if ((*match)[4].matched) result += "=\"" + (*match)[4].str() + "\"";
  }
  result.append(rest, all.cend());
  return result.substr(0, result.find_last_not_of('\n') + 1);
}

std::vector<std::string> in_python(std::vector<std::string> remarks) {
  for (std::string& remark : remarks) remark = in_python(remark);
  return remarks;
}

}  // namespace dualpipe::python
