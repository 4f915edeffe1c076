#include "dualpipe/sim/sweep/sweep_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dualpipe/sim/report/output_file.h"
#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"

namespace dualpipe {
namespace {

[[noreturn]] void fail_to_write(const std::string& path, std::string_view remedy = "") {
  throw InputError(fmt::format("cannot write {}: {}{}", path, std::strerror(errno), remedy));
}

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : path_(path) {
    number_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (number_ < 0) fail_to_write(path);
    if (::flock(number_, LOCK_EX | LOCK_NB) == 0) return;
    ::close(number_);
    throw InputError(fmt::format("{}: another run is writing it", path));
  }
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void keep(std::size_t size) {
    if (::ftruncate(number_, static_cast<off_t>(size)) != 0) fail_to_write(path_);
    if (::lseek(number_, 0, SEEK_END) < 0) fail_to_write(path_);
  }
  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(number_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_to_write(path_, "; what is done is kept there, and --resume goes on with it");
      text.remove_prefix(static_cast<std::size_t>(written));
    }
  }

 private:
  const std::string& path_;
  int number_;
};

// `key` and the digits behind it, which are taken off the text. False: it begins otherwise.
bool take_number(std::string_view& text, std::string_view key, std::size_t& value) {
  if (!text.starts_with(key)) return false;
  const char* const begin = text.data() + key.size();
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

std::optional<std::size_t> number_of_point(std::string_view line) {
  std::size_t point = 0;
  if (!take_number(line, "{\"point\":", point) || !line.starts_with(',') || !line.ends_with('}')) return std::nullopt;
  return point;
}

// How much of an interrupted file can be kept: whole lines of the points that come first.
struct Kept {
  std::size_t bytes = 0;
  std::size_t points = 0;
};

[[noreturn]] void refuse_other_grid(const std::string& path) {
  throw InputError(fmt::format(
      "{}: it is of another sweep, or of another shard of it; give its options again, or another --output", path));
}

Kept kept_of(const std::string& path, const Sweep& sweep, const SweepShard& shard) {
  std::ifstream in = open_input_file(path);
  const std::string header = sweep.header(shard);
  std::string line;
  if (!std::getline(in, line) || in.eof()) return {};  // killed within its first line
  if (line + "\n" != header) refuse_other_grid(path);
  Kept kept{header.size(), 0};
  while (std::getline(in, line) && !in.eof()) {
    if (number_of_point(line) != shard.point(kept.points)) break;
    kept.bytes += line.size() + 1;
    ++kept.points;
  }
  return kept;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool is_complete(const std::string& path, const Sweep& sweep, const SweepShard& shard) {
  if (kept_of(path, sweep, shard).points == shard.size(sweep.size())) return true;
  throw InputError(fmt::format("{}: it is there, and not complete; remove it, or give another --output", path));
}

}  // namespace

void write_sweep_file(const std::string& path, const Sweep& sweep, const SweepFileOptions& options,
                      const std::function<void(std::size_t done)>& progress) {
  const std::string partial = path + ".partial";
  const std::size_t all = options.shard.size(sweep.size());
  check_output_file(path);
  if (options.resume && !exists(partial) && exists(path) && is_complete(path, sweep, options.shard)) {
    if (progress) progress(all);
    return;
  }
  if (!options.resume && exists(partial)) {
    throw InputError(fmt::format(
        "{}: a run was interrupted, and left it; --resume goes on with it, and without it a new one begins", partial));
  }
  Descriptor file(partial);
  Kept kept = kept_of(partial, sweep, options.shard);
  file.keep(kept.bytes);
  if (kept.bytes == 0) file.write(sweep.header(options.shard));
  if (progress) progress(kept.points);
  std::size_t done = kept.points;
  sweep.run(options.shard, done, options.threads, [&](std::string_view lines, std::size_t count) {
    file.write(lines);
    done += count;
    if (progress) progress(done);
  });
  if (::rename(partial.c_str(), target_of_output(path).c_str()) != 0) fail_to_write(path);
}

SweepHeader parse_sweep_header(std::string_view line, const std::string& source) {
  SweepHeader header;
  std::size_t version = 0;
  if (!take_number(line, R"({"format":"dualpipe-sweep","version":)", version)) {
    throw InputError(source + ": it is no file of a sweep (dualpipe-sim sweep --format jsonl)");
  }
  if (version != 1) throw InputError(fmt::format("{}: version {}; this program reads version 1", source, version));
  const auto broken = [&] { return InputError(source + ": its first line is damaged; run the sweep again"); };
  if (!take_number(line, ",\"points\":", header.points) || !line.starts_with(',')) throw broken();
  line.remove_prefix(1);
  constexpr std::string_view shard_key = "\"shard\":\"";
  if (line.starts_with(shard_key)) {
    line.remove_prefix(shard_key.size());
    const std::size_t end = line.find("\",");
    if (end == line.npos) throw broken();
    header.shard = parse_shard(line.substr(0, end));
    line.remove_prefix(end + 2);
  }
  constexpr std::string_view grid_key = "\"grid\":";
  if (!line.starts_with(grid_key) || !line.ends_with('}')) throw broken();
  line.remove_prefix(grid_key.size());
  line.remove_suffix(1);
  header.grid = line;
  return header;
}

std::size_t point_of_line(std::string_view line, const std::string& source, std::size_t line_number) {
  if (const auto point = number_of_point(line)) return *point;
  throw InputError(fmt::format("{}:{}: it is no line of a sweep", source, line_number));
}

std::string csv_header(const std::vector<std::string>& columns) { return fmt::format("{}\n", fmt::join(columns, ",")); }

std::string csv_row(const std::vector<std::string>& columns, std::string_view line) {
  const auto json = nlohmann::json::parse(line);
  std::string row;
  for (const std::string& column : columns) {
    if (!row.empty()) row += ',';
    const auto found = json.find(column);
    if (found == json.end()) continue;
    if (found->is_string()) {
      append_csv_cell(row, found->get_ref<const std::string&>());
    } else if (found->is_boolean()) {
      row += found->get<bool>() ? "yes" : "no";
    } else if (found->is_number_float()) {
      row += fmt::format("{}", found->get<double>());
    } else {
      row += found->dump();
    }
  }
  return row + "\n";
}

}  // namespace dualpipe
