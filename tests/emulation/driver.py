"""The kernels of both backends on NumPy arrays: arrays in emulated device memory, and a method for each launcher."""

import math

import numpy as np
from hypothesis import strategies as st
from tensors import assert_same

#: What a metric of a block update is to the kernels: the value of an entry and how a block's values become one.
BLOCK_METRICS = {"mask_sum": "product", "mask_gradient": "product", "mask_fisher": "product"}
READS_WEIGHT = ("stored", "magnitude", "snip", "taylor", "wanda", *BLOCK_METRICS)
READS_GRAD = ("gradient", "snip", "taylor", "fisher", *BLOCK_METRICS)
STORED_AS = {"bfloat16": np.uint16, "bool": np.uint8}


def encode(values, dtype):
    """The bytes of values that ``dtype`` represents exactly."""
    if dtype == "bfloat16":
        stored = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        stored = np.ascontiguousarray(values).astype(dtype)
    return stored.ravel().view(np.uint8)


def decode(data, dtype, shape):
    """Values from bytes; half types as float32."""
    if dtype == "bfloat16":
        values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = data.view(STORED_AS.get(dtype, dtype))
        values = values.astype({"float16": np.float32, "bool": bool}.get(dtype, values.dtype))
    return values.reshape(shape)


class Array:
    """Memory of its own, ``offset`` bytes past an address with the alignment of cudaMalloc."""

    def __init__(self, module, kind, shape, dtype="float32", offset=0):
        self.shape, self.dtype, self.offset = shape, dtype, offset
        self.size = math.prod(shape)
        self.itemsize = np.dtype(STORED_AS.get(dtype, dtype)).itemsize
        self.memory = module.Memory(self.size * self.itemsize + offset, kind)
        self.address = self.memory.address + offset

    def write(self, values):
        self.memory.write(encode(values, self.dtype), self.offset)
        return self

    def read(self):
        return decode(self.memory.read(self.size * self.itemsize, self.offset), self.dtype, self.shape)


def address(array):
    return 0 if array is None else array.address


