// The vector types of CUDA with their alignments.
#pragma once

#define EMULATION_VECTORS(name, type, align4)                     \
  struct alignas(2 * sizeof(type)) name##2 {                      \
    type x, y;                                                    \
  };                                                              \
  struct name##3 {                                                \
    type x, y, z;                                                 \
  };                                                              \
  struct alignas(align4) name##4 {                                \
    type x, y, z, w;                                              \
  };                                                              \
  inline name##2 make_##name##2(type x, type y) {                 \
    return {x, y};                                                \
  }                                                               \
  inline name##3 make_##name##3(type x, type y, type z) {         \
    return {x, y, z};                                             \
  }                                                               \
  inline name##4 make_##name##4(type x, type y, type z, type w) { \
    return {x, y, z, w};                                          \
  }

EMULATION_VECTORS(char, signed char, 4)
EMULATION_VECTORS(uchar, unsigned char, 4)
EMULATION_VECTORS(short, short, 8)
EMULATION_VECTORS(ushort, unsigned short, 8)
EMULATION_VECTORS(int, int, 16)
EMULATION_VECTORS(uint, unsigned, 16)
EMULATION_VECTORS(longlong, long long, 16)
EMULATION_VECTORS(ulonglong, unsigned long long, 16)
EMULATION_VECTORS(float, float, 16)
EMULATION_VECTORS(double, double, 16)
#undef EMULATION_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
