// Writing past the caches: what is written whole and read by nobody soon need not be loaded first, nor drive
// out what is read.
#pragma once

#include "../../math/portable.h"

#if defined(PRUNEOPS_AVX512)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pruneops::cpu::PRUNEOPS_ISA {
namespace {

// Whether an output is so large that no cache would keep it until it is read.
bool exceeds_caches(int64_t bytes) {
  return bytes >= int64_t(1) << 24;
}

// Such writes reach other threads in no order until they are finished.
void finish_writes() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

#if defined(PRUNEOPS_AVX512)
constexpr int64_t kPast = 64;
void write_one(const char* from, char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#else
constexpr int64_t kPast = 16;
void write_one(const char* from, char* to) {
#if defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  memcpy(to, from, kPast);
#endif
}
#endif

void write_past_caches(const void* source, int64_t bytes, void* target) {
  const auto* from = static_cast<const char*>(source);
  auto* to = static_cast<char*>(target);
  const uintptr_t behind = reinterpret_cast<uintptr_t>(to) % kPast;
  int64_t done = behind == 0 ? 0 : min64(bytes, kPast - static_cast<int64_t>(behind));
  memcpy(to, from, static_cast<size_t>(done));
  for (; done + kPast <= bytes; done += kPast) write_one(from + done, to + done);
  memcpy(to + done, from + done, static_cast<size_t>(bytes - done));
}

}  // namespace
}  // namespace pruneops::cpu::PRUNEOPS_ISA
