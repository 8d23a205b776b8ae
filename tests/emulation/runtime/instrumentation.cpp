// The compiler reports what device code does through the entry points of its sanitizers: -fsanitize=thread
// calls one before every access to memory, -fsanitize=undefined where behaviour is undefined. The emulation
// defines these entry points itself, so the sanitizers' own libraries are not linked.
#include <cstring>
#include <string>

#include "grid.h"
#include "memory.h"

namespace {

using emulation::AccessKind;

void check(const volatile void* address, size_t bytes, AccessKind kind, const void* site) {
  if (emulation::current != nullptr) {
    emulation::check_access(reinterpret_cast<uintptr_t>(address), bytes, kind, site);
  }
}

// The start of the data that the compiler passes to a handler, and of what follows it in some.
struct Location {
  const char* file;
  uint32_t line;
  uint32_t column;
};

struct Type {
  uint16_t kind;
  uint16_t info;
  char name[1];
};

struct Mismatch {
  Location at;
  const Type* type;
  unsigned char log_alignment;
  unsigned char access;
};

struct Bounds {
  Location at;
  const Type* array;
  const Type* index;
};

[[noreturn]] void undefined(const Location& at, const std::string& why) {
  const char* slash = std::strrchr(at.file, '/');
  emulation::refuse(
      why + " [" + (slash != nullptr ? slash + 1 : at.file) + ":" + std::to_string(at.line) + "]", nullptr);
}

}  // namespace

extern "C" {

// Called as each instrumented module is loaded.
void __tsan_init() {
  emulation::is_instrumented = true;
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define EMULATION_ACCESS(name, bytes, kind)                   \
  void name(void* address) {                                  \
    check(address, bytes, kind, __builtin_return_address(0)); \
  }
EMULATION_ACCESS(__tsan_read1, 1, AccessKind::read)
EMULATION_ACCESS(__tsan_read2, 2, AccessKind::read)
EMULATION_ACCESS(__tsan_read4, 4, AccessKind::read)
EMULATION_ACCESS(__tsan_read8, 8, AccessKind::read)
EMULATION_ACCESS(__tsan_read16, 16, AccessKind::read)
EMULATION_ACCESS(__tsan_unaligned_read2, 2, AccessKind::read)
EMULATION_ACCESS(__tsan_unaligned_read4, 4, AccessKind::read)
EMULATION_ACCESS(__tsan_unaligned_read8, 8, AccessKind::read)
EMULATION_ACCESS(__tsan_unaligned_read16, 16, AccessKind::read)
EMULATION_ACCESS(__tsan_write1, 1, AccessKind::write)
EMULATION_ACCESS(__tsan_write2, 2, AccessKind::write)
EMULATION_ACCESS(__tsan_write4, 4, AccessKind::write)
EMULATION_ACCESS(__tsan_write8, 8, AccessKind::write)
EMULATION_ACCESS(__tsan_write16, 16, AccessKind::write)
EMULATION_ACCESS(__tsan_unaligned_write2, 2, AccessKind::write)
EMULATION_ACCESS(__tsan_unaligned_write4, 4, AccessKind::write)
EMULATION_ACCESS(__tsan_unaligned_write8, 8, AccessKind::write)
EMULATION_ACCESS(__tsan_unaligned_write16, 16, AccessKind::write)
#undef EMULATION_ACCESS

void __tsan_read_range(void* address, size_t bytes) {
  check(address, bytes, AccessKind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  check(address, bytes, AccessKind::write, __builtin_return_address(0));
}

void __ubsan_handle_type_mismatch_v1(const Mismatch* data, uintptr_t address) {
  const size_t alignment = size_t{1} << data->log_alignment;
  const std::string type(data->type->name);
  if (address == 0) undefined(data->at, "null pointer to " + type);
  if (address % alignment != 0) {
    undefined(data->at,
              "misaligned address for " + type + ", which needs " + std::to_string(alignment) + " bytes");
  }
  undefined(data->at, "object too small for " + type);
}

void __ubsan_handle_out_of_bounds(const Bounds* data, uintptr_t index) {
  const bool is_signed = data->index->info & 1;
  const std::string value = is_signed ? std::to_string(static_cast<intptr_t>(index)) : std::to_string(index);
  undefined(data->at, "index " + value + " out of bounds of " + data->array->name);
}

#define EMULATION_UNDEFINED(name, why)             \
  void __ubsan_handle_##name(const Location* at) { \
    undefined(*at, why);                           \
  }
EMULATION_UNDEFINED(add_overflow, "signed addition overflows")
EMULATION_UNDEFINED(sub_overflow, "signed subtraction overflows")
EMULATION_UNDEFINED(mul_overflow, "signed multiplication overflows")
EMULATION_UNDEFINED(negate_overflow, "negation overflows")
EMULATION_UNDEFINED(divrem_overflow, "division by zero or overflow")
EMULATION_UNDEFINED(shift_out_of_bounds, "shift out of bounds")
EMULATION_UNDEFINED(load_invalid_value, "loads a value that its type does not have")
EMULATION_UNDEFINED(float_cast_overflow, "float out of the range of the integer")
EMULATION_UNDEFINED(pointer_overflow, "pointer arithmetic overflows")
EMULATION_UNDEFINED(builtin_unreachable, "reaches what is marked unreachable")
EMULATION_UNDEFINED(missing_return, "ends a function without its value")
EMULATION_UNDEFINED(invalid_builtin, "counts zeros of zero")
EMULATION_UNDEFINED(nonnull_arg, "passes null where it is not allowed")
EMULATION_UNDEFINED(vla_bound_not_positive, "array of no positive length")
#undef EMULATION_UNDEFINED

}  // extern "C"
