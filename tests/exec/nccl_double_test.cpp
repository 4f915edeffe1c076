// The double of NCCL is as strict as what it stands for.
#include "tests/exec/nccl_double.h"

#include <ATen/ATen.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <string>
#include <thread>

namespace dualpipe::test {
namespace {

using namespace std::chrono_literals;

BOOST_AUTO_TEST_SUITE(exec_nccl_double)

// The double is as sharp as what it stands for: without the check, messages that are matched in another order hang, or
// arrive in each other's place; two groups that each wait for the other hang.
BOOST_AUTO_TEST_CASE(the_double_hangs_where_nccl_would) {
  NcclDouble nccl;
  const std::string id = nccl.unique_id();
  std::array<StreamDevice, 2> devices;
  std::array<Nccl::Communicator, 2> communicators{};
  for (int rank = 0; rank < 2; ++rank) communicators[static_cast<std::size_t>(rank)] = nccl.init(id, rank, 2, 1);
  at::Tensor buffer = at::zeros({8}, at::kDouble);
  const auto settle = [&](std::size_t rank) {
    for (int i = 0; i < 100; ++i) {
      if (nccl.state(communicators[rank]) == Nccl::State::done) return true;
    }
    return false;
  };
  const auto group = [&](std::size_t rank, bool sends) {
    devices[rank].use({Stream::Kind::message, 0});
    nccl.group_start();
    if (sends) {
      nccl.send(communicators[rank], buffer.const_data_ptr(), 64, static_cast<int>(1 - rank));
    } else {
      nccl.receive(communicators[rank], buffer.mutable_data_ptr(), 64, static_cast<int>(1 - rank));
    }
    nccl.group_end();
    return settle(rank);
  };
  BOOST_TEST(settle(0));
  BOOST_TEST(settle(1));
  BOOST_TEST(!group(0, true));  // not connected before the other has come to it
  BOOST_TEST(group(1, false));
  BOOST_TEST(settle(0));
  BOOST_TEST(!group(0, false));
  BOOST_TEST(group(1, true));
  BOOST_TEST(settle(0));
  for (StreamDevice& each : devices) each.finish();
  // Both receive first: each stream waits for what stands behind in the other.
  std::array<Event, 2> ends;
  for (const std::size_t rank : {0U, 1U}) BOOST_TEST(group(rank, false));
  for (const std::size_t rank : {0U, 1U}) {
    BOOST_TEST(group(rank, true));
    ends[rank] = devices[rank].record_event();
  }
  std::this_thread::sleep_for(50ms);
  for (const std::size_t rank : {0U, 1U}) BOOST_TEST(!devices[rank].is_done(ends[rank]));
  for (const Nccl::Communicator each : communicators) nccl.abort(each);
  for (StreamDevice& each : devices) each.finish();
  for (const std::size_t rank : {0U, 1U}) BOOST_TEST(devices[rank].is_done(ends[rank]));
}

BOOST_AUTO_TEST_CASE(the_double_takes_down_misuse) {
  NcclDouble nccl;
  StreamDevice device;
  device.use({Stream::Kind::message, 0});
  const auto communicator = nccl.init(nccl.unique_id(), 0, 1, 1);
  at::Tensor buffer = at::zeros({8}, at::kDouble);
  nccl.group_start();
  nccl.send(communicator, buffer.const_data_ptr(), 64, 0);       // in progress
  nccl.receive(communicator, buffer.mutable_data_ptr(), 32, 0);  // and of another size
  nccl.group_end();
  while (nccl.state(communicator) == Nccl::State::in_progress) {
  }
  device.finish();
  nccl.send(communicator, buffer.const_data_ptr(), 64, 0);
  nccl.abort(communicator);
  nccl.abort(communicator);
  BOOST_TEST(nccl.misuse().size() == 4U);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe::test
