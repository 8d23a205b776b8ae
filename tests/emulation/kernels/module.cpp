// The launchers of csrc/cuda on the emulated grid, and the kernels of csrc/cpu beside them, for tests in
// NumPy. Tensors are addresses into memory that the emulation knows.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "../../../csrc/cpu/gather.h"
#include "../../../csrc/cpu/kernels.h"
#include "../../../csrc/cuda/kernels.h"
#include "../../../csrc/cuda/plan.cuh"
#include "../../../csrc/math/bracket.h"

// The CPU kernels' parts, of which only those of one pass are called here.
#pragma GCC diagnostic ignored "-Wunused-function"
#define PRUNEOPS_ISA baseline
#include "../../../csrc/cpu/loops/topk.h"

namespace py = pybind11;
using namespace pruneops;

namespace {

using Address = uintptr_t;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// ---- memory
// ---------------------------------------------------------------------------------------------------

enum class Kind {
  device,  // undefined until written, and known to the emulation
  sparse,  // all 0, taking up memory only where it is touched: for ranges past 2^32
  host     // for the CPU kernels; starts as NaNs
};

class Memory {
 public:
  Memory(size_t bytes, Kind kind) : bytes_(bytes), kind_(kind) {
    switch (kind) {
      case Kind::device:
        begin_ = emulation::allocate(bytes);
        break;
      case Kind::sparse:
        begin_ =
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (begin_ == MAP_FAILED) throw std::bad_alloc();
        emulation::adopt(begin_, bytes);
        break;
      case Kind::host:
        if (posix_memalign(&begin_, 256, bytes > 0 ? bytes : 1) != 0) throw std::bad_alloc();
        std::memset(begin_, 0xff, bytes);
    }
  }
  ~Memory() {
    if (kind_ == Kind::host) {
      std::free(begin_);
    } else {
      emulation::release(begin_);
    }
    if (kind_ == Kind::sparse) munmap(begin_, bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Address address() const { return reinterpret_cast<Address>(begin_); }
  void write(const Bytes& data, size_t offset) {
    emulation::copy(at<char>(address()) + offset, data.data(), data.size());
  }
  Bytes read(size_t bytes, size_t offset) const {
    Bytes data(static_cast<py::ssize_t>(bytes));
    emulation::copy(data.mutable_data(), at<char>(address()) + offset, bytes);
    return data;
  }

 private:
  size_t bytes_;
  Kind kind_;
  void* begin_ = nullptr;
};

// ---- the two backends
// -----------------------------------------------------------------------------------------

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

int cpu_threads = 1;

// Threads of its own for every call: simple, and visible to ThreadSanitizer. None begins before all are
// there, or the first could do the work of all; relaxed, so that waiting orders nothing that the kernels do
// not.
void run_pool(int64_t tasks, cpu::Pool::Range range, void* context) {
  std::vector<std::thread> threads;
  std::atomic<int64_t> missing{pruneops::min64(cpu_threads, tasks)};
  for (int t = 0; t < cpu_threads; ++t) {
    const int64_t begin = tasks * t / cpu_threads, end = tasks * (t + 1) / cpu_threads;
    if (begin == end) continue;
    threads.emplace_back([=, &missing] {
      missing.fetch_sub(1, std::memory_order_relaxed);
      while (missing.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
      range(context, begin, end);
    });
  }
  for (auto& thread : threads) thread.join();
}

cpu::Pool pool() {
  return {cpu_threads, run_pool};
}

// The launchers as functions that throw, with scratch memory of exactly the size that they ask for.
struct Cuda {
  // Very much of it takes up memory only where it is touched.
  struct Scratch {
    Memory memory;
    explicit Scratch(int64_t bytes) : memory(bytes, bytes < (1 << 26) ? Kind::device : Kind::sparse) {}
    void* get() const { return at<void>(memory.address()); }
  };

  template <auto kLaunch, class... Args>
  static void call(const Args&... args) {
    check(kLaunch(args..., cudaStream_t{}));
  }

  static void update_block_scores(const std::vector<BlockTensor>& tensors, const UpdateRule& rule) {
    const auto count = static_cast<int64_t>(tensors.size());
    const Scratch work(cuda::block_scratch_bytes(tensors.data(), count));
    check(cuda::update_block_scores(tensors.data(), count, rule, work.get(), cudaStream_t{}));
  }
  static void kth_value(const std::vector<SelectTensor>& tensors, Metric metric, int64_t k, Address value,
                        Dtype dtype) {
    const auto count = static_cast<int64_t>(tensors.size());
    const Scratch work(cuda::select_scratch_bytes(tensors.data(), count));
    check(cuda::kth_value(tensors.data(), count, metric, k, at<void>(value), dtype, work.get(),
                          cudaStream_t{}));
  }
  static void topk_mask(const std::vector<SelectTensor>& tensors, const SelectRule& rule) {
    const auto count = static_cast<int64_t>(tensors.size());
    const Scratch work(cuda::select_scratch_bytes(tensors.data(), count, rule.strict));
    check(cuda::topk_mask(tensors.data(), count, rule, work.get(), cudaStream_t{}));
  }
  static void row_topk_mask(const SelectTensor& tensor, Metric metric, int64_t row, int64_t k) {
    const Scratch work(cuda::row_scratch_bytes(tensor, row));
    check(cuda::row_topk_mask(tensor, metric, row, k, work.get(), cudaStream_t{}));
  }
  static void update_topk_mask(const std::vector<UpdateTensor>& updates,
                               const std::vector<SelectTensor>& tensors, const UpdateRule& update,
                               const SelectRule& select) {
    const auto count = static_cast<int64_t>(tensors.size());
    const Scratch work(cuda::select_scratch_bytes(tensors.data(), count));
    check(cuda::update_topk_mask(updates.data(), tensors.data(), count, update, select, work.get(),
                                 cudaStream_t{}));
  }
  static void gather_slabs(const SlabTensor& slabs, Address importance, Dtype dtype, bool original_order) {
    const Scratch work(cuda::gather_scratch_bytes(slabs.instances));
    check(cuda::gather_slabs(slabs, at<void>(importance), dtype, original_order, work.get(), cudaStream_t{}));
  }
};

void bind_cuda(py::module_ m) {
  m.def("update_scores", [](const std::vector<UpdateTensor>& tensors, const UpdateRule& rule) {
    Cuda::call<cuda::update_scores>(tensors.data(), tensors.size(), rule);
  });
  m.def("update_block_scores", Cuda::update_block_scores);
  m.def("kth_value", Cuda::kth_value);
  m.def("topk_mask", Cuda::topk_mask);
  m.def("count_digits", [](const std::vector<SelectTensor>& tensors, Metric metric, Address prefix, int round,
                           bool wide, Address counts) {
    Cuda::call<cuda::count_digits>(tensors.data(), tensors.size(), metric, at<int64_t>(prefix), round, wide,
                                   at<int64_t>(counts));
  });
  m.def("update_topk_mask", Cuda::update_topk_mask);
  m.def("row_topk_mask", Cuda::row_topk_mask);
  m.def("nm_mask", Cuda::call<cuda::nm_mask, SelectTensor, Metric, int64_t, int64_t>);
  m.def("apply_masks", [](const std::vector<MaskTensor>& tensors) {
    Cuda::call<cuda::apply_masks>(tensors.data(), tensors.size());
  });
  m.def("apply_block_masks", [](const std::vector<BlockMaskTensor>& tensors) {
    Cuda::call<cuda::apply_block_masks>(tensors.data(), tensors.size());
  });
  m.def("expand_block_mask", Cuda::call<cuda::expand_block_mask, BlockMaskTensor>);
  m.def("pack_mask", [](Address mask, Address packed, int64_t numel) {
    Cuda::call<cuda::pack_mask>(at<bool>(mask), at<uint8_t>(packed), numel);
  });
  m.def("unpack_mask", [](Address packed, Address mask, int64_t numel) {
    Cuda::call<cuda::unpack_mask>(at<uint8_t>(packed), at<bool>(mask), numel);
  });
  m.def("gather_slabs", Cuda::gather_slabs);
}

// The scores of a selection, with a note of what is sampled of them: (tensor, first entry, entries).
struct NotedKeys : cpu::baseline::MetricKeys<float> {
  std::vector<std::array<int64_t, 3>>* reads;

  void peek(int64_t i, int64_t at, int64_t n, float* scores) const {
    reads->push_back({i, at, n});
    MetricKeys::peek(i, at, n, scores);
  }
};

// What the CPU kernels sample of stored scores to find the k-th smallest, the ends of the bracket that they
// make of it as keys, and whether a pass with this bracket finds it.
py::tuple first_pass(const std::vector<SelectTensor>& tensors, int64_t k) {
  using namespace cpu::baseline;
  const auto count = static_cast<int64_t>(tensors.size());
  const int64_t total = Totals(tensors.data(), count).entries;
  if (total < kBracketFrom) throw std::invalid_argument("so few entries are not sampled");
  std::vector<std::array<int64_t, 3>> reads;
  const NotedKeys source{{tensors.data(), Metric::stored}, &reads};
  const auto plan = plan_by_sample<float>(tensors.data(), count, total, source, k, kAlone);
  SelectTiles tiles(tensors.data(), count);
  BracketSelection<float, NotedKeys> selection(tensors.data(), tiles, source, k, plan.bracket, plan.capacity,
                                               kAlone);
  return py::make_tuple(reads, plan.bracket.low, plan.bracket.high, selection.run(false));
}

void bind_cpu(py::module_ m) {
  using cpu::kernels;
  m.def("first_pass", first_pass);
  m.def("set_threads", [](int threads) { cpu_threads = threads; });
  m.def("update_scores", [](const std::vector<UpdateTensor>& tensors, const UpdateRule& rule) {
    kernels().update_scores(tensors.data(), tensors.size(), rule, pool());
  });
  m.def("update_block_scores", [](const std::vector<BlockTensor>& tensors, const UpdateRule& rule) {
    kernels().update_block_scores(tensors.data(), tensors.size(), rule, pool());
  });
  m.def("kth_value",
        [](const std::vector<SelectTensor>& tensors, Metric metric, int64_t k, Address value, Dtype dtype) {
          kernels().kth_value(tensors.data(), tensors.size(), metric, k, at<void>(value), dtype, pool());
        });
  m.def("count_digits", [](const std::vector<SelectTensor>& tensors, Metric metric, Address prefix, int round,
                           bool wide, Address counts) {
    kernels().count_digits(tensors.data(), tensors.size(), metric, at<int64_t>(prefix), round, wide,
                           at<int64_t>(counts), pool());
  });
  m.def("topk_mask", [](const std::vector<SelectTensor>& tensors, const SelectRule& rule) {
    kernels().topk_mask(tensors.data(), tensors.size(), rule, pool());
  });
  m.def("update_topk_mask",
        [](const std::vector<UpdateTensor>& updates, const std::vector<SelectTensor>& tensors,
           const UpdateRule& update, const SelectRule& select) {
          kernels().update_topk_mask(updates.data(), tensors.data(), tensors.size(), update, select, pool());
        });
  m.def("row_topk_mask", [](const SelectTensor& tensor, Metric metric, int64_t row, int64_t k) {
    kernels().row_topk_mask(tensor, metric, row, k, pool());
  });
  m.def("nm_mask", [](const SelectTensor& tensor, Metric metric, int64_t n, int64_t group) {
    kernels().nm_mask(tensor, metric, n, group, pool());
  });
  m.def("apply_masks", [](const std::vector<MaskTensor>& tensors) {
    kernels().apply_masks(tensors.data(), tensors.size(), pool());
  });
  m.def("apply_block_masks", [](const std::vector<BlockMaskTensor>& tensors) {
    kernels().apply_block_masks(tensors.data(), tensors.size(), pool());
  });
  m.def("expand_block_mask",
        [](const BlockMaskTensor& tensor) { kernels().expand_block_mask(tensor, pool()); });
  m.def("pack_mask", [](Address mask, Address packed, int64_t numel) {
    kernels().pack_mask(at<bool>(mask), at<uint8_t>(packed), numel, pool());
  });
  m.def("unpack_mask", [](Address packed, Address mask, int64_t numel) {
    kernels().unpack_mask(at<uint8_t>(packed), at<bool>(mask), numel, pool());
  });
  m.def("gather_slabs", [](const SlabTensor& slabs, Address importance, Dtype dtype, bool original_order) {
    cpu::gather_slabs(slabs, at<void>(importance), dtype, original_order, pool());
  });
}

// ---- the structures of csrc/math
// ------------------------------------------------------------------------------

void bind_structures(py::module_ m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::f32)
      .value("bfloat16", Dtype::bf16)
      .value("float16", Dtype::f16)
      .value("float64", Dtype::f64);
  py::enum_<Metric>(m, "Metric")
      .value("stored", Metric::stored)
      .value("magnitude", Metric::magnitude)
      .value("gradient", Metric::gradient)
      .value("snip", Metric::snip)
      .value("taylor", Metric::taylor)
      .value("fisher", Metric::fisher)
      .value("wanda", Metric::wanda)
      .value("product", Metric::product);
  py::enum_<Reduce>(m, "Reduce")
      .value("mean", Reduce::mean)
      .value("sum", Reduce::sum)
      .value("max", Reduce::max)
      .value("mask_sum", Reduce::sum)
      .value("mask_gradient", Reduce::abs_sum)
      .value("mask_fisher", Reduce::square_sum);
  py::class_<Strides>(m, "Strides").def(py::init([](int64_t row, int64_t inner, int64_t outer) {
    return Strides{row, inner, outer};
  }));
  py::class_<Matrix>(m, "Matrix").def(py::init([](int64_t rows, int64_t cols, int64_t inner) {
    return Matrix{rows, cols, inner};
  }));
  py::class_<Block>(m, "Block").def(py::init([](int64_t n, int64_t m) { return Block{n, m}; }));
  py::class_<UpdateRule>(m, "UpdateRule")
      .def(py::init([](Metric metric, Reduce reduce, double alpha, double beta, Address grad_scale,
                       Address found_inf, bool skip_nonfinite) {
        return UpdateRule{metric,        reduce, alpha, beta, at<float>(grad_scale), at<float>(found_inf),
                          skip_nonfinite};
      }));
  py::class_<UpdateTensor>(m, "UpdateTensor")
      .def(py::init([](Address score, Address weight, Address grad, int64_t numel, Dtype score_dtype,
                       Dtype weight_dtype, Dtype grad_dtype) {
        return UpdateTensor{at<void>(score), at<void>(weight), at<void>(grad), numel,
                            score_dtype,     weight_dtype,     grad_dtype};
      }));
  py::class_<BlockTensor>(m, "BlockTensor")
      .def(py::init([](Address score, Address weight, Address grad, Matrix matrix, Strides weight_strides,
                       Strides grad_strides, Block block, Dtype score_dtype, Dtype weight_dtype,
                       Dtype grad_dtype) {
        return BlockTensor{at<void>(score), at<void>(weight), at<void>(grad), matrix,
                           weight_strides,  grad_strides,     block,          score_dtype,
                           weight_dtype,    grad_dtype};
      }));
  py::class_<SelectTensor>(m, "SelectTensor")
      .def(py::init([](Address weight, Address grad, Address norm, Address mask, int64_t numel, int64_t cols,
                       Dtype weight_dtype, Dtype grad_dtype, bool packed) {
        return SelectTensor{at<void>(weight), at<void>(grad), at<float>(norm), at<uint8_t>(mask), numel, cols,
                            weight_dtype,     grad_dtype,     packed};
      }));
  py::class_<SelectRule>(m, "SelectRule")
      .def(py::init([](Metric metric, int64_t k, bool prune_ties, bool strict) {
        return SelectRule{metric, k, prune_ties, strict};
      }));
  py::class_<MaskTensor>(m, "MaskTensor")
      .def(py::init([](Address data, Address mask, int64_t numel, int32_t element_size, bool packed) {
        return MaskTensor{at<void>(data), at<uint8_t>(mask), numel, element_size, packed};
      }));
  py::class_<BlockMaskTensor>(m, "BlockMaskTensor")
      .def(py::init(
          [](Address data, Address mask, Matrix matrix, Strides strides, Block block, int32_t element_size) {
            return BlockMaskTensor{at<void>(data), at<bool>(mask), matrix, strides, block, element_size};
          }));
  py::class_<SlabTensor>(m, "SlabTensor")
      .def(py::init([](Address source, Address target, int64_t outer, int64_t slab_bytes, int64_t instances,
                       int64_t kept) {
        return SlabTensor{at<void>(source), at<void>(target), outer, slab_bytes, instances, kept};
      }));
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  py::register_exception<emulation::Refusal>(m, "Refusal", PyExc_RuntimeError);
  m.def("set_seed", emulation::set_seed, py::arg("seed"));
  m.def("set_grid", emulation::set_grid, py::arg("blocks"));
  m.def("set_last_blocks", emulation::set_last_blocks, py::arg("count"));
  m.def("set_small_grid", emulation::set_small_grid, py::arg("blocks"));
  py::enum_<Kind>(m, "Kind")
      .value("device", Kind::device)
      .value("sparse", Kind::sparse)
      .value("host", Kind::host);
  py::class_<Memory>(m, "Memory")
      .def(py::init<size_t, Kind>(), py::arg("bytes"), py::arg("kind"))
      .def_property_readonly("address", &Memory::address)
      .def("write", &Memory::write, py::arg("data"), py::arg("offset") = 0)
      .def("read", &Memory::read, py::arg("bytes"), py::arg("offset") = 0);
  // As on a device, whose limits are not those of the emulated kernels.
  m.def("select_scratch_bytes", [](const std::vector<SelectTensor>& tensors, bool strict) {
    const auto count = static_cast<int64_t>(tensors.size());
    return cuda::scratch_bytes(cuda::Sizes(cuda::kShippedLimits, tensors.data(), count, strict));
  });
  m.def("block_scratch_bytes",
        [](const BlockTensor& tensor) { return cuda::block_scratch_bytes(&tensor, 1); });
  m.def("row_scratch_bytes", cuda::row_scratch_bytes);
  m.def("sample_position", sample_position, py::arg("j"), py::arg("size"), py::arg("total"));
  bind_structures(m);
  bind_cuda(m.def_submodule("cuda"));
  bind_cpu(m.def_submodule("cpu"));
}
