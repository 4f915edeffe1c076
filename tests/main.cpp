// The tests of the library, in one program that is run suite by suite (see CMakeLists.txt).
#define BOOST_TEST_MODULE sim
#include <boost/test/unit_test.hpp>
