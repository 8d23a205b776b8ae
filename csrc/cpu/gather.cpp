#include "gather.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../math/order.h"
#include "denormals.h"

namespace pruneops::cpu {
namespace {

std::vector<uint64_t> importance_keys(const void* importance, Dtype dtype, int64_t instances) {
  const KeepDenormals denormals;
  std::vector<uint64_t> keys(static_cast<size_t>(instances));
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* source = static_cast<const typename E::type*>(importance);
    for (int64_t i = 0; i < instances; ++i) keys[i] = sort_key(E::template load<double>(source[i]));
  });
  return keys;
}

std::vector<int64_t> kept_instances(const SlabTensor& t, const void* importance, Dtype dtype,
                                    bool original_order) {
  const std::vector<uint64_t> keys = importance_keys(importance, dtype, t.instances);
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), int64_t(0));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] > keys[b]; });
  order.resize(static_cast<size_t>(t.kept));
  if (original_order) std::sort(order.begin(), order.end());
  return order;
}

struct Copy {
  const SlabTensor& tensor;
  const std::vector<int64_t>& kept;
};

// Slabs of a number of bytes that the compiler knows, which it copies in a register or two, or of any.
template <int64_t kBytes>
void copy_slabs_of(const Copy& copy, int64_t begin, int64_t end) {
  const auto& [t, kept] = copy;
  const int64_t bytes = kBytes > 0 ? kBytes : t.slab_bytes;
  char* target = static_cast<char*>(t.target) + begin * bytes;
  for (int64_t task = begin; task < end;) {
    const int64_t outer = task / t.kept, place = task - outer * t.kept,
                  run = min64(t.kept - place, end - task);
    const char* const source = static_cast<const char*>(t.source) + outer * t.instances * bytes;
    const int64_t* const wanted = kept.data() + place;
    for (int64_t i = 0; i < run; ++i) {
      memcpy(target + i * bytes, source + wanted[i] * bytes, static_cast<size_t>(bytes));
    }
    target += run * bytes;
    task += run;
  }
}

void copy_slabs(void* context, int64_t begin, int64_t end) {
  const Copy& copy = *static_cast<const Copy*>(context);
  switch (copy.tensor.slab_bytes) {
    case 1:
      return copy_slabs_of<1>(copy, begin, end);
    case 2:
      return copy_slabs_of<2>(copy, begin, end);
    case 4:
      return copy_slabs_of<4>(copy, begin, end);
    case 8:
      return copy_slabs_of<8>(copy, begin, end);
    case 16:
      return copy_slabs_of<16>(copy, begin, end);
    default:
      return copy_slabs_of<0>(copy, begin, end);
  }
}

}  // namespace

void gather_slabs(const SlabTensor& tensor, const void* importance, Dtype dtype, bool original_order,
                  const Pool& pool) {
  if (tensor.kept == 0 || tensor.outer == 0 || tensor.slab_bytes == 0) return;
  const std::vector<int64_t> kept = kept_instances(tensor, importance, dtype, original_order);
  Copy copy{tensor, kept};
  pool.run(tensor.outer * tensor.kept, copy_slabs, &copy);
}

}  // namespace pruneops::cpu
