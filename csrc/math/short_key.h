// Scores with the precision of a bfloat16: half of a float key's bits tell their order.
#pragma once

#include "order.h"

namespace pruneops {

struct ShortFloat {
  float value;
  explicit PRUNEOPS_HD ShortFloat(float x) : value(x) {}
};

template <>
struct KeyOf<ShortFloat> {
  using type = uint16_t;
};

// The other bits of such a score are 0, and those of its key all 0 or, for negative scores, all 1.
PRUNEOPS_HD uint16_t sort_key(ShortFloat score) {
  return static_cast<uint16_t>(sort_key(score.value) >> 16);
}

}  // namespace pruneops
