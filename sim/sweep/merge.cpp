#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/input_file.h"
#include "dualpipe/sim/sweep/sweep_file.h"

namespace dualpipe {
namespace {

// A file, and the line that it is at.
class Lines {
 public:
  explicit Lines(const std::string& path) : path_(path), in_(open_input_file(path)) {
    if (!read()) throw InputError(path + ": it is empty");
    header_ = parse_sweep_header(line_, path);
  }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const SweepHeader& header() const { return header_; }
  [[nodiscard]] const std::string& line() const { return line_; }
  [[nodiscard]] std::size_t point() const { return point_; }

  // False: there are no more.
  [[nodiscard]] bool next() {
    if (!read()) return false;
    const std::size_t point = point_of_line(line_, path_, number_);
    if (point >= header_.points || (number_ > 2 && point <= point_)) {
      throw InputError(fmt::format("{}:{}: point {} cannot be here, in a file of {} points in order", path_, number_,
                                   point, header_.points));
    }
    point_ = point;
    return true;
  }

 private:
  [[nodiscard]] bool read() {
    if (!std::getline(in_, line_)) return false;
    ++number_;
    if (in_.eof()) {
      throw InputError(
          fmt::format("{}:{}: it ends within a line: the run that wrote it was interrupted; dualpipe-sim "
                      "sweep --resume goes on with it",
                      path_, number_));
    }
    return true;
  }

  std::string path_;
  std::ifstream in_;
  std::string line_;
  std::size_t number_ = 0;
  SweepHeader header_;
  std::size_t point_ = 0;
};

// What differs, by name.
void check_same_grid(const Lines& first, const Lines& other) {
  if (first.header().grid == other.header().grid && first.header().points == other.header().points) return;
  std::vector<std::string> names;
  try {
    const auto a = nlohmann::json::parse(first.header().grid);
    const auto b = nlohmann::json::parse(other.header().grid);
    for (const auto& each : a.items()) {
      if (!b.contains(each.key()) || b[each.key()] != each.value()) names.push_back(each.key());
    }
    for (const auto& each : b.items()) {
      if (!a.contains(each.key())) names.push_back(each.key());
    }
  } catch (const nlohmann::json::exception&) {
    names = {"grid"};
  }
  throw InputError(fmt::format("{}: it is of another sweep than {}; they differ in: {}", other.path(), first.path(),
                               fmt::join(names, ", ")));
}

// The points that no file has.
class Missing {
 public:
  void add(std::size_t begin, std::size_t end, std::size_t shards) {
    if (begin == end) return;
    count_ += end - begin;
    if (ranges_.size() < shown_max)
      ranges_.push_back(begin + 1 == end ? fmt::format("{}", begin) : fmt::format("{} to {}", begin, end - 1));
    if (shards < 2) return;
    for (std::size_t point = begin; point < std::min(end, begin + shards); ++point) {
      shards_.insert(point % shards + 1);
    }
  }

  void refuse_any(std::size_t points, std::size_t shards) const {
    if (count_ == 0) return;
    std::string text = fmt::format("{} of {} points are missing: {}{}", count_, points, fmt::join(ranges_, ", "),
                                   ranges_.size() == shown_max ? ", …" : "");
    if (!shards_.empty()) {
      std::vector<std::string> names;
      for (const std::size_t each : shards_) names.push_back(to_text(SweepShard{each, shards}));
      text += fmt::format("; run again: --shard {}", fmt::join(names, ", --shard "));
    }
    throw InputError(text);
  }

 private:
  static constexpr std::size_t shown_max = 5;
  std::size_t count_ = 0;
  std::vector<std::string> ranges_;
  std::set<std::size_t> shards_;
};

}  // namespace

void merge_sweep_files(const std::vector<std::string>& paths, const std::function<void(std::string_view line)>& take) {
  if (paths.empty()) throw InputError("there are no files to merge");
  std::vector<std::unique_ptr<Lines>> files;
  std::size_t shards = 0;
  for (const std::string& path : paths) {
    files.push_back(std::make_unique<Lines>(path));
    check_same_grid(*files.front(), *files.back());
    const std::size_t count = files.back()->header().shard.count;
    shards = shards == 0 || shards == count ? count : 1;  // of several divisions none
  }
  const SweepHeader& header = files.front()->header();
  take(fmt::format("{{\"format\":\"dualpipe-sweep\",\"version\":1,\"points\":{},\"grid\":{}}}\n", header.points,
                   header.grid));

  std::map<std::size_t, Lines*> at;  // by the point that each is at
  const auto advance = [&](Lines& file) {
    if (!file.next()) return;
    const auto [place, is_new] = at.emplace(file.point(), &file);
    if (is_new) return;
    throw InputError(fmt::format("point {} is in {} and in {}; leave one of them out", file.point(),
                                 place->second->path(), file.path()));
  };
  for (const auto& file : files) advance(*file);
  Missing missing;
  std::size_t expected = 0;
  while (!at.empty()) {
    const auto [point, file] = *at.begin();
    missing.add(expected, point, shards);
    take(file->line() + "\n");
    expected = point + 1;
    at.erase(at.begin());
    advance(*file);
  }
  missing.add(expected, header.points, shards);
  missing.refuse_any(header.points, shards);
}

}  // namespace dualpipe
