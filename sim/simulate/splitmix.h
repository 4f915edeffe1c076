// Random numbers that are the same on every machine: SplitMix64 (Steele, Lea, Flood 2014). Private to sim and exec.
#pragma once

#include <cstdint>

namespace dualpipe::detail::simulate {

// How far the state of a sequence goes on from one number to the next.
inline constexpr std::uint64_t splitmix_step = 0x9e3779b97f4a7c15U;

// The number that belongs to a state: all bits of it depend on all of the state's.
[[nodiscard]] constexpr std::uint64_t splitmix(std::uint64_t state) {
  state = (state ^ (state >> 30U)) * 0xbf58476d1ce4e5b9U;
  state = (state ^ (state >> 27U)) * 0x94d049bb133111ebU;
  return state ^ (state >> 31U);
}

}  // namespace dualpipe::detail::simulate
