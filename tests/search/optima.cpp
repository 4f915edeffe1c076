#include "tests/search/optima.h"

#include <fstream>
#include <ostream>
#include <sstream>
#include <stdexcept>

namespace dualpipe::test {
namespace {

Optimum read(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream row(line);
  for (std::string cell; std::getline(row, cell, ',');) cells.push_back(cell);
  if (cells.size() != 14) throw std::runtime_error("optima.csv: '" + line + "'");
  const auto number = [&](std::size_t i) { return std::stoll(cells[i]); };
  Optimum optimum;
  optimum.line = line;
  const auto ranks = static_cast<int>(number(1));
  optimum.placement = cells[0] == "v" ? v_shape(ranks) : straight(ranks, 1);
  optimum.micro_batches = number(2);
  optimum.by_span = cells[3] == "span";
  StageCosts stage;
  stage.forward = number(4);
  stage.input_gradient = number(5);
  stage.weight_gradient = number(6);
  stage.backward = stage.input_gradient + stage.weight_gradient;
  stage.activation = number(8);
  stage.weight_stash = number(9);
  optimum.costs.stages = {stage};
  optimum.costs.latency = number(7);
  optimum.limit = number(10);
  optimum.optimum = number(11);
  optimum.bound = number(13);
  return optimum;
}

std::vector<Optimum> read_all() {
  std::ifstream file(DUALPIPE_TESTS_DIR "/search/optima.csv");
  std::vector<Optimum> all;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("linear,") || line.starts_with("v,")) all.push_back(read(line));
  }
  return all;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Optimum& optimum) { return out << optimum.line; }

const std::vector<Optimum>& optima() {
  static const std::vector<Optimum> all = read_all();
  return all;
}

}  // namespace dualpipe::test
