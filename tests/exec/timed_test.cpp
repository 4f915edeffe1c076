// The model that sleeps, and the one that does nothing.
#include <ATen/ATen.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <functional>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "dualpipe/sim/schedule/error.h"
#include "tests/exec/chain.h"

namespace dualpipe {
namespace {

using test::Chain;
using test::forward_backward;
using test::only;
using test::timed_shape;

BOOST_AUTO_TEST_SUITE(exec_timed)

// The least of some measurements, until one is below `enough`: other processes can only make it longer.
double least_ms(double enough, const std::function<void()>& call) {
  double least = 1e9;
  for (int i = 0; i < 100 && least >= enough; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
    BOOST_TEST(taken.count() >= enough - 1);
    least = std::min(least, taken.count());
  }
  return least;
}

#define CHECK_TAKES(milliseconds, call) \
  BOOST_TEST(least_ms((milliseconds) + 1.0, [&] { static_cast<void>(call); }) < (milliseconds) + 1.0)

BOOST_AUTO_TEST_CASE(timed_ops_take_their_time) {
  Chain chain(timed_shape());
  Stage& first = *chain.stages[0];
  Stage& last = *chain.stages[1];
  CHECK_TAKES(3.0, first.forward(0, {}));
  CHECK_TAKES(5.0, first.backward(0, {}));
  CHECK_TAKES(2.0, last.backward_input(0, {}));
  CHECK_TAKES(4.0, last.backward_weight(0));
  CHECK_TAKES(8.0, forward_backward(first, 0, {}, last, 0, {}));  // not measured together: F + B
  CHECK_TAKES(6.0, forward_backward(last, 0, {}, first, 0, {}));
}

BOOST_AUTO_TEST_CASE(timed_and_empty_stages_pass_small_tensors) {
  ModelShape empty = timed_shape();
  empty.model = "empty";
  for (const ModelShape& shape : {timed_shape(), empty}) {
    Chain chain(shape);
    const at::Tensor output = only(chain.stages[0]->forward(0, {}));
    BOOST_TEST(output.numel() == 1);
    BOOST_TEST(only(chain.stages[1]->forward(0, {output})).dim() == 0);
    BOOST_TEST(only(chain.stages[1]->backward(0, {})).numel() == 1);
    BOOST_TEST(chain.stages[0]->backward(0, {output}).empty());
    BOOST_TEST(chain.stages[0]->backward_input(0, {output}).empty());
    const Overlapped pair = forward_backward(*chain.stages[1], 0, {output}, *chain.stages[0], 0, {output});
    BOOST_TEST(only(pair.outputs).dim() == 0);
    BOOST_TEST(pair.input_gradients.empty());
    BOOST_TEST(chain.parameters().empty());
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
