// A chunk is a run of at most kChunk entries held as T (float, or double where an input is float64): whatever
// the dtypes and the metric, the loops between loading and storing are the same few.
#pragma once

#include "../../math/order.h"
#include "../../math/tensors.h"
#include "tiles.h"

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

template <class A, class B>
struct IsSame {
  static constexpr bool value = false;
};
template <class A>
struct IsSame<A, A> {
  static constexpr bool value = true;
};

template <class T>
constexpr Dtype own_dtype() {
  return sizeof(T) == sizeof(float) ? Dtype::f32 : Dtype::f64;
}

// The address of an entry.
inline char* advance(const void* data, Dtype dtype, int64_t entries) {
  char* moved = const_cast<char*>(static_cast<const char*>(data));
  visit_dtype(dtype, [&](auto element) {
    moved += entries * static_cast<int64_t>(sizeof(typename decltype(element)::type));
  });
  return moved;
}

// Asks for the lines of n entries. Always inlined: GCC drops calls of a function that only prefetches, as one
// without effect.
template <class X>
[[gnu::always_inline]] inline void ask_for_lines(const X* entries, int64_t n) {
  const char* const begin = reinterpret_cast<const char*>(entries);
  const int64_t bytes = n * static_cast<int64_t>(sizeof(X));
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at, 0, 2);
}

// Asks for the lines of entries kAhead further on, to be spread over arithmetic during which no load of its
// own would be under way.
constexpr int64_t kAhead = 2 * kChunk;

class Ahead {
 public:
  // Null data is not asked for.
  Ahead(const void* data, Dtype dtype, int64_t begin) : next_(nullptr), size_(0) {
    if (data == nullptr) return;
    next_ = advance(data, dtype, begin + kAhead);
    size_ = advance(next_, dtype, 1) - next_;
  }

  [[gnu::always_inline]] void ask_for(int64_t n) {
    ask_for_lines(next_, n * size_);
    next_ += n * size_;
  }

 private:
  const char* next_;
  int64_t size_;
};

// The entries [begin, begin + n) of `data` at a distance of `stride`: in place where they already are T, side
// by side; otherwise in `buffer`.
template <class T>
const T* load_chunk(const void* data, Dtype dtype, int64_t begin, int64_t n, T* buffer, int64_t stride = 1) {
  const T* chunk = buffer;
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* source = static_cast<const typename E::type*>(data) + begin;
    if (stride == 1) {
      if constexpr (IsSame<typename E::type, T>::value) {
        chunk = source;
      } else {
        for (int64_t i = 0; i < n; ++i) buffer[i] = E::template load<T>(source[i]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) buffer[i] = E::template load<T>(source[i * stride]);
    }
  });
  return chunk;
}

template <class T>
void store_chunk(void* data, Dtype dtype, int64_t begin, int64_t n, const T* values) {
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    auto* target = static_cast<typename E::type*>(data) + begin;
    for (int64_t i = 0; i < n; ++i) target[i] = E::template store<T>(values[i]);
  });
}

// f(E) where all that a metric reads is stored as E, and there are loops over T that read it as it lies: T
// itself and, for float, half types. False where there are none.
template <class T, class F>
bool visit_alike(Metric metric, Dtype weight, Dtype grad, const F& f) {
  if (reads_weight(metric) && reads_grad(metric) && weight != grad) return false;
  bool visited = false;
  visit_dtype(reads_weight(metric) ? weight : grad, [&](auto element) {
    using E = decltype(element);
    if constexpr (IsSame<E, Element<Dtype::f64>>::value == IsSame<T, double>::value) {
      visited = true;
      f(element);
    }
  });
  return visited;
}

// Entries from `begin` on, stored as E; null stays null.
template <class E>
const typename E::type* entries_of(const void* data, int64_t begin) {
  return data == nullptr ? nullptr : static_cast<const typename E::type*>(data) + begin;
}

// v for n entries of what the metric reads, stored as E; what it does not read may be null. Not inlined: flat
// functions would hold all of its loops many times.
template <class E, class T>
[[gnu::noinline]] void values_of(Metric metric, const typename E::type* w, const typename E::type* g,
                                 const float* norm, int64_t n, T* v) {
  visit_metric(metric, [&](auto constant) {
    constexpr Metric kMetric = decltype(constant)::value;
    for (int64_t i = 0; i < n; ++i) {
      const T weight = reads_weight(kMetric) ? E::template load<T>(w[i]) : T(0);
      const T grad = reads_grad(kMetric) ? E::template load<T>(g[i]) : T(0);
      const T scale = kMetric == Metric::wanda ? static_cast<T>(norm[i]) : T(0);
      v[i] = element_value<T>(kMetric, weight, grad, scale);
    }
  });
}

// Divides by the scale of a gradient scaler; the result is in `buffer`.
template <class T>
const T* unscale_chunk(const T* g, const float* grad_scale, int64_t n, T* buffer) {
  if (grad_scale == nullptr) return g;
  const T scale = static_cast<T>(*grad_scale);
  for (int64_t i = 0; i < n; ++i) buffer[i] = g[i] / scale;
  return buffer;
}