class Backend:
    """The kernels of one backend. The arguments are as in ``pruneops.ops``, with lists of :class:`Array`.

    ``number`` is that of the threads of the CPU, or of the blocks of every emulated grid (0: as it is launched).
    """

    def __init__(self, module, name, number=0):
        self.module, self.name, self.number = module, name, number
        self.kernels = getattr(module, name)
        self.kind = module.Kind.device if name == "cuda" else module.Kind.host

    def configure(self):
        if self.name == "cuda":
            self.module.set_grid(self.number)
        else:
            self.module.cpu.set_threads(self.number)

    def vary(self, data):
        """Lets hypothesis draw the seed, and the grid or the threads."""
        self.module.set_seed(data.draw(st.integers(0, 2**32), "seed"))
        least, what = (0, "blocks") if self.name == "cuda" else (1, "threads")
        self.number = data.draw(st.integers(least, 5), what)
        self.configure()

    def undefined(self, shape, dtype="float32", offset=0):
        return Array(self.module, self.kind, tuple(np.atleast_1d(shape)), dtype, offset)

    def array(self, values, dtype="float32", offset=0):
        return Array(self.module, self.kind, np.shape(values), dtype, offset).write(values)

    def _dtype(self, array):
        return getattr(self.module.Dtype, "float32" if array is None else array.dtype)

    def _rule(self, metric, reduce="sum", alpha=0.0, beta=1.0, grad_scale=None, found_inf=None, skip_nonfinite=False):
        scalars = [None if x is None else self.array(np.float32([x])) for x in (grad_scale, found_inf)]
        rule = self.module.UpdateRule(
            getattr(self.module.Metric, BLOCK_METRICS.get(metric, metric)),
            getattr(self.module.Reduce, metric if metric in BLOCK_METRICS else reduce),
            alpha, beta, *map(address, scalars), skip_nonfinite,
        )  # fmt: skip
        return rule, scalars

    def _updates(self, scores, weights, grads):
        return [
            self.module.UpdateTensor(*map(address, entry), entry[0].size, *map(self._dtype, entry))
            for entry in zip(scores, weights, grads, strict=True)
        ]

    def update_scores(self, scores, weights, grads, *, metric, **how):
        rule, _alive = self._rule(metric, **how)
        self.kernels.update_scores(self._updates(scores, weights, grads), rule)

    def update_topk_mask(self, scores, weights, grads, outs, keep, ties="exact", *, metric, **how):
        rule, _alive = self._rule(metric, **how)
        updates, tensors = self._updates(scores, weights, grads), self._select_all(scores, outs)
        self.kernels.update_topk_mask(updates, tensors, rule, self._select_rule(scores, keep, ties))

    def update_block_scores(self, scores, weights, grads, *, block, metric, **how):
        """``weights`` and ``grads`` hold :class:`Laid` arrays."""
        rule, _alive = self._rule(metric, **how)
        tensors = []
        for score, weight, grad in zip(scores, weights, grads, strict=True):
            laid = weight or grad
            strides = [(x or laid).strides(self.module) for x in (weight, grad)]
            tensors.append(
                self.module.BlockTensor(
                    score.address, address(weight), address(grad), laid.matrix(self.module), *strides,
                    self.module.Block(*block), *map(self._dtype, (score, weight, grad)),
                )
            )  # fmt: skip
        self.kernels.update_block_scores(tensors, rule)

    def _select(self, score, out, grad=None, norm=None):
        cols = score.shape[-1] if score.shape else 1
        return self.module.SelectTensor(
            score.address, address(grad), address(norm), address(out), score.size, cols,
            self._dtype(score), self._dtype(grad), out is not None and out.dtype == "uint8",
        )  # fmt: skip

    def _select_rule(self, scores, keep, ties, metric="stored", strict=False):
        k = sum(score.size for score in scores) - keep
        return self.module.SelectRule(getattr(self.module.Metric, metric), k, ties == "threshold", strict)

    def _select_all(self, scores, outs, grads=None, norms=None):
        nothing = [None] * len(scores)
        return [self._select(*entry) for entry in zip(scores, outs, grads or nothing, norms or nothing, strict=True)]

    def kth_value(self, scores, k, dtype="float32", metric="stored", **inputs):
        value = self.undefined(1, dtype)
        tensors = self._select_all(scores, [None] * len(scores), **inputs)
        how = getattr(self.module.Metric, metric)
        self.kernels.kth_value(tensors, how, k, value.address, getattr(self.module.Dtype, dtype))
        return value.read()[0]

    def count_digits(self, scores, prefix, round, wide):
        counts = self.undefined((len(scores), 2048), "int64")
        given = self.array(np.uint64([prefix]).view(np.int64), "int64")
        tensors = self._select_all(scores, [None] * len(scores))
        self.kernels.count_digits(tensors, self.module.Metric.stored, given.address, round, wide, counts.address)
        return counts.read()

    def topk_mask(self, scores, outs, keep, ties="exact", metric="stored", *, strict=False, **inputs):
        tensors = self._select_all(scores, outs, **inputs)
        self.kernels.topk_mask(tensors, self._select_rule(scores, keep, ties, metric, strict))

    def row_topk_mask(self, score, out, keep, metric="stored", row=None, **inputs):
        """``row`` divides the last dimension; without it, it is that dimension."""
        row = row or score.shape[-1]
        self.kernels.row_topk_mask(
            self._select(score, out, **inputs), getattr(self.module.Metric, metric), row, row - keep
        )

    def nm_mask(self, score, out, n, m, metric="stored", **inputs):
        self.kernels.nm_mask(self._select(score, out, **inputs), getattr(self.module.Metric, metric), n, m)

    def apply_masks(self, arrays, masks):
        self.kernels.apply_masks([
            self.module.MaskTensor(x.address, mask.address, x.size, x.itemsize, mask.dtype == "uint8")
            for x, mask in zip(arrays, masks, strict=True)
        ])  # fmt: skip

    def _block_mask(self, laid, mask, block):
        matrix, strides = laid.matrix(self.module), laid.strides(self.module)
        return self.module.BlockMaskTensor(
            laid.address, mask.address, matrix, strides, self.module.Block(*block), laid.itemsize
        )

    def apply_block_masks(self, arrays, masks, block):
        self.kernels.apply_block_masks([self._block_mask(x, m, block) for x, m in zip(arrays, masks, strict=True)])

    def expand_block_mask(self, out, mask, block):
        self.kernels.expand_block_mask(self._block_mask(out, mask, block))

    def pack_mask(self, mask, out):
        self.kernels.pack_mask(mask.address, out.address, mask.size)

    def unpack_mask(self, packed, out):
        self.kernels.unpack_mask(packed.address, out.address, out.size)

    def gather_slabs(self, source, out, importance, kept, stride, dim, order):
        outer, inner = math.prod(source.shape[:dim]), math.prod(source.shape[dim + 1 :])
        slabs = self.module.SlabTensor(
            source.address, out.address, outer, stride * inner * source.itemsize, importance.size, kept
        )
        self.kernels.gather_slabs(slabs, importance.address, self._dtype(importance), order == "original")


