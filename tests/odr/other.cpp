#include <string>
#include <vector>

namespace dualpipe::test {

struct Mailbox {
  std::string letter;
  double arrived = 0;
};

std::vector<Mailbox> mailboxes_of_the_other() { return std::vector<Mailbox>(3); }

}  // namespace dualpipe::test
