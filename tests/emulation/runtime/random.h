// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the same numbers from a seed with every standard library.
#pragma once

#include <cstdint>
#include <utility>

namespace emulation {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

  // Below `bound`, which is far below 2^64: the bias does not matter here.
  uint64_t below(uint64_t bound) { return next() % bound; }

  template <class Sequence>
  void shuffle(Sequence& sequence) {
    for (size_t i = sequence.size(); i > 1; --i) std::swap(sequence[i - 1], sequence[below(i)]);
  }

 private:
  uint64_t state_;
};

}  // namespace emulation