def undefined_mask(backend, shape, packed=False, offset=0):
    """A mask of bytes, or of bits."""
    size = math.prod(np.atleast_1d(shape))
    return backend.undefined(-(-size // 8), "uint8", offset) if packed else backend.undefined(shape, "bool", offset)


def assert_mask(mask, expected):
    packed = mask.dtype == "uint8"
    assert_same(mask.read(), np.packbits(expected.ravel(), bitorder="little") if packed else expected)


#: Strides (in entries) of a weight of `shape` in memory, by layout; conv weights are (O, I, k...).
LAYOUTS = {
    "contiguous": lambda rows, cols, inner, k: ((cols, k, 1) if k > 1 else (cols, 1, 0), 0),
    "transposed": lambda rows, cols, inner, k: ((1, rows * k, rows) if k > 1 else (1, rows, 0), 0),
    "padded": lambda rows, cols, inner, k: ((cols + 3, k, 1) if k > 1 else (cols + 3, 1, 0), 1),
    "channels_last": lambda rows, cols, inner, k: ((cols, 1, inner) if k > 1 else (cols, 1, 0), 0),
}


class Laid:
    """A weight in some memory layout, seen as a matrix; what lies between its entries is 1."""

    def __init__(self, backend, values, dtype="float32", layout="contiguous", is_output=False):
        self.shape = np.shape(values)
        self.rows, self.cols = self.shape[0], math.prod(self.shape[1:])
        self.inner = self.shape[1] if len(self.shape) > 2 else self.cols
        kernel = self.cols // max(self.inner, 1)
        self.step, offset = LAYOUTS[layout](self.rows, self.cols, self.inner, kernel)
        position, channel = np.divmod(np.arange(self.cols), max(self.inner, 1))
        row, inner, outer = self.step
        # Offsets are relative to the address that the kernels get, which is past the padding in front.
        self.index = offset + np.arange(self.rows)[:, None] * row + position * outer + channel * inner
        flat = np.ones(self.index.max(initial=-1) + 4)
        if not is_output:
            flat[self.index] = as_matrix(values)
        self.array = backend.array(flat, dtype)
        self.address = self.array.address + offset * self.array.itemsize
        self.dtype, self.itemsize = dtype, self.array.itemsize

    def matrix(self, module):
        return module.Matrix(self.rows, self.cols, self.inner)

    def strides(self, module):
        return module.Strides(*self.step)

    def read(self):
        """The matrix; whatever lies between its entries must still be 1."""
        flat = self.array.read()
        assert (np.delete(flat, self.index.ravel()) == 1).all(), "written between the entries"
        return flat[self.index]


def as_matrix(values):
    """(O, I, k...) as (O, k... * I); (R, C) as it is."""
    return np.moveaxis(values, 1, -1).reshape(len(values), -1) if np.ndim(values) > 2 else np.asarray(values)