template <class T>
void drop_nonfinite(T* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = finite_or_zero(v[i]);
}

// Blends n new values with the scores at `score` and writes them to `target`, which may be the same. Loops
// with and without the old score are apart, so that a score that is not read is not loaded.
template <class T>
void blend_into(const void* score, Dtype dtype, int64_t n, const UpdateRule& rule, const T* v, void* target) {
  const T alpha = static_cast<T>(rule.alpha), beta = static_cast<T>(rule.beta);
  visit_dtype(dtype, [&](auto element) {
    using E = decltype(element);
    const auto* old = static_cast<const typename E::type*>(score);
    auto* scores = static_cast<typename E::type*>(target);
    if (rule.reads_score()) {
      for (int64_t i = 0; i < n; ++i) {
        scores[i] = E::store(blend(true, alpha, E::template load<T>(old[i]), beta, v[i]));
      }
    } else {
      for (int64_t i = 0; i < n; ++i) scores[i] = E::store(blend(false, alpha, T(0), beta, v[i]));
    }
  });
}

// Whether a list's scores are written and not read, and are more than any cache would keep until they are
// read; a tensor has scores_of(tensor) of them.
template <class Tensor, class F>
bool writes_past(const Tensor* tensors, int64_t count, const UpdateRule& rule, const F& scores_of) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) bytes += scores_of(tensors[i]) * entry_bytes(tensors[i].score_dtype);
  return !rule.reads_score() && exceeds_caches(bytes);
}

// Writes n new values over scores that are not read, past the caches.
template <class T>
void blend_past(Dtype dtype, int64_t n, const UpdateRule& rule, const T* v, void* scores) {
  alignas(kPast) char some[kChunk * sizeof(T)];
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t run = min64(kChunk, n - done);
    blend_into<T>(nullptr, dtype, run, rule, v + done, some);
    write_past_caches(some, run * entry_bytes(dtype), advance(scores, dtype, done));
  }
}

// The values of the entries [begin, begin + n) of a selection from what its metric reads of them, stored as
// E.
template <class E, class T>
void selection_values(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t n,
                      const typename E::type* w, const typename E::type* g, T* v) {
  if (metric != Metric::wanda) return values_of<E>(metric, w, g, nullptr, n, v);
  for (int64_t done = 0; done < n;) {  // the norms start again with each row
    const int64_t col = (begin + done) % tensor.cols;
    const int64_t run = min64(n - done, tensor.cols - col);
    values_of<E>(metric, w + done, nullptr, tensor.norm + col, run, v + done);
    done += run;
  }
}

// The scores of a selection: the entries [begin, begin + n), n at most kChunk, stored or made on the fly.
template <class T>
const T* score_chunk(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t n, T* buffer) {
  if (metric == Metric::stored) return load_chunk(tensor.weight, tensor.weight_dtype, begin, n, buffer);
  const bool made = visit_alike<T>(metric, tensor.weight_dtype, tensor.grad_dtype, [&](auto element) {
    using E = decltype(element);
    selection_values<E>(tensor, metric, begin, n, entries_of<E>(tensor.weight, begin),
                        entries_of<E>(tensor.grad, begin), buffer);
  });
  if (made) return buffer;
  T weights[kChunk], grads[kChunk];
  const T* w = load_chunk(tensor.weight, tensor.weight_dtype, begin, n, weights);
  const T* g = load_chunk(tensor.grad, tensor.grad_dtype, begin, n, grads);
  selection_values<Element<own_dtype<T>()>>(tensor, metric, begin, n, w, g, buffer);
  return buffer;
}

// The same as T, which scores are ranked in. A score is computed in its own tensor's type, whatever other
// tensors it is ranked with.
template <class T>
const T* rank_chunk(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t n, T* buffer) {
  if constexpr (IsSame<T, double>::value) {
    if (!tensor.wide()) {
      float own_buffer[kChunk];
      const float* own = score_chunk<float>(tensor, metric, begin, n, own_buffer);
      for (int64_t i = 0; i < n; ++i) buffer[i] = own[i];
      return buffer;
    }
  }
  return score_chunk<T>(tensor, metric, begin, n, buffer);
}

// Copies any number of these scores. Not inlined: where n is seen to be 1, GCC warns of buffers that it
// cannot follow.
template <class T>
[[gnu::noinline]] void copy_scores(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t n,
                                   T* scores) {
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t some = min64(kChunk, n - done);
    T* const target = scores + done;
    const T* chunk = rank_chunk<T>(tensor, metric, begin + done, some, target);
    if (chunk != target) memcpy(target, chunk, static_cast<size_t>(some) * sizeof(T));
  }
}

template <class T>
void keys_of_scores(const T* scores, int64_t n, Key<T>* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = sort_key(scores[i]);
}

template <class T>
void key_chunk(const SelectTensor& tensor, Metric metric, int64_t begin, int64_t n, Key<T>* keys) {
  T buffer[kChunk];
  keys_of_scores(rank_chunk<T>(tensor, metric, begin, n, buffer), n, keys);
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
