// The schedules that have a name.
//
// To add one: write a Family in a file of its own, with its drawing, its paper and its shape rule, and give it a line
// in catalog.cpp. Tests, tables, benchmarks and the command line take it from there.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "dualpipe/sim/generate/family.h"
#include "dualpipe/sim/generate/request.h"
#include "dualpipe/sim/schedule/schedule.h"

namespace dualpipe {

[[nodiscard]] std::span<const Family> catalog();

// Throws InputError that lists the names there are, and says which one may have been meant.
[[nodiscard]] const Family& family(std::string_view name);

// Chunks, group, waves, replicas.
[[nodiscard]] std::span<const Parameter> parameters();
// "interleaved, looped-bfs": those in which it is free.
[[nodiscard]] std::string families_that_take(const Parameter& parameter);
// The shape without the parameters that the family does not take: what it makes of a shape that is meant for several.
[[nodiscard]] Shape as_taken_by(const Family& family, Shape shape);

// Throws InputError for an unknown family, ShapeError that names the rule and the nearest shapes that work.
[[nodiscard]] Schedule generate(const Request& request);
// Of a family that needs no more than the shape.
[[nodiscard]] Schedule generate(std::string_view family, const Shape& shape);

}  // namespace dualpipe
