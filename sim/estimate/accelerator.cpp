#include "dualpipe/sim/estimate/accelerator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "dualpipe/sim/schedule/error.h"
#include "dualpipe/sim/schedule/nearest.h"
#include "dualpipe/sim/schedule/quote.h"

namespace dualpipe {

// Peaks are those of dense products: the sheets of NVIDIA give them with 2:4 sparsity, twice as much. NVLink and
// Infinity Fabric are given for both directions together. NVIDIA's nodes have switches; AMD's have a link between any
// two.
std::span<const Accelerator> accelerators() {
  static constexpr Bytes gb = 1'000'000'000;
  static constexpr std::array all{
      Accelerator{
          .name = "a100",
          .title = "NVIDIA A100 SXM4 80 GB",
          .flops_16bit = 312e12,
          .flops_8bit = 0,
          .memory = 80 * gb,
          .memory_bandwidth = 2.039e12,
          .link_bandwidth = 300e9,
          .peer_bandwidth = 300e9,
          .network_bandwidth = 25e9,
          .source = "NVIDIA A100 Tensor Core GPU data sheet (2021): NVLink of 600 GB/s; DGX A100: 200 Gb/s each"},
      Accelerator{.name = "b200",
                  .title = "NVIDIA B200 SXM 180 GB",
                  .flops_16bit = 2250e12,
                  .flops_8bit = 4500e12,
                  .memory = 180 * gb,
                  .memory_bandwidth = 8e12,
                  .link_bandwidth = 900e9,
                  .peer_bandwidth = 900e9,
                  .network_bandwidth = 50e9,
                  .source =
                      "NVIDIA DGX B200 data sheet (2024), an eighth of 72 PFLOP/s (sparse) of fp8, 1440 GB, 64 TB/s "
                      "and 14.4 TB/s of NVLink; 400 Gb/s each"},
      Accelerator{.name = "h100",
                  .title = "NVIDIA H100 SXM5 80 GB",
                  .flops_16bit = 989.4e12,
                  .flops_8bit = 1978.9e12,
                  .memory = 80 * gb,
                  .memory_bandwidth = 3.35e12,
                  .link_bandwidth = 450e9,
                  .peer_bandwidth = 450e9,
                  .network_bandwidth = 50e9,
                  .source =
                      "NVIDIA H100 Tensor Core GPU architecture white paper (2022): NVLink of 900 GB/s; DGX H100: 400 "
                      "Gb/s each"},
      Accelerator{
          .name = "h200",
          .title = "NVIDIA H200 SXM5 141 GB",
          .flops_16bit = 989.4e12,
          .flops_8bit = 1978.9e12,
          .memory = 141 * gb,
          .memory_bandwidth = 4.8e12,
          .link_bandwidth = 450e9,
          .peer_bandwidth = 450e9,
          .network_bandwidth = 50e9,
          .source = "NVIDIA H200 Tensor Core GPU data sheet (2024): NVLink of 900 GB/s; DGX H200: 400 Gb/s each"},
      Accelerator{.name = "mi300x",
                  .title = "AMD Instinct MI300X 192 GB",
                  .flops_16bit = 1307.4e12,
                  .flops_8bit = 2614.9e12,
                  .memory = 192 * gb,
                  .memory_bandwidth = 5.3e12,
                  .link_bandwidth = 448e9,
                  .peer_bandwidth = 64e9,
                  .network_bandwidth = 50e9,
                  .source = "AMD Instinct MI300X accelerator data sheet (2023): 7 links of 128 GB/s; 400 Gb/s each"},
  };
  return all;
}

const Accelerator& accelerator(std::string_view name) {
  const auto all = accelerators();
  const auto found = std::ranges::find(all, name, &Accelerator::name);
  if (found != all.end()) return *found;
  std::vector<std::string> names;
  for (const Accelerator& each : all) names.emplace_back(each.name);
  throw InputError(fmt::format("there is no GPU named {}{}; there are {}", detail::schedule::quote(name),
                               did_you_mean(name, names), fmt::join(names, ", ")));
}

}  // namespace dualpipe
