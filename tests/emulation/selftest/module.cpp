#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "planted.h"

namespace py = pybind11;
using Ints = py::array_t<int, py::array::c_style | py::array::forcecast>;

namespace {

std::vector<std::string> names(const std::vector<planted::Case>& cases) {
  std::vector<std::string> result;
  for (const auto& c : cases) result.emplace_back(c.name);
  return result;
}

// Size, alignment and, in their order, components that were made of 1, 2, 3 and 4.
#define VECTORS(type)                                                                                  \
  {                                                                                                    \
    const type##2 two = make_##type##2(1, 2);                                                          \
    const type##3 three = make_##type##3(1, 2, 3);                                                     \
    const type##4 four = make_##type##4(1, 2, 3, 4);                                                   \
    types[#type "2"] = py::make_tuple(sizeof(two), alignof(type##2), two.x, two.y);                    \
    types[#type "3"] = py::make_tuple(sizeof(three), alignof(type##3), three.x, three.y, three.z);     \
    types[#type "4"] = py::make_tuple(sizeof(four), alignof(type##4), four.x, four.y, four.z, four.w); \
  }

py::dict vector_types() {
  py::dict types;
  VECTORS(char)
  VECTORS(uchar)
  VECTORS(short)
  VECTORS(ushort)
  VECTORS(int)
  VECTORS(uint)
  VECTORS(longlong)
  VECTORS(ulonglong)
  VECTORS(float)
  VECTORS(double)
  return types;
}

// Runs a planted kernel over one int per thread; the output starts undefined.
Ints run(const std::string& name, unsigned blocks, unsigned threads, const Ints& input) {
  const auto bytes = static_cast<size_t>(input.nbytes());
  const std::unique_ptr<void, void (*)(void*)> from(emulation::allocate(bytes), emulation::release);
  const std::unique_ptr<void, void (*)(void*)> to(emulation::allocate(bytes), emulation::release);
  emulation::copy(from.get(), input.data(), bytes);
  for (const auto* cases : {&planted::correct, &planted::primitives, &planted::faults}) {
    for (const auto& c : *cases) {
      if (c.name == name)
        c.launch(blocks, threads, static_cast<const int*>(from.get()), static_cast<int*>(to.get()));
    }
  }
  Ints output(input.size());
  emulation::copy(output.mutable_data(), to.get(), bytes);
  return output;
}

}  // namespace

PYBIND11_MODULE(_emulation_selftest, m) {
  py::register_exception<emulation::Refusal>(m, "Refusal", PyExc_RuntimeError);
  m.attr("correct") = names(planted::correct);
  m.attr("primitives") = names(planted::primitives);
  m.attr("faults") = names(planted::faults);
  m.def("vector_types", vector_types);
  m.def("run", run, py::arg("name"), py::arg("blocks"), py::arg("threads"), py::arg("input"));
  m.def("set_seed", emulation::set_seed, py::arg("seed"));
}
