#include "gather.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "../math/order.h"

namespace pruneops::cpu {
namespace {

std::vector<uint64_t> importance_keys(const void* importance, Dtype dtype, int64_t instances) {
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

void copy_slabs(void* context, int64_t begin, int64_t end) {
  const auto& [t, kept] = *static_cast<const Copy*>(context);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t outer = task / t.kept, place = task % t.kept;
    const char* source =
        static_cast<const char*>(t.source) + (outer * t.instances + kept[place]) * t.slab_bytes;
    memcpy(static_cast<char*>(t.target) + task * t.slab_bytes, source, static_cast<size_t>(t.slab_bytes));
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
