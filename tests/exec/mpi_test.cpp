// The engine that moves parcels over MPI, on a communicator of this process alone.
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
#include "dualpipe/exec/transport/world.h"
#include "dualpipe/sim/schedule/error.h"

namespace dualpipe::test {

using detail::transport::check_same_build;
using detail::transport::Engine;
using detail::transport::Form;
using detail::transport::MpiEngine;
using detail::transport::Parcel;
using detail::transport::this_build;

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Envelope = MpiEngine::Envelope;

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

// Whose parcels bring one tensor each, of two floats; but in run 7 none can.
class Recorder final : public Engine::Receiver {
 public:
  [[nodiscard]] std::vector<Form> forms_of(const Parcel& parcel) override {
    if (parcel.run == 7) throw std::runtime_error("there is no run 7");
    return {{{2}, at::kFloat}};
  }
  void deliver(int, Parcel) override { record("delivered"); }
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

std::string bytes_of(const Envelope& envelope) { return {reinterpret_cast<const char*>(&envelope), sizeof(Envelope)}; }

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
    Parcel parcel{.kind = Parcel::Kind::part};
    parcel.content.push_back(at::from_blob(memory.data(), {static_cast<std::int64_t>(count)}, give_back, at::kFloat));
    (void)engine.send(0, std::move(parcel));
  }
  BOOST_TEST(!is_given_back);
  BOOST_TEST(MpiEngine::has_left_requests());
  BOOST_TEST(communicator.receive<Envelope>(1, MpiEngine::envelope_tag)[0].tensors == 1U);
  const auto received = communicator.receive<float>(count, MpiEngine::bytes_tag);
  BOOST_TEST(std::ranges::count(received, 5.0F) == std::ssize(received));
  const auto deadline = Clock::now() + 10s;
  while (MpiEngine::has_left_requests() && Clock::now() < deadline) std::this_thread::sleep_for(1ms);
  BOOST_TEST(is_given_back);
}

BOOST_AUTO_TEST_CASE(an_engine_that_has_ended_takes_nothing_in) {
  Communicator communicator;
  Envelope envelope;
  envelope.note_bytes = 100;
  communicator.send(bytes_of(envelope), MpiEngine::envelope_tag);
  {
    Recorder recorder;
    MpiEngine engine(communicator.get(), true, recorder);
    engine.start();
    for (int i = 0; i < 50; ++i) {  // until it waits for the note, and for what comes after it
      engine.progress();
      std::this_thread::sleep_for(1ms);
    }
  }
  BOOST_TEST(!MpiEngine::has_left_requests());
  BOOST_TEST(!communicator.holds(MpiEngine::envelope_tag));
  communicator.send(std::string(100, 'x'), MpiEngine::bytes_tag);
  communicator.send("for somebody else", MpiEngine::envelope_tag);
  BOOST_TEST(communicator.receive<char>(100, MpiEngine::bytes_tag)[99] == 'x');
  BOOST_TEST(communicator.receive<char>(17, MpiEngine::envelope_tag)[0] == 'f');
}

// --- what another process may send

BOOST_AUTO_TEST_CASE(what_is_no_parcel_is_refused) {
  Envelope plain;
  plain.kind = Parcel::Kind::part;
  const auto with = [&](auto member, auto value) {
    Envelope changed = plain;
    changed.*member = value;
    return bytes_of(changed);
  };
  const std::string full = std::to_string(sizeof(Envelope));
  struct Case {
    std::string envelope;
    std::string bytes;
    std::string heard;
  };
  Envelope of_run_7 = plain;
  of_run_7.tensors = 1;
  of_run_7.run = 7;
  const std::vector<Case> cases{
      {bytes_of(plain), "", "delivered"},
      {"abc", "", "0: 3 bytes where " + full + " belong"},
      {bytes_of(plain) + "abc", "", "0: more bytes where " + full + " belong"},
      {with(&Envelope::note_bytes, std::uint64_t{1} << 60U), "",
       "0: a note of 1152921504606846976 bytes, more than this host has memory"},
      {with(&Envelope::note_bytes, 10U), "abc", "0: 3 bytes where 10 belong"},
      {with(&Envelope::note_bytes, 2U), "abc", "0: more bytes where 2 belong"},
      {with(&Envelope::tensors, 1U), "12345678", "delivered"},
      {with(&Envelope::tensors, 1U), "1234567", "0: 7 bytes where 8 belong"},
      {with(&Envelope::tensors, 3U), "", "0: 3 tensors, where 1 belong"},
      {bytes_of(of_run_7), "", "0: there is no run 7"},
  };
  for (const Case& each : cases) {
    Communicator communicator;
    communicator.send(each.envelope, MpiEngine::envelope_tag);
    if (!each.bytes.empty()) communicator.send(each.bytes, MpiEngine::bytes_tag);
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
