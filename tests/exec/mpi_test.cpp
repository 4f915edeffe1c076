// The engine that moves messages over MPI, on a communicator of this process alone.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
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

using detail::transport::bytes_of;
using detail::transport::check_same_build;
using detail::transport::Engine;
using detail::transport::header_of;
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
  void deliver(int, WireMessage message) override { record("delivered", message.note); }
  void refused(int from, const std::string& reason) override { record(std::to_string(from) + ": " + reason); }
  void broken(const std::string& reason) override { record("broken: " + reason); }
  void lost(int, std::chrono::nanoseconds) override {}
  [[nodiscard]] bool is_awaited() const override { return true; }

  // When so much is heard: all of it.
  [[nodiscard]] std::vector<std::string> await(std::size_t count) {
    for (const auto deadline = Clock::now() + 10s; Clock::now() < deadline; std::this_thread::sleep_for(1ms)) {
      if (heard().size() >= count) return heard();
    }
    return {"nothing"};
  }
  [[nodiscard]] std::vector<std::string> heard() {
    const std::lock_guard lock(mutex_);
    return heard_;
  }
  [[nodiscard]] std::vector<std::string> notes() {
    const std::lock_guard lock(mutex_);
    return notes_;
  }

 private:
  void record(const std::string& what, const std::string& note = "") {
    const std::lock_guard lock(mutex_);
    heard_.push_back(what);
    notes_.push_back(note);
  }

  std::mutex mutex_;
  std::vector<std::string> heard_;
  std::vector<std::string> notes_;
};

constexpr std::size_t short_piece = 150;

WireMessage part_of(const std::vector<std::int64_t>& sizes) {
  return {.kind = WireMessage::Kind::part, .tensors = {at::empty(sizes)}};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exec_mpi)

// --- the end

// Its receiver does not go on: MPI still reads it, after the engine has ended. It is a copy of the tensor.
BOOST_AUTO_TEST_CASE(what_mpi_still_sends_stays) {
  const Communicator communicator;
  constexpr std::int64_t count = 1'000'000;  // so much is not taken in unasked
  std::string expected;
  {
    Recorder recorder;
    MpiEngine engine(communicator.get(), false, recorder);
    engine.start();
    const WireMessage message{.kind = WireMessage::Kind::part, .tensors = {at::full({count}, 5.0F)}};
    expected = bytes_of(message);
    engine.send(0, message);
    message.tensors[0].fill_(0.0F);  // somebody else's now
  }
  BOOST_TEST(MpiEngine::has_left_requests());
  const auto received = communicator.receive<char>(expected.size(), MpiEngine::tag);
  BOOST_TEST((std::string(received.begin(), received.end()) == expected));
  const auto deadline = Clock::now() + 10s;
  while (MpiEngine::has_left_requests() && Clock::now() < deadline) std::this_thread::sleep_for(1ms);
  BOOST_TEST(!MpiEngine::has_left_requests());
}

BOOST_AUTO_TEST_CASE(an_engine_that_has_ended_takes_nothing_in) {
  Communicator communicator;
  communicator.send(std::string(short_piece, 'x'), MpiEngine::tag);  // another piece has to follow
  {
    Recorder recorder;
    MpiEngine engine(communicator.get(), true, recorder, short_piece);
    engine.start();
    for (int i = 0; i < 50; ++i) {
      engine.progress();
      std::this_thread::sleep_for(1ms);
    }
    BOOST_TEST(recorder.heard().empty());
  }
  BOOST_TEST(!MpiEngine::has_left_requests());
  BOOST_TEST(!communicator.holds(MpiEngine::tag));
  communicator.send("for somebody else", MpiEngine::tag);
  BOOST_TEST(communicator.receive<char>(17, MpiEngine::tag)[0] == 'f');
}

// --- what is longer than MPI can count

BOOST_AUTO_TEST_CASE(long_messages_go_in_pieces_and_come_in_order) {
  Communicator communicator;
  Recorder recorder;
  MpiEngine engine(communicator.get(), true, recorder, short_piece);
  engine.start();
  std::vector<std::string> sent;
  for (std::size_t length = 0; length <= 3 * short_piece; ++length) {  // ends at each place of a piece, also at its end
    for (const std::size_t each : {5 * short_piece - length, length}) {
      sent.push_back(std::string(each, 'x') + std::to_string(sent.size()));
      engine.send(0, {.kind = WireMessage::Kind::abort, .note = sent.back()});
    }
  }
  (void)recorder.await(sent.size());
  BOOST_TEST(recorder.notes() == sent, boost::test_tools::per_element());
  BOOST_TEST(engine.all_sent());
}

// --- what another process may send

BOOST_AUTO_TEST_CASE(what_is_no_message_is_refused) {
  struct Case {
    std::vector<std::string> pieces;
    std::string heard;
  };
  const std::string plain = bytes_of({.kind = WireMessage::Kind::part});
  const std::string own = header_of({.kind = WireMessage::Kind::part});
  const auto with_length = [](const std::string& header, std::uint64_t length) {
    return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header;
  };
  const std::string header = header_of(part_of({2}));
  const std::string two_floats = with_length(header, header.size());
  const std::string whole = bytes_of({.kind = WireMessage::Kind::abort, .note = std::string(short_piece, 'x')});
  const std::string first = whole.substr(0, short_piece);
  const std::string rest = whole.substr(short_piece);
  BOOST_REQUIRE((plain.size() < short_piece && two_floats.size() + 9 < short_piece && rest.size() < short_piece));
  const std::string less = "0: another process sent less than was expected";
  const std::string more = "0: another process sent more than was expected";
  const std::vector<Case> cases{{{plain}, "delivered"},
                                {{""}, less},
                                {{"abc"}, less},
                                {{plain.substr(0, plain.size() - 3)}, less},
                                {{plain + "abc"}, more},
                                {{with_length(own, std::uint64_t{1} << 60U)}, less},
                                {{with_length(std::string(5, 'x'), 5)}, less},
                                {{with_length(own + "x", own.size() + 1)}, more},
                                {{first, rest}, "delivered"},
                                {{first, rest.substr(0, 3)}, less},
                                {{first, rest + "x"}, more},
                                {{first, ""}, less},
                                {{two_floats + "12345678"}, "delivered"},
                                {{two_floats + "1234567"}, less},
                                {{two_floats + "123456789"}, more}};
  for (const Case& each : cases) {
    Communicator communicator;
    for (const std::string& piece : each.pieces) communicator.send(piece, MpiEngine::tag);
    communicator.send(plain, MpiEngine::tag);
    Recorder recorder;
    MpiEngine engine(communicator.get(), true, recorder, short_piece);
    engine.start();
    BOOST_TEST(recorder.await(1).front() == each.heard);
    if (each.heard != "delivered") {  // nothing more of who sends such things
      std::this_thread::sleep_for(5ms);
      BOOST_TEST(recorder.heard().size() == 1U);
    }
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
