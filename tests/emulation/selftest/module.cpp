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

// Runs a planted kernel over one int per thread; the output starts undefined.
Ints run(const std::string& name, unsigned blocks, unsigned threads, const Ints& input) {
  const auto bytes = static_cast<size_t>(input.nbytes());
  const std::unique_ptr<void, void (*)(void*)> from(emulation::allocate(bytes), emulation::release);
  const std::unique_ptr<void, void (*)(void*)> to(emulation::allocate(bytes), emulation::release);
  emulation::copy(from.get(), input.data(), bytes);
  for (const auto* cases : {&planted::correct, &planted::faults}) {
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
  m.attr("faults") = names(planted::faults);
  m.def("run", run, py::arg("name"), py::arg("blocks"), py::arg("threads"), py::arg("input"));
  m.def("set_seed", emulation::set_seed, py::arg("seed"));
}
