// Two files of one program define dualpipe::test::Mailbox, each another one, and each makes a std::vector of it: the
// linker keeps one of the two vectors for both.
#include <vector>

namespace dualpipe::test {

struct Mailbox {
  int rank = 0;
};

std::vector<Mailbox> mailboxes_of_one() { return std::vector<Mailbox>(3); }

}  // namespace dualpipe::test
