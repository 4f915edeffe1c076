// What the tests of validate() share: a violation written down as text, and checks that it is told, and no other.
#pragma once

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <ostream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dualpipe/sim/schedule/validate.h"
#include "tests/support.h"

namespace dualpipe {

inline std::ostream& operator<<(std::ostream& out, const Violation& violation) {
  return out << static_cast<int>(violation.rule) << " at rank " << violation.rank << ", " << violation.position << ": "
             << violation.op << ", " << violation.other;
}

namespace test {

// "3B7"; "0F0+" is the first of a pair.
inline Op op(std::string_view text) {
  const bool with_next = text.ends_with('+');
  if (with_next) text.remove_suffix(1);
  Op result = parse_cell(text).first;
  result.with_next = with_next;
  return result;
}

inline Violation violation(Rule rule, int rank, std::size_t position, std::string_view text,
                           std::string_view other = {}) {
  return {rule, rank, position, op(text), op(other.empty() ? text : other)};
}

// A schedule that is no longer than one rank's text.
inline Schedule on_one_rank(const std::string& text, int stages = 1) {
  return schedule_of(one_chain(std::vector<int>(static_cast<std::size_t>(stages))), {text});
}

// Exactly these, in this order.
template <typename Checked>
void check_violations(const Checked& checked, const std::vector<Violation>& expected) {
  const auto violations = validate(checked);
  BOOST_CHECK_EQUAL_COLLECTIONS(violations.begin(), violations.end(), expected.begin(), expected.end());
}

// Only one, and what it says.
template <typename Checked>
void check_violation(const Checked& checked, const Violation& expected, const std::string& text) {
  check_violations(checked, {expected});
  const Placement* placement = nullptr;
  if constexpr (std::is_same_v<Checked, Program>) {
    placement = &checked.schedule.placement;
  } else {
    placement = &checked.placement;
  }
  BOOST_TEST(to_text(expected, *placement) == text);
}

// Every violation is another one.
inline void check_none_twice(const std::vector<Violation>& violations) {
  for (auto i = violations.begin(); i != violations.end(); ++i) {
    BOOST_TEST((std::find(i + 1, violations.end(), *i) == violations.end()), "twice: " << *i);
  }
}

}  // namespace test
}  // namespace dualpipe
