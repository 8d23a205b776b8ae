// The element types of scores, weights and gradients, and their conversion to the type computed in.
// Half types are stored as their bits, so that no vendor header is needed and the conversions vectorise.
#pragma once

#include "portable.h"

namespace pruneops {

enum class Dtype : int32_t { f32, bf16, f16, f64 };

PRUNEOPS_HD int64_t entry_bytes(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

PRUNEOPS_HD float bf16_to_float(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even; every NaN becomes the quiet NaN 0x7fc0, as PyTorch has it.
PRUNEOPS_HD uint16_t float_to_bf16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
}

// The exponent is moved by a multiplication by 2^-112 (exact); subnormals are made by the subtraction of a
// bias that leaves their mantissa (exact). Both are computed and one is chosen, which vectorises.
PRUNEOPS_HD float f16_to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  const uint32_t magnitude = word & 0x7fffffffu;
  const float normal = bit_cast<float>((magnitude >> 3) + (0xe0u << 23)) * 0x1p-112f;
  const float subnormal = bit_cast<float>((magnitude >> 16) | (126u << 23)) - 0.5f;
  const uint32_t chosen = bit_cast<uint32_t>(magnitude < (1u << 26) ? subnormal : normal);
  return bit_cast<float>((word & 0x80000000u) | chosen);
}

// Round to nearest even: adding a power of two whose last kept bit is that of the result makes the float
// adder do the rounding; the first two products turn what does not fit into infinity.
PRUNEOPS_HD uint16_t float_to_f16(float value) {
  const uint32_t word = bit_cast<uint32_t>(value);
  const uint32_t magnitude = word & 0x7fffffffu;
  const float scaled = (bit_cast<float>(magnitude) * 0x1p+112f) * 0x1p-110f;
  uint32_t bias = (magnitude << 1) & 0xff000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  const uint32_t sum = bit_cast<uint32_t>(bit_cast<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t finite = ((sum >> 13) & 0x7c00u) + (sum & 0x0fffu);
  const uint32_t chosen = magnitude > 0x7f800000u ? 0x7e00u : finite;
  return static_cast<uint16_t>(((word >> 16) & 0x8000u) | chosen);
}

// A float on the way to a half type. A double is rounded to odd: cut off, with the last bit set where
// something was lost. The half type's rounding then sees on which side of a tie it lies, so that it is
// rounded once.
PRUNEOPS_HD float before_half(float value) {
  return value;
}
PRUNEOPS_HD float before_half(double value) {
  const float nearest = static_cast<float>(value);
  const double back = static_cast<double>(nearest);
  if (back == value || value != value) return nearest;
  const bool away = (back < 0 ? -back : back) > (value < 0 ? -value : value);
  return bit_cast<float>((bit_cast<uint32_t>(nearest) - (away ? 1u : 0u)) | 1u);
}

// Storage of a dtype and its conversions; T is float, or double where one of the inputs is float64.
template <Dtype D>
struct Element;

template <>
struct Element<Dtype::f32> {
  using type = float;
  template <class T>
  static PRUNEOPS_HD T load(float x) {
    return static_cast<T>(x);
  }
  template <class T>
  static PRUNEOPS_HD float store(T x) {
    return static_cast<float>(x);
  }
};

template <>
struct Element<Dtype::f64> {
  using type = double;
  template <class T>
  static PRUNEOPS_HD T load(double x) {
    return static_cast<T>(x);
  }
  template <class T>
  static PRUNEOPS_HD double store(T x) {
    return static_cast<double>(x);
  }
};

template <>
struct Element<Dtype::bf16> {
  using type = uint16_t;
  template <class T>
  static PRUNEOPS_HD T load(uint16_t x) {
    return static_cast<T>(bf16_to_float(x));
  }
  template <class T>
  static PRUNEOPS_HD uint16_t store(T x) {
    return float_to_bf16(before_half(x));
  }
};

template <>
struct Element<Dtype::f16> {
  using type = uint16_t;
  template <class T>
  static PRUNEOPS_HD T load(uint16_t x) {
    return static_cast<T>(f16_to_float(x));
  }
  template <class T>
  static PRUNEOPS_HD uint16_t store(T x) {
    return float_to_f16(before_half(x));
  }
};

// Calls f with the Element of a dtype: the one place where a runtime dtype becomes a type.
template <class F>
PRUNEOPS_HD void visit_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(Element<Dtype::f32>{});
    case Dtype::bf16:
      return f(Element<Dtype::bf16>{});
    case Dtype::f16:
      return f(Element<Dtype::f16>{});
    case Dtype::f64:
      return f(Element<Dtype::f64>{});
  }
}

// The same for what is computed as T: a float64 is never computed in float.
template <class T, class F>
PRUNEOPS_HD void visit_dtype_of(Dtype dtype, F&& f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (dtype == Dtype::f64) return f(Element<Dtype::f64>{});
  }
  switch (dtype) {
    case Dtype::f32:
      return f(Element<Dtype::f32>{});
    case Dtype::bf16:
      return f(Element<Dtype::bf16>{});
    default:
      return f(Element<Dtype::f16>{});
  }
}

}  // namespace pruneops
