// The tests of the libraries, in programs that are run suite by suite (see CMakeLists.txt).
#define BOOST_TEST_MODULE dualpipe
#include <boost/test/unit_test.hpp>
