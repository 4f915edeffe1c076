// What a search has found, beside what the catalog has, and how much shorter anything could be.
//
//   search on 8 ranks, 24 micro-batches, 8 micro-batches per rank
//   a rank's share of the model: …
//
//   best found   1.311 ms, linear, optimal: it reaches the lower bound
//
//      schedule   makespan  above bound  memory  fits
//   *  search     1.31041 ms      0.00%   …      yes
//      zb-auto    …
#pragma once

#include <iosfwd>
#include <string>

#include "dualpipe/sim/report/text_table.h"
#include "dualpipe/sim/search/search.h"

namespace dualpipe {

[[nodiscard]] std::string to_text(const SearchRequest& request, const SearchResult& result,
                                  const TextLayout& layout = {});
// One object; times in nanoseconds, `…_ns`. `schedule` is as in a file of its own.
void write_json(std::ostream& out, const SearchRequest& request, const SearchResult& result);

// "best 1.26 s, bound 1.25 s, gap 0.31%": a line for who waits, without its end. `per_second`: evaluations.
[[nodiscard]] std::string to_text(const SearchProgress& progress, double per_second);

}  // namespace dualpipe
