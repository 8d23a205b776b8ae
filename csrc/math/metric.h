// Every score formula, once: the value v of an entry, the value of a block, and how an old score is blended
// in. Builds switch contraction off, so that each operation rounds once and the results equal eager
// PyTorch's.
#pragma once

#include "portable.h"

namespace pruneops {

// What v is made of. `stored` is a score read as it is; `product` is the signed w*g of the block metrics.
enum class Metric : int32_t { stored, magnitude, gradient, snip, taylor, fisher, wanda, product };

PRUNEOPS_HD bool reads_weight(Metric m) {
  return m != Metric::gradient && m != Metric::fisher;
}
PRUNEOPS_HD bool reads_grad(Metric m) {
  return m != Metric::stored && m != Metric::magnitude && m != Metric::wanda;
}

PRUNEOPS_HD float magnitude_of(float x) {
  return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
}
PRUNEOPS_HD double magnitude_of(double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & 0x7fffffffffffffffu);
}

PRUNEOPS_HD bool is_finite(float x) {
  return (bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}
PRUNEOPS_HD bool is_finite(double x) {
  return (bit_cast<uint64_t>(x) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}
template <class T>
PRUNEOPS_HD T finite_or_zero(T x) {
  return is_finite(x) ? x : T(0);
}

// v of one entry. `w` is the weight (or the stored score), `g` its gradient, `norm` the input norm of its
// column.
template <class T>
PRUNEOPS_HD T element_value(Metric metric, T w, T g, T norm) {
  switch (metric) {
    case Metric::stored:
      return w;
    case Metric::magnitude:
      return magnitude_of(w);
    case Metric::gradient:
      return magnitude_of(g);
    case Metric::snip:
      return magnitude_of(w * g);
    case Metric::taylor:
      return (w * g) * (w * g);
    case Metric::fisher:
      return g * g;
    case Metric::wanda:
      return magnitude_of(w) * norm;
    case Metric::product:
      return w * g;
  }
  return T(0);
}

// Calls f with the metric as a compile-time constant, so that loops over entries do not branch on it.
template <Metric kMetric>
struct MetricConstant {
  static constexpr Metric value = kMetric;
};
template <class F>
PRUNEOPS_HD void visit_metric(Metric metric, F&& f) {
  switch (metric) {
    case Metric::stored:
      return f(MetricConstant<Metric::stored>{});
    case Metric::magnitude:
      return f(MetricConstant<Metric::magnitude>{});
    case Metric::gradient:
      return f(MetricConstant<Metric::gradient>{});
    case Metric::snip:
      return f(MetricConstant<Metric::snip>{});
    case Metric::taylor:
      return f(MetricConstant<Metric::taylor>{});
    case Metric::fisher:
      return f(MetricConstant<Metric::fisher>{});
    case Metric::wanda:
      return f(MetricConstant<Metric::wanda>{});
    case Metric::product:
      return f(MetricConstant<Metric::product>{});
  }
}

// How the values of a block become one. The last two finish a sum of `product` values.
enum class Reduce : int32_t { mean, sum, max, abs_sum, square_sum };

template <Reduce kReduce>
struct ReduceConstant {
  static constexpr Reduce value = kReduce;
};
template <class F>
PRUNEOPS_HD void visit_reduce(Reduce reduce, F&& f) {
  switch (reduce) {
    case Reduce::mean:
      return f(ReduceConstant<Reduce::mean>{});
    case Reduce::sum:
      return f(ReduceConstant<Reduce::sum>{});
    case Reduce::max:
      return f(ReduceConstant<Reduce::max>{});
    case Reduce::abs_sum:
      return f(ReduceConstant<Reduce::abs_sum>{});
    case Reduce::square_sum:
      return f(ReduceConstant<Reduce::square_sum>{});
  }
}

// NaN wins a maximum, as in torch.amax.
template <class T>
PRUNEOPS_HD T max_or_nan(T a, T b) {
  return (a > b || a != a) ? a : b;
}

template <class T>
PRUNEOPS_HD T combine(Reduce reduce, T a, T b) {
  return reduce == Reduce::max ? max_or_nan(a, b) : a + b;
}

template <class T>
PRUNEOPS_HD T reduce_identity(Reduce reduce) {
  return reduce == Reduce::max ? -bit_cast<float>(0x7f800000u) : T(0);
}

// The value of a block whose entries have been summed, for all but the mean.
template <class T>
PRUNEOPS_HD T finish_sum(Reduce reduce, T total) {
  return reduce == Reduce::abs_sum      ? magnitude_of(total)
         : reduce == Reduce::square_sum ? total * total
                                        : total;
}
template <class T>
PRUNEOPS_HD T finish_block(Reduce reduce, T total, int64_t entries) {
  return reduce == Reduce::mean ? total / static_cast<T>(entries) : finish_sum(reduce, total);
}

// What one update does, apart from the tensors. grad_scale and found_inf may be null; they are read where the
// tensors are, so that no value comes back to the host.
struct UpdateRule {
  Metric metric;
  Reduce reduce;
  double alpha;
  double beta;
  const float* grad_scale;
  const float* found_inf;
  bool skip_nonfinite;

  PRUNEOPS_HD bool reads_score() const { return alpha != 0.0; }
  // Whether gradients overflowed, so that nothing is to be updated.
  PRUNEOPS_HD bool overflowed() const { return found_inf != nullptr && *found_inf != 0.0f; }
};

// score = alpha * score + beta * v, or beta * v alone where the old score is not read.
template <class T>
PRUNEOPS_HD T blend(bool reads_score, T alpha, T score, T beta, T v) {
  const T fresh = beta * v;
  return reads_score ? alpha * score + fresh : fresh;
}

}  // namespace pruneops
