// The value of an entry straight from its weight and gradient as they lie in memory: loops over it have no
// buffers between, so that the processor looks ahead into the next loads by itself.
#pragma once

#include "chunk.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Gradients divided by a power of two are multiplied by its inverse, which rounds alike and takes a fraction
// of the time. 1 where there is no scale, 0 where the scale has no such inverse.
template <class T>
T exact_inverse(const float* grad_scale) {
  if (grad_scale == nullptr) return T(1);
  const uint32_t bits = bit_cast<uint32_t>(*grad_scale), exponent = bits >> 23 & 0xff;
  const bool has_one = (bits & 0x7fffff) == 0 && exponent > 0 && exponent < 254;
  return has_one ? T(1) / static_cast<T>(*grad_scale) : T(0);
}

// The rule for gradients that have been divided already.
UpdateRule unscaled(UpdateRule rule) {
  rule.grad_scale = nullptr;
  return rule;
}

// The metric's value of an entry; where kCareful, its gradient is scaled and it may be dropped if not finite.
template <Metric kMetric, bool kCareful, class T>
struct EntryRule {
  static constexpr Metric metric = kMetric;
  T inverse_scale;
  Key<T> drops;  // 1 or 0

  // By arithmetic, in which an exponent of all ones overflows: of choices the compiler makes paths through a
  // loop, which then does not vectorise.
  PRUNEOPS_HD T finite_or_dropped(T value) const {
    constexpr int kMantissa = sizeof(T) == sizeof(float) ? 23 : 52, kSign = 8 * sizeof(T) - 1;
    constexpr Key<T> kLast = Key<T>(1) << kMantissa, kExponent = (Key<T>(1) << kSign) - kLast;
    const Key<T> bits = bit_cast<Key<T>>(value);
    const Key<T> dropped = ((bits & kExponent) + kLast) >> kSign & drops;
    return bit_cast<T>(bits & (dropped - 1));
  }

  template <class E>
  PRUNEOPS_HD T value(const typename E::type* w, const typename E::type* g, int64_t i) const {
    const T weight = reads_weight(kMetric) ? E::template load<T>(w[i]) : T(0);
    const T grad = reads_grad(kMetric) ? E::template load<T>(g[i]) : T(0);
    const T value = element_value<T>(kMetric, weight, kCareful ? grad * inverse_scale : grad, T(0));
    return kCareful ? finite_or_dropped(value) : value;
  }
};

// f(EntryRule) for an update, whose scale must have an inverse.
template <bool kCareful, class T, class F>
void visit_entry_rule_of(const UpdateRule& rule, bool drops, const F& f) {
  visit_metric(rule.metric, [&](auto constant) {
    constexpr Metric kMetric = decltype(constant)::value;
    if constexpr (kMetric != Metric::wanda) {
      f(EntryRule<kMetric, kCareful, T>{exact_inverse<T>(rule.grad_scale), drops});
    }
  });
}
template <class T, class F>
void visit_entry_rule(const UpdateRule& rule, bool drops, const F& f) {
  drops || rule.grad_scale != nullptr ? visit_entry_rule_of<true, T>(rule, drops, f)
                                      : visit_entry_rule_of<false, T>(rule, drops, f);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
