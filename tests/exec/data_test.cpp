#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "dualpipe/exec/model/model.h"
#include "tests/exec/chain.h"

namespace dualpipe {
namespace {

using test::refusal;
using test::same_bits;
using test::small;

const std::vector<std::string> models = {"mlp", "gpt", "moe"};

struct TemporaryFile {
  explicit TemporaryFile(const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }
  ~TemporaryFile() { std::filesystem::remove(path); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  std::string path =
      (std::filesystem::temp_directory_path() / ("dualpipe_tokens_" + std::to_string(::getpid()))).string();
};

std::string int32s(const std::vector<std::int32_t>& values) {
  std::string bytes(values.size() * sizeof(std::int32_t), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}
BOOST_AUTO_TEST_SUITE(exec_data)

BOOST_DATA_TEST_CASE(synthetic_data_depends_on_its_arguments_alone, boost::unit_test::data::make(models), model) {
  const ModelShape shape = small(model, {1});
  const auto data = synthetic_data(shape, 5);
  const at::Tensor input = data->input(3, 4);
  const at::Tensor target = data->target(3, 4);
  static_cast<void>(data->input(0, 0));
  BOOST_TEST(same_bits(data->input(3, 4), input));
  BOOST_TEST(same_bits(synthetic_data(small(model, {2, 1}), 5)->target(3, 4), target));
  BOOST_TEST(!same_bits(data->input(3, 5), input));
  BOOST_TEST(!same_bits(data->input(4, 4), input));
  BOOST_TEST(!same_bits(synthetic_data(shape, 6)->input(3, 4), input));
  BOOST_TEST((input.sizes() == target.sizes()));
  if (model != "mlp") {
    BOOST_TEST(at::equal(input.slice(1, 1), target.slice(1, 0, shape.sequence - 1)));
    BOOST_TEST(input.min().item<std::int64_t>() >= 0);
    BOOST_TEST(input.max().item<std::int64_t>() < shape.vocabulary);
  } else {
    BOOST_TEST(at::equal(input.slice(1, 0, shape.hidden - 1), target.slice(1, 1)));
  }
}

BOOST_AUTO_TEST_CASE(token_file_goes_round_and_round) {
  std::vector<std::int32_t> tokens(20);
  std::iota(tokens.begin(), tokens.end(), 0);
  const TemporaryFile file(int32s(tokens));
  ModelShape shape = small("gpt", {1});  // sequences of 7 tokens: two samples, then round again
  shape.batch = 1;
  const auto data = token_file(shape, file.path, 3);
  BOOST_TEST(at::equal(data->input(0, 0), at::arange(0, 7).view({1, 7})));
  BOOST_TEST(at::equal(data->target(0, 0), at::arange(1, 8).view({1, 7})));
  BOOST_TEST(at::equal(data->input(0, 1), at::arange(7, 14).view({1, 7})));
  BOOST_TEST(at::equal(data->input(0, 2), data->input(0, 0)));
  BOOST_TEST(at::equal(data->input(1, 0), data->input(0, 1)));  // sample 3
  shape.batch = 2;
  BOOST_TEST(at::equal(token_file(shape, file.path, 3)->target(0, 0), at::arange(1, 15).view({2, 7})));
}

BOOST_AUTO_TEST_CASE(token_files_that_do_not_fit) {
  const ModelShape shape = small("gpt", {1});
  const auto refused = [&shape](const std::string& bytes) {
    const TemporaryFile file(bytes);
    const std::string what = refusal([&] { static_cast<void>(token_file(shape, file.path, 1)); });
    BOOST_TEST(what.starts_with(file.path + ": "));
    return what.substr(std::min(what.size(), file.path.size() + 2));
  };
  BOOST_TEST(refused(int32s({1, 2, 3})) ==
             "has 3 tokens, but a sample takes 8 (a sequence, and the token that "
             "follows it); lower --sequence, or give a longer file");
  BOOST_TEST(refused("").starts_with("has 0 tokens"));
  BOOST_TEST(refused("abcdefghi").starts_with("has 9 bytes, which is no whole number of int32 tokens"));
  BOOST_TEST(refused(int32s({0, 1, 2, 3, 4, 5, 6, 31, 8}))
                 .starts_with("token 7 is 31, but the vocabulary has 31, from 0 to 30; raise --vocabulary"));
  BOOST_TEST(refused(int32s({0, 1, 2, 3, 4, 5, 6, 7, -1})).starts_with("token 8 is -1"));
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(shape, "/nowhere/tokens", 1)); }) ==
             "/nowhere/tokens: cannot be opened: No such file or directory");
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(shape, "/", 1)); }).starts_with("/: is not a regular file"));
  BOOST_TEST(refusal([&] { static_cast<void>(token_file(small("mlp", {1}), "t", 1)); }) ==
             "t: the model mlp reads no tokens; use gpt or moe, or leave the file out");
}
BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace dualpipe
