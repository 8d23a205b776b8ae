// A string argument of an operator. As std::string, torch's header (2.10 to 2.13) would leave a copy of it
// behind in each call.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>

namespace pruneops::ops {

struct Word : std::string {
  using std::string::string;
};

}  // namespace pruneops::ops

template <>
struct torch::stable::detail::ToImpl<pruneops::ops::Word> {
  static pruneops::ops::Word call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    pruneops::ops::Word word(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return word;
  }
};
