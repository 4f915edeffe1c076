// NCCL's communicators between ranks that are threads of this process, whatever carries out what they move: threads
// (nccl_double.h), or the streams of a GPU that the host stands for (tests/cuda_double/nccl.cpp). Nonblocking ones
// alone.
//
// - A call is not done when it returns: a group is put on its stream only when is_done() has said so, and two ranks
// that
//   exchange something for the first time wait for each other there.
// - Messages of one peer are matched in order, those of different peers in any.
// - Misuse is told: calls outside of a group, on a communicator that is in progress or gone, messages of unlike sizes,
// an
//   end with messages under way.
#pragma once

#include <any>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dualpipe::test {

class NcclCore {
 public:
  using Communicator = void*;
  struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
  };

  struct Transfer {
    void* data = nullptr;
    std::size_t bytes = 0;
    int peer = 0;
    bool is_send = false;
    bool is_matched = false;
    std::shared_ptr<Transfer> sent{};  // of a receive: what it was matched with
    // Of what carries it out.
    std::shared_ptr<void> carried{};
    std::vector<std::byte> content{};
  };
  struct Member;
  struct Group {
    Member* member = nullptr;
    std::any stream;  // on which it was called
    std::vector<std::shared_ptr<Transfer>> transfers;
  };

  NcclCore();
  NcclCore(const NcclCore&) = delete;
  NcclCore& operator=(const NcclCore&) = delete;
  virtual ~NcclCore();

  [[nodiscard]] std::string unique_id();
  [[nodiscard]] Communicator init(const std::string& unique_id, int rank, int ranks);
  // Whether it is not in progress any more. Throws Failure after a fail().
  [[nodiscard]] bool is_done(Communicator communicator);
  void group_start();
  void add(Communicator communicator, Transfer transfer, const std::any& stream);
  void group_end();
  void finalize(Communicator communicator);
  void destroy(Communicator communicator);
  void abort(Communicator communicator);

  // The communicators of this rank report an error from now on.
  void fail(int rank, const std::string& error);
  // What a rank has called, in order: "init 0", "0: send 8 to 1, receive 8 from 2", "abort 1", …; 0 and 1 are its
  // communicators in the order in which it made them.
  [[nodiscard]] std::vector<std::string> calls(int rank) const;

 protected:
  // All of these with the mutex held.

  // Puts a group on its stream. What does that calls post() when the stream has come to it.
  virtual void launch(const std::shared_ptr<Group>& group) = 0;
  // Both are there, and neither was aborted.
  virtual void matched(Transfer& /*sent*/, Transfer& /*received*/) {}
  // Something has been matched, or aborted.
  virtual void changed() {}
  virtual void misused(const std::string& how) = 0;

  void post(const std::shared_ptr<Group>& group);
  [[nodiscard]] static bool is_aborted(const Group& group);
  [[nodiscard]] static std::size_t number_of(const Group& group);  // of its communicator, among the rank's
  [[nodiscard]] static int rank_of(const Group& group);

  mutable std::mutex mutex_;

 private:
  struct Fabric;

  [[nodiscard]] Member& member(Communicator communicator, const char* call);
  [[nodiscard]] bool is_connected(const Group& group) const;
  void match(Fabric& fabric, const std::pair<int, int>& ends);
  void note(const Member& member, const std::string& call);

  int ids_ = 0;
  std::map<std::string, std::unique_ptr<Fabric>> fabrics_;  // by unique id
  std::vector<std::unique_ptr<Member>> members_;
  std::map<int, std::vector<std::string>> calls_;
};

}  // namespace dualpipe::test
