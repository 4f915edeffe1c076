// Fewer cases under the sanitizers, and without optimisation, of tests that go through thousands.
//
// There a case takes up to twenty times as long as in release, above all where LibTorch allocates, and the hundredth
// finds nothing that the tenth did not: sanitizers look for errors in the code that a case runs through, and many cases
// run through the same. What depends on the very case, the numbers that come out, is compared in release, with all of
// them. So that every value of every factor of a product still comes up, the stride has no divisor in common with the
// lengths of the factors.
#pragma once

#include <boost/test/data/monomorphic.hpp>
#include <cstddef>
#include <utility>

namespace dualpipe::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
inline constexpr bool slow = true;
#else
inline constexpr bool slow = false;
#endif

// For loops: whether this is a case to run. Where it is slow each stride-th is, beginning with the first.
class Thinned {
 public:
  explicit Thinned(std::size_t stride) : stride_(slow ? stride : 1) {}
  [[nodiscard]] bool next() { return count_++ % stride_ == 0; }

 private:
  std::size_t stride_;
  std::size_t count_ = 0;
};

// For BOOST_DATA_TEST_CASE: each stride-th sample of a dataset.
template <typename Dataset>
class ThinnedDataset {
 public:
  enum { arity = Dataset::arity };

  class iterator {
   public:
    using Below = decltype(std::declval<const Dataset&>().begin());
    iterator(Below below, std::size_t stride) : below_(std::move(below)), stride_(stride) {}

    // Steps only to samples that are asked for, never past the end.
    decltype(auto) operator*() {
      for (; behind_ > 0; --behind_) ++below_;
      return *below_;
    }
    void operator++() { behind_ += stride_; }

   private:
    Below below_;
    std::size_t stride_;
    std::size_t behind_ = 0;
  };

  ThinnedDataset(Dataset&& dataset, std::size_t stride) : dataset_(std::move(dataset)), stride_(stride) {}

  [[nodiscard]] boost::unit_test::data::size_t size() const {
    return (dataset_.size().value() + stride_ - 1) / stride_;
  }
  [[nodiscard]] iterator begin() const { return iterator(dataset_.begin(), stride_); }

 private:
  Dataset dataset_;
  std::size_t stride_;
};

template <typename Dataset>
[[nodiscard]] ThinnedDataset<Dataset> thinned(std::size_t stride, Dataset dataset) {
  return {std::move(dataset), slow ? stride : 1};
}

}  // namespace dualpipe::test

namespace boost::unit_test::data::monomorphic {
template <typename Dataset>
struct is_dataset<dualpipe::test::ThinnedDataset<Dataset>> : mpl::true_ {};
}  // namespace boost::unit_test::data::monomorphic
