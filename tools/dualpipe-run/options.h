// The command line of dualpipe-run.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "dualpipe/exec/device/device.h"
#include "dualpipe/exec/train/settings.h"
#include "dualpipe/exec/train/train.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/program.h"
#include "tools/common/options.h"

namespace dualpipe {

// Values stay text until they are used: a wrong one is bad input (exit 1), not wrong usage (exit 2).
struct RunOptions {
  ScheduleOptions schedule;
  CostOptions costs;
  std::string model = "gpt";
  std::vector<std::string> layers;
  std::map<std::string, std::string, std::less<>> settings;  // train_settings() by name, as given or "": not given
  std::map<std::string, bool, std::less<>> flags;            // those of them that are flags
  std::string transport, timeout, link_delay;
  std::vector<std::string> inject;
  std::string device = "cpu";
  bool copy = false;
  bool sm_partition = false;
  bool check = false;
  bool compare = false;
  bool profile = false;
  std::string trace, json, calibrate;

  void add_to(CLI::App& app);
  // Throws CLI::ParseError, wrong usage, where an option was given that would do nothing beside the others, or two name
  // one file.
  void check_usage(const CLI::App& app) const;

  // Whether only forwards are run.
  [[nodiscard]] bool evaluates() const { return flags.find("eval")->second; }

  // Whether standard output has text for people; else it has a result.
  [[nodiscard]] bool prints_text() const { return trace != "-" && json != "-" && calibrate != "-"; }

  // Each throws InputError; program() also CLI::ParseError, where an option does nothing for the schedule, and world()
  // where this is one of several processes that --transport threads would not connect.
  // Of the forwards alone for --eval; what must be known of its file, or of how it was made, is added to `remarks`.
  [[nodiscard]] Program program(std::vector<std::string>& remarks) const;
  [[nodiscard]] TrainOptions train(const Placement& placement) const;
  [[nodiscard]] std::unique_ptr<World> world() const;
  // Whether MPI connects the processes of world(); and how long all of these are waited for at the start: --timeout, or
  // longer where that is short, as to load a program takes its time.
  [[nodiscard]] bool is_mpi() const;
  [[nodiscard]] std::chrono::nanoseconds start_timeout() const;
  [[nodiscard]] std::unique_ptr<Hardware> hardware(const World& world) const;  // null: the host
  [[nodiscard]] CudaOptions gpu() const { return {.copy = copy, .sm_partition = sm_partition}; }

 private:
  void add_settings(CLI::App& app, Setting::Group group, const std::string& title);
  [[nodiscard]] const std::string& value_of(std::string_view setting) const { return settings.find(setting)->second; }
  void check_files() const;
  void check_used(const Used& used) const;
  void check_alone() const;
  [[nodiscard]] std::chrono::nanoseconds wait_timeout() const;
  void set_costs(ModelShape& shape, const Placement& placement) const;
  [[nodiscard]] std::vector<int> layers_of_stages(const Placement& placement) const;
};

// Trains, compares, checks and writes what the options ask for. Throws where the run, or the check, fails.
// Every process of the world does; the first one alone prints and writes.
void run(const RunOptions& options, World& world, const std::stop_token& stop);

}  // namespace dualpipe
