// The letters of a CSV file's passes, which are not the same in all of them. Private to csv.cpp.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/sim/schedule/csv.h"

namespace dualpipe::detail::schedule {

// Reads cells whose letters may be old, and says in the end which they were: a file may have many B before the first
// W tells what they are.
class LetterReader {
 public:
  // `source` names the file in errors, and must outlive the reader.
  LetterReader(Letters letters, const std::string& source) : letters_(letters), source_(source) {}

  // One cell; small letters, and spaces around its signs, do. BW is B for the time being. Throws InputError.
  [[nodiscard]] Cell parse(std::string_view text, std::size_t line);

  // `schedule` has the ops of all cells, in their order: where the letters are old, what was B becomes I. Returns what
  // a user must know of that; else nothing.
  [[nodiscard]] std::string settle(Schedule& schedule) const;

 private:
  struct Sighting {
    std::string op;
    std::size_t line;
  };
  // Of the B outside of pairs, which have no W.
  struct Backwards {
    std::size_t all = 0;
    std::size_t with_weight = 0;  // of the same stage and micro-batch
    Op a_weight;
  };

  void see(Op op, std::string_view text, std::size_t line, bool is_old_full);
  [[nodiscard]] bool is_plain(const Schedule& schedule, std::size_t op) const;
  [[nodiscard]] Backwards backwards_of(const Schedule& schedule) const;

  Letters letters_;
  const std::string& source_;
  std::optional<Sighting> old_;      // the first BW
  std::optional<Sighting> current_;  // the first I
  bool has_weights_ = false;
  std::vector<std::size_t> old_full_;  // the numbers of the ops that were BW
  std::size_t ops_ = 0;
};

}  // namespace dualpipe::detail::schedule
