// Memory is measured in a process that torch.profiler looks at, too.
#include <ATen/ATen.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#include <torch/csrc/autograd/profiler_legacy.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "dualpipe/exec/replay/memory.h"

namespace dualpipe::test {

using detail::replay::MemoryMeter;

namespace {

namespace data = boost::unit_test::data;
namespace profiler = torch::autograd::profiler;

constexpr std::int64_t count = 1000;
constexpr Bytes size = count * 4;

// What it saw.
struct Seen {
  int negations = 0;
  Bytes allocated = 0;
  Bytes freed = 0;

  void add(std::int64_t bytes) { (bytes > 0 ? allocated : freed) += bytes > 0 ? bytes : -bytes; }
};

class Profiler {
 public:
  explicit Profiler(bool is_legacy) : is_legacy_(is_legacy) {
    using torch::profiler::impl::ActivityType;
    using torch::profiler::impl::ProfilerConfig;
    using torch::profiler::impl::ProfilerState;
    const ProfilerConfig config(is_legacy ? ProfilerState::CPU : ProfilerState::KINETO, /*report_input_shapes=*/false,
                                /*profile_memory=*/true);
    if (is_legacy) {
      profiler::enableProfilerLegacy(config);
    } else {
      const std::set<ActivityType> activities = {ActivityType::CPU};
      profiler::prepareProfiler(config, activities);
      profiler::enableProfiler(config, activities);
    }
  }

  [[nodiscard]] Seen stop() const {
    Seen seen;
    if (is_legacy_) {
      for (const auto& thread : profiler::disableProfilerLegacy()) {
        for (const profiler::LegacyEvent& event : thread) {
          const bool is_start = event.kind() == profiler::EventKind::PushRange;
          if (is_start && std::string_view(event.name()) == "aten::neg") ++seen.negations;
          seen.add(event.cpuMemoryUsage());
        }
      }
    } else {
      const auto result = profiler::disableProfiler();
      for (const profiler::KinetoEvent& event : result->events()) {
        if (event.name() == "aten::neg") ++seen.negations;
        if (event.name() == "[memory]") seen.add(event.nBytes());
      }
    }
    return seen;
  }

 private:
  bool is_legacy_;
};

// Allocates 2 * size at a time, and frees it.
void work() { static_cast<void>(at::ones({count}).neg()); }

BOOST_AUTO_TEST_SUITE(exec_profiler)

// On one thread: which starts first, and which ends first.
BOOST_DATA_TEST_CASE(both_see_what_they_should,
                     data::make({false, true}) * data::make({false, true}) * data::make({false, true}), is_legacy,
                     meter_starts_first, meter_ends_first) {
  std::optional<MemoryMeter> meter;
  if (meter_starts_first) meter.emplace();
  at::Tensor kept = at::empty({count});
  const Profiler other(is_legacy);
  if (!meter_starts_first) meter.emplace();
  const Bytes before = meter_starts_first ? size : 0;
  work();
  BOOST_TEST(meter->held() == before);
  BOOST_TEST(meter->peak() >= before + 2 * size);
  BOOST_TEST(meter->peak() < before + 2 * size + 100);  // the scalar
  std::thread([&kept] { kept.reset(); }).join();
  BOOST_TEST(meter->held() == 0);
  if (meter_ends_first) meter.reset();
  work();
  const Seen seen = other.stop();
  BOOST_TEST(seen.negations == 2);
  BOOST_TEST(seen.allocated >= 4 * size);
  BOOST_TEST(seen.allocated < 4 * size + 200);
  BOOST_TEST(seen.freed == seen.allocated);
  if (!meter_ends_first) {
    work();
    BOOST_TEST(meter->held() == 0);
  }
  BOOST_TEST(c10::ThreadLocalDebugInfo::current() == nullptr);
}

// Blocks that are measured when a profiler starts are those of LibTorch's allocator, of the size that was asked for.
BOOST_AUTO_TEST_CASE(a_profiler_sees_the_sizes_that_were_asked_for) {
  const MemoryMeter meter;
  const Profiler other(false);
  const at::Tensor a = at::empty({count});
  BOOST_TEST(other.stop().allocated == size);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
