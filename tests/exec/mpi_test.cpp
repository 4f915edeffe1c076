// The engine that moves messages over MPI, on a communicator of this process alone.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <mpi.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dualpipe/exec/transport/build.h"
#include "dualpipe/exec/transport/mpi_engine.h"
#include "dualpipe/exec/transport/wire_message.h"
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {

using detail::transport::check_same_build;
using detail::transport::Engine;
using detail::transport::header_of;
using detail::transport::message_of;
using detail::transport::MpiEngine;
using detail::transport::this_build;
using detail::transport::WireMessage;

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// Of this process alone, and with errors returned, as an engine wants it.
class Communicator {
 public:
  Communicator() {
    (void)mpi_processes();  // starts MPI
    MPI_Comm_dup(MPI_COMM_SELF, &communicator_);
    MPI_Comm_set_errhandler(communicator_, MPI_ERRORS_RETURN);
  }
  ~Communicator() {
    MPI_Waitall(static_cast<int>(sends_.size()), sends_.data(), MPI_STATUSES_IGNORE);
    MPI_Comm_free(&communicator_);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] MPI_Comm get() const { return communicator_; }

  // Only while no engine is started: MPI is called by one thread at a time.
  void send(const std::string& bytes, int tag) {
    sent_.push_back(std::make_unique<std::string>(bytes));
    MPI_Isend(sent_.back()->data(), static_cast<int>(bytes.size()), MPI_BYTE, 0, tag, communicator_,
              &sends_.emplace_back());
  }
  template <typename T>
  [[nodiscard]] std::vector<T> receive(std::size_t count, int tag) const {
    std::vector<T> values(count);
    MPI_Recv(values.data(), static_cast<int>(count * sizeof(T)), MPI_BYTE, 0, tag, communicator_, MPI_STATUS_IGNORE);
    return values;
  }
  [[nodiscard]] bool holds(int tag) const {
    int is_there = 0;
    MPI_Iprobe(0, tag, communicator_, &is_there, MPI_STATUS_IGNORE);
    return is_there != 0;
  }

 private:
  MPI_Comm communicator_ = MPI_COMM_NULL;
  std::vector<std::unique_ptr<std::string>> sent_;
  std::vector<MPI_Request> sends_;
};

class Recorder final : public Engine::Receiver {
 public:
  void deliver(int, WireMessage) override { record("delivered"); }
  void refused(int from, const std::string& reason) override { record(std::to_string(from) + ": " + reason); }
  void broken(const std::string& reason) override { record("broken: " + reason); }
  void lost(int, std::chrono::nanoseconds) override {}
  [[nodiscard]] bool is_awaited() const override { return true; }

  // The first that is heard.
  [[nodiscard]] std::string await() {
    for (const auto deadline = Clock::now() + 10s; Clock::now() < deadline; std::this_thread::sleep_for(1ms)) {
      const std::lock_guard lock(mutex_);
      if (!heard_.empty()) return heard_.front();
    }
    return "nothing";
  }

 private:
  void record(const std::string& what) {
    const std::lock_guard lock(mutex_);
    heard_.push_back(what);
  }

  std::mutex mutex_;
  std::vector<std::string> heard_;
};

// As a header goes on its way; `length`: the number of its bytes that it says.
std::string with_length(const std::string& header, std::uint64_t length) {
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header;
}
std::string with_length(const std::string& header) { return with_length(header, header.size()); }

WireMessage part_of(const std::vector<std::int64_t>& sizes) {
  return {.kind = WireMessage::Kind::part, .tensors = {at::empty(sizes)}};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_mpi)

// --- the end

// Its receiver does not go on: MPI still reads the tensor, after the engine has ended.
BOOST_AUTO_TEST_CASE(what_mpi_still_sends_stays) {
  const Communicator communicator;
  constexpr std::size_t count = 1'000'000;  // so much is not taken in unasked
  std::vector<float> memory(count, 5.0F);
  bool is_given_back = false;
  {
    Recorder recorder;
    MpiEngine engine(communicator.get(), false, recorder);
    engine.start();
    const auto give_back = [&](void*) {
      is_given_back = true;
      std::ranges::fill(memory, 0.0F);  // somebody else's now
    };
    WireMessage message{.kind = WireMessage::Kind::part};
    message.tensors.push_back(at::from_blob(memory.data(), {static_cast<std::int64_t>(count)}, give_back, at::kFloat));
    (void)engine.send(0, std::move(message));
  }
  BOOST_TEST(!is_given_back);
  BOOST_TEST(MpiEngine::has_left_requests());
  const std::string expected = with_length(header_of(part_of({static_cast<std::int64_t>(count)})));
  const auto header = communicator.receive<char>(expected.size(), MpiEngine::header_tag);
  BOOST_TEST(std::string(header.begin(), header.end()) == expected);
  const auto received = communicator.receive<float>(count, MpiEngine::content_tag);
  BOOST_TEST(std::ranges::count(received, 5.0F) == std::ssize(received));
  const auto deadline = Clock::now() + 10s;
  while (MpiEngine::has_left_requests() && Clock::now() < deadline) std::this_thread::sleep_for(1ms);
  BOOST_TEST(is_given_back);
}

BOOST_AUTO_TEST_CASE(an_engine_that_has_ended_takes_nothing_in) {
  Communicator communicator;
  const WireMessage message{.kind = WireMessage::Kind::abort, .note = std::string(2 * MpiEngine::first_bytes, 'x')};
  communicator.send(with_length(header_of(message)).substr(0, MpiEngine::first_bytes), MpiEngine::header_tag);
  {
    Recorder recorder;
    MpiEngine engine(communicator.get(), true, recorder);
    engine.start();
    for (int i = 0; i < 50; ++i) {  // until it waits for the rest of the header
      engine.progress();
      std::this_thread::sleep_for(1ms);
    }
  }
  BOOST_TEST(!MpiEngine::has_left_requests());
  BOOST_TEST(!communicator.holds(MpiEngine::header_tag));
  communicator.send(std::string(100, 'x'), MpiEngine::content_tag);
  communicator.send("for somebody else", MpiEngine::header_tag);
  BOOST_TEST(communicator.receive<char>(100, MpiEngine::content_tag)[99] == 'x');
  BOOST_TEST(communicator.receive<char>(17, MpiEngine::header_tag)[0] == 'f');
}

// --- what another process may send

BOOST_AUTO_TEST_CASE(what_is_no_message_is_refused) {
  struct Case {
    std::string header;
    std::string content;
    std::string heard;
  };
  const std::string plain = with_length(header_of({.kind = WireMessage::Kind::part}));
  const std::string own = header_of({.kind = WireMessage::Kind::part});
  const std::string two_floats = with_length(header_of(part_of({2})));
  // So long that all but its last 10 bytes fit into the first piece.
  WireMessage long_one{.kind = WireMessage::Kind::abort};
  long_one.note = std::string(MpiEngine::first_bytes + 10 - plain.size(), 'x');
  const std::string whole = with_length(header_of(long_one));
  const std::string first = whole.substr(0, MpiEngine::first_bytes);
  const std::string rest = whole.substr(MpiEngine::first_bytes);
  BOOST_REQUIRE(rest.size() == 10U);
  const std::string no_header = with_length(std::string(5, 'x'));
  const std::vector<Case> cases{
      {plain, "", "delivered"},
      {"abc", "", "0: 3 bytes where a header belongs"},
      {plain + "abc", "",
       "0: " + std::to_string(plain.size() + 3) + " bytes where " + std::to_string(plain.size()) + " belong"},
      {std::string(MpiEngine::first_bytes + 1, 'x'), "", "0: more bytes where 512 belong"},
      {with_length(own, std::uint64_t{1} << 60U), "",
       "0: a header of 1152921504606846976 bytes, more than this host has memory"},
      {no_header, "", "0: another process sent less than was expected"},
      {with_length(own + "x"), "", "0: another process sent more than was expected"},
      {first, rest, "delivered"},
      {first, "abc", "0: 3 bytes where 10 belong"},
      {first, rest + "x", "0: more bytes where 10 belong"},
      {two_floats, "12345678", "delivered"},
      {two_floats, "1234567", "0: 7 bytes where 8 belong"},
      {two_floats, "123456789", "0: more bytes where 8 belong"},
  };
  for (const Case& each : cases) {
    Communicator communicator;
    communicator.send(each.header, MpiEngine::header_tag);
    if (!each.content.empty()) communicator.send(each.content, MpiEngine::content_tag);
    Recorder recorder;
    MpiEngine engine(communicator.get(), true, recorder);
    engine.start();
    BOOST_TEST(recorder.await() == each.heard);
  }
}

BOOST_AUTO_TEST_CASE(another_build_is_refused) {
  const std::string own = this_build();
  BOOST_TEST(own.find("DualPipe ") == 0U, own);
  check_same_build(std::vector<std::string>{own, own});
  BOOST_CHECK_EXCEPTION(
      check_same_build(std::vector<std::string>{own, own, "an older one"}), InputError, [&](const auto& error) {
        return error.what() ==
               "process 0 runs " + own + ", and process 2 an older one; start the same build on all hosts";
      });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace dualpipe::test
