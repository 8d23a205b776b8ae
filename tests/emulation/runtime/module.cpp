#include "module.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <unordered_map>

namespace emulation {
namespace {

struct Search {
  uintptr_t marker;
  uintptr_t kernel;
  Module found;
};

Range segment(const dl_phdr_info& info, const ElfW(Phdr) & header) {
  const uintptr_t begin = info.dlpi_addr + header.p_vaddr;
  return {begin, begin + header.p_memsz};
}

int visit(dl_phdr_info* info, size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  std::vector<Range> constants;
  bool holds_kernel = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type == PT_TLS && info->dlpi_tls_data != nullptr) {
      const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
      const Range range{begin, begin + header.p_memsz};
      if (range.holds(search.marker, 1)) search.found.shared = range;
    }
    const bool read_only =
        (header.p_type == PT_LOAD && !(header.p_flags & PF_W)) || header.p_type == PT_GNU_RELRO;
    if (read_only) constants.push_back(segment(*info, header));
    if (header.p_type == PT_LOAD) holds_kernel |= segment(*info, header).holds(search.kernel, 1);
  }
  if (holds_kernel) search.found.constants = constants;
  return 0;
}

// The output of addr2line, which every toolchain with g++ brings, for one address of a loaded module.
std::string addr2line(const char* options, const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "";
  const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::ostringstream command;
  command << "addr2line " << options << " -e '" << info.dli_fname << "' 0x" << std::hex << offset
          << " 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.str().c_str(), "r"), pclose);
  std::string text;
  std::array<char, 4096> piece;
  while (pipe && fgets(piece.data(), piece.size(), pipe.get()) != nullptr) text += piece.data();
  return text;
}

std::string find_source_line(const void* return_address) {
  std::istringstream frames(addr2line("-i", static_cast<const char*>(return_address) - 1));
  for (std::string frame; std::getline(frames, frame);) {
    const bool known = frame.find("??") == std::string::npos && frame.find(":?") == std::string::npos;
    if (!known || frame.find("/include/emulation/") != std::string::npos) continue;
    frame = frame.substr(0, frame.find(" ("));
    return frame.substr(frame.rfind('/') + 1);
  }
  return "";
}

std::string find_function_name(const void* function) {
  std::string symbol;
  Dl_info info;
  if (dladdr(function, &info) != 0 && info.dli_saddr == function) symbol = info.dli_sname;
  if (symbol.empty()) {
    const std::string text = addr2line("-f", function);  // local symbols are only in the debug information
    symbol = text.substr(0, text.find('\n'));
  }
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr), std::free);
  return name ? name.get() : symbol;
}

template <class Find>
std::string cached(std::unordered_map<const void*, std::string>& cache, const void* address, Find find) {
  const auto [entry, is_new] = cache.try_emplace(address);
  if (is_new) entry->second = find(address);
  return entry->second;
}

}  // namespace

Module find_module(const void* marker, const void* kernel) {
  Search search{reinterpret_cast<uintptr_t>(marker), reinterpret_cast<uintptr_t>(kernel), {}};
  dl_iterate_phdr(visit, &search);
  return search.found;
}

std::string function_name(const void* function) {
  static std::unordered_map<const void*, std::string> cache;
  return cached(cache, function, find_function_name);
}

std::string source_line(const void* return_address) {
  static std::unordered_map<const void*, std::string> cache;
  return return_address == nullptr ? "" : cached(cache, return_address, find_source_line);
}

}  // namespace emulation
