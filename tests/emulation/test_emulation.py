"""The emulated grid itself: correct kernels pass whatever the order of threads, and planted faults are refused."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

SEEDS = range(100)


def by_group(f, x, size):
    """``f`` of every ``size`` consecutive entries, the last group being what is left, for each of its entries."""
    return np.concatenate([np.broadcast_to(f(x[i : i + size]), len(x[i : i + size])) for i in range(0, len(x), size)])


def by_warp(f):
    def of_blocks(x):
        return np.concatenate([by_group(f, block, 32) for block in x])

    return of_blocks


def by_block(f):
    def of_blocks(x):
        return np.concatenate([np.broadcast_to(f(block), len(block)) for block in x])

    return of_blocks


def counts(values):
    return [(values == value).sum() for value in values]


#: What each correct kernel computes from its input, one row for each block.
EXPECTED = {
    "block_sum": by_block(np.sum),
    "reverse": by_block(lambda b: b[::-1]),
    "reverse_dynamic": by_block(lambda b: b[::-1]),
    "reverse_opted_in": by_block(lambda b: b[::-1]),
    "warp_prefix_sum": by_warp(np.cumsum),
    "warp_swap": by_block(lambda b: b[np.minimum(np.arange(len(b)) ^ 1, len(b) - 1)]),
    "equal_in_block": by_block(lambda b: counts(b & 15)),
    "count_with_activemask": by_block(len),
    "copy_vectors": np.ravel,
    "look_up": lambda x: np.ravel((x & 7) ** 2),
    "parameters": lambda x: np.ravel(x * 3 + 2 + 5),
}


def from_lane(source):
    """What each lane gets from lane ``source(lanes)``, where that exists."""

    def of_warp(warp):
        lanes = np.arange(len(warp))
        source_lanes = source(lanes)
        return warp[np.where(source_lanes < len(warp), source_lanes, lanes)]

    return by_warp(of_warp)


def word_of(flags):
    """A bit for each lane, as a signed word."""
    return np.frombuffer(np.packbits(flags, bitorder="little").tobytes().ljust(4, b"\0"), np.int32)[0]


def equal_lanes(values):
    return [word_of(values == value) for value in values]


def match_all(block):
    """All lanes where they agree, as in the last warp, and otherwise none: told from the former by its complement."""
    warps = [block[i : i + 32] for i in range(0, len(block), 32)]
    return np.concatenate([np.full(32, -1)] * (len(warps) - 1) + [np.full(len(warps[-1]), word_of(warps[-1] >= 0))])


def together(function, dtype):
    """What all threads make of a value that is 7 at first; of 64 bits the upper ones."""

    def of_block(block):
        unit = 2**33 if dtype().itemsize == 8 else 1
        operands = np.append((block - 500).astype(np.int64).astype(dtype) * dtype(unit), dtype(7))
        return (np.array(function(operands)).astype(dtype).astype(np.int64) // unit).astype(np.int32)

    return by_block(of_block)


def by_entry(f):
    return lambda x: np.array([f(int(entry)) for entry in x.ravel()])


def word(entry):
    return 0 if entry % 4 == 0 else entry << 20


def first_set(number):
    return (number & -number).bit_length()


def rounded(function, dtype):
    """The low word of a result that is rounded once."""

    def of(x):
        last = np.finfo(dtype).eps
        left, right = 1 + x.ravel().astype(dtype) * last, 1 + (999 - x.ravel()).astype(dtype) * (2 * last)
        return function(left, right).astype(dtype).view(np.int32)[:: dtype().itemsize // 4]

    return of


def fused(left, right):
    return left.astype(np.float64) * right - 1  # exact, as the product of two floats is


#: The same for each primitive that device code may use.
PRIMITIVES = {
    "shfl": from_lane(lambda lanes: lanes // 8 * 8 + (lanes + 1) % 8),
    "shfl_up": from_lane(lambda lanes: np.where(lanes % 16 < 3, lanes, lanes - 3)),
    "shfl_down": from_lane(lambda lanes: np.where(lanes % 16 > 12, lanes, lanes + 3)),
    "shfl_xor": from_lane(lambda lanes: lanes ^ 5),
    "shfl_xor_of_segments": from_lane(lambda lanes: np.where(lanes % 16 < 8, lanes, lanes ^ 8)),
    "shfl_of_64_bits": from_lane(lambda lanes: np.maximum(lanes - 1, 0)),
    "ballot": by_warp(lambda w: word_of(w & 6 != 0)),
    "any": by_warp(lambda w: (w % 64 == 0).any()),
    "all": by_warp(lambda w: (w % 64 != 0).all()),
    "match_any": by_warp(lambda w: equal_lanes(w & 3)),
    "match_any_of_64_bits": by_warp(lambda w: equal_lanes(w & 3)),
    "match_all": lambda x: np.concatenate([match_all(block) for block in x]),
    "reduce_add": by_warp(np.sum),
    "syncwarp": by_warp(lambda w: w[0]),
    "activemask": lambda x: np.ones(x.size),
    "syncthreads_count": by_block(lambda b: (b & 6 != 0).sum()),
    "syncthreads_and": by_block(lambda b: (b & 63 != 0).all()),
    "syncthreads_or": by_block(lambda b: (b % 64 == 0).any()),
    "places": by_block(lambda b: np.arange(len(b)) - (np.arange(len(b)) % 32 != 0)),
    "add_int32": together(np.sum, np.int32),
    "add_uint32": together(np.sum, np.uint32),
    "add_uint64": together(np.sum, np.uint64),
    "add_float32": together(np.sum, np.float32),
    "min_int32": together(np.min, np.int32),
    "min_uint32": together(np.min, np.uint32),
    "min_int64": together(np.min, np.int64),
    "min_uint64": together(np.min, np.uint64),
    "max_int32": together(np.max, np.int32),
    "max_uint32": together(np.max, np.uint32),
    "max_int64": together(np.max, np.int64),
    "max_uint64": together(np.max, np.uint64),
    "or_uint32": together(np.bitwise_or.reduce, np.uint32),
    "or_uint64": together(np.bitwise_or.reduce, np.uint64),
    "tickets": by_block(lambda b: np.arange(len(b))),
    "tickets_by_comparing": by_block(lambda b: np.arange(len(b))),
    "tickets_by_comparing_64_bits": by_block(lambda b: np.arange(len(b))),
    "around": by_block(lambda b: np.full(len(b), len(b) % 5)),
    "exchange": by_block(lambda b: np.arange(len(b))),
    "count_values": lambda x: np.bincount(x.ravel() % x.size, minlength=x.size),
    "cached": np.ravel,
    "fences": np.ravel,
    "popc": by_entry(lambda x: (x - 500 & 0xFFFFFFFF).bit_count()),
    "byte_perm": by_entry(lambda x: x & 0xFF | 0x22 << 8 | (x & 0xFF00) << 8 | 0x33 << 24),
    "popcll": by_entry(lambda x: (x - 500 & 0xFFFFFFFFFFFFFFFF).bit_count()),
    "clz": by_entry(lambda x: 32 - word(x).bit_length()),
    "clzll": by_entry(lambda x: 64 - (word(x) << 20).bit_length()),
    "ffs": by_entry(lambda x: first_set(word(x))),
    "ffsll": by_entry(lambda x: first_set(word(x) << 20)),
    "fadd": rounded(np.add, np.float32),
    "fsub": rounded(np.subtract, np.float32),
    "fmul": rounded(np.multiply, np.float32),
    "fdiv": rounded(np.divide, np.float32),
    "fsqrt": rounded(lambda left, _: np.sqrt(left), np.float32),
    "fmaf": rounded(fused, np.float32),
    "dadd": rounded(np.add, np.float64),
    "dsub": rounded(np.subtract, np.float64),
    "dmul": rounded(np.multiply, np.float64),
    "ddiv": rounded(np.divide, np.float64),
}

#: Size and alignment in bytes, as CUDA has them.
VECTORS = {
    "char2": (2, 2), "char3": (3, 1), "char4": (4, 4), "uchar2": (2, 2), "uchar3": (3, 1), "uchar4": (4, 4),
    "short2": (4, 4), "short3": (6, 2), "short4": (8, 8), "ushort2": (4, 4), "ushort3": (6, 2), "ushort4": (8, 8),
    "int2": (8, 8), "int3": (12, 4), "int4": (16, 16), "uint2": (8, 8), "uint3": (12, 4), "uint4": (16, 16),
    "longlong2": (16, 16), "longlong3": (24, 8), "longlong4": (32, 16),
    "ulonglong2": (16, 16), "ulonglong3": (24, 8), "ulonglong4": (32, 16),
    "float2": (8, 8), "float3": (12, 4), "float4": (16, 16),
    "double2": (16, 16), "double3": (24, 8), "double4": (32, 16),
}  # fmt: skip

#: What the refusal of each fault says, and where: the line of the kernel, or the launch.
FAULTS = {
    "missing_barrier": "shared memory at offset .* (no thread of this block has written|nothing to order the two)",
    "missing_second_barrier": "shared memory at offset .* nothing to order the two",
    "missing_syncwarp": "shared memory at offset .* nothing to order the two",
    "half_a_syncwarp": "no thread of this block has written|nothing to order the two",
    "unordered_counter": "nothing to order the two",
    "half_atomic_counter": "nothing to order the two",
    "race_between_blocks": r"writes 4 bytes of global memory .* of block \(\d,0,0\) wrote with nothing to order",
    "unwritten_shared": r"thread \(0,0,0\).*no thread of this block has written",
    "unwritten_global": "which no one has written since it was allocated",
    "skipped_tail": "the host copies byte 508 of an allocation of 512 bytes, which no one has written",
    "divergent_shuffle": "__shfl_down_sync with mask 0xffffffff: lane 16 waits at __syncthreads",
    "shuffle_in_partial_warp": "__shfl_xor_sync with mask 0xffffffff: lane 8 does not exist",
    "shuffle_with_exited_lanes": "__shfl_xor_sync with mask 0xffffffff: lane 21 has exited",
    "caller_outside_mask": r"thread \((31|63),0,0\).*does not name the calling lane",
    "masks_that_differ": "__ballot_sync with mask 0xffffffff: lane 0 (has exited|brings mask 0x1)",
    "operations_that_differ": "__any_sync with mask 0xffffffff: lane 1 waits at __all_sync",
    "wrong_width": "width that is no power of two",
    "divergent_barrier": r"thread \(32,0,0\).*has exited before __syncthreads, where 32 of 64 threads wait",
    "exit_before_barrier": r"thread \(3,0,0\).*has exited before __syncthreads",
    "barriers_that_differ": "another kind of __syncthreads",
    "read_past_the_end": r"block \(1,0,0\), thread \(63,0,0\).*ends 4 bytes past one of 512 bytes",
    "write_past_the_end": r"block \(1,0,0\), thread \(63,0,0\).*ends 4 bytes past one of 512 bytes",
    "write_before_the_start": r"block \(0,0,0\), thread \(0,0,0\).*outside every allocation",
    "index_past_shared": r"index 8 out of bounds of 'int \[8\]'",
    "more_dynamic_shared_than_asked": r"thread \(63,0,0\).*of which the launch has 256 dynamic bytes",
    "misaligned_vector": "misaligned address for 'const struct uint2', which needs 8 bytes",
    "local_of_another_thread": r"local to thread \(0,0,0\)",
    "write_to_constants": "outside every allocation",
    "null_pointer": "null pointer",
    "overflowing_index": "signed multiplication overflows",
    "shift_too_far": "shift out of bounds",
    "endless_wait": "without giving way; does it wait",
    "passed_on_behind_a_fence": "nothing to order the two",
    "large_parameters": "32776 bytes of parameters, at most 32764",
    "empty_grid": r"grid \(0,1,1\) .* is empty",
    "empty_block": r"blocks \(0,1,1\) is empty",
    "block_too_large": "1025 threads, at most 1024",
    "block_too_deep": r"65 threads, .*64 along z",
    "grid_too_large": "2147483648,1,1",
    "grid_too_tall": "1,65536,1",
    "too_much_dynamic_shared": "49153 bytes of dynamic shared memory, at most 49152",
    "too_much_opted_in": "50001 bytes of dynamic shared memory, at most 50000",
    "memset_past_the_end": "the host fills 516 bytes from offset 0 of an allocation of 512 bytes",
}

#: What is refused before a thread runs, and where the host is to blame.
LAUNCHES = ("large_parameters", "empty_grid", "empty_block", "block_too_large", "block_too_deep", "grid_too_large",
            "grid_too_tall", "too_much_dynamic_shared", "too_much_opted_in")  # fmt: skip
HOST = ("skipped_tail", "memset_past_the_end")


def whereabouts(name, seed):
    """What a refusal says of the place and of the way to see it again."""
    if name in HOST:
        return rf"after kernel \w+::.*, the host .* \(seed {seed}\)$"
    if name in LAUNCHES:
        kernel = name if name == "large_parameters" else "nothing"
        return rf"^kernel planted::.*{kernel}.*: launch refused: .* \(seed {seed}\)$"
    return rf"^kernel planted::.*{name}.*, block \(\d,0,0\), thread \(\d+,0,0\).* \(seed {seed}\)$"


checked = pytest.mark.skipif("PRUNEOPS_SANITIZE" in os.environ, reason="sanitizers check instead of the emulation")


def inputs(blocks, threads, seed=0):
    return np.random.default_rng([threads, seed]).integers(0, 1000, (blocks, threads)).astype(np.int32)


def test_every_planted_kernel_is_expected(selftest):
    assert selftest.correct == list(EXPECTED)
    assert selftest.primitives == list(PRIMITIVES)
    assert selftest.faults == list(FAULTS)


@pytest.mark.parametrize("name", EXPECTED)
def test_correct_kernels_pass_for_every_seed(selftest, name):
    for seed in SEEDS:
        selftest.set_seed(seed)
        x = inputs(3, (1, 31, 32, 40, 64, 100, 256)[seed % 7])
        y = selftest.run(name, *x.shape, x.ravel())
        np.testing.assert_array_equal(y, EXPECTED[name](x), err_msg=f"seed {seed}")


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives(selftest, name):
    for seed, threads in enumerate((1, 31, 32, 40, 64, 100, 256) * 3):
        selftest.set_seed(seed)
        x = inputs(3, threads, seed)
        y = selftest.run(name, *x.shape, x.ravel())
        np.testing.assert_array_equal(y, PRIMITIVES[name](x), err_msg=f"{threads} threads, seed {seed}")


def test_every_primitive_is_tried():
    """Whatever the headers offer to device code is in a planted kernel."""
    here = Path(__file__).parent
    headers = [(here / "include/emulation" / name).read_text() for name in ("device.h", "atomics.h")]
    functions = re.findall(r"^(?:\w+ )*(?!__attribute)(__\w+|atomic\w+)\(.* {$", "\n".join(headers), re.MULTILINE)
    offered = {*functions, *re.findall(r"^EMULATION_ATOMIC\((\w+)", headers[1], re.MULTILINE), "atomicCAS"}
    tried = "".join((here / "selftest" / name).read_text() for name in ("correct.cu", "primitives.cu"))
    assert {"__syncthreads_or", "__shfl_xor_sync", "__activemask", "__ffsll", "__ddiv_rn", "atomicMax"} <= offered
    assert sorted(name for name in offered if not re.search(rf"\b{name}\b", tried)) == []


def test_vector_types(selftest):
    expected = {name: (*layout, *range(1, int(name[-1]) + 1)) for name, layout in VECTORS.items()}
    assert selftest.vector_types() == expected


@checked
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_refused_for_every_seed(selftest, name):
    x = inputs(2, 64)
    for seed in SEEDS[:2] if name == "endless_wait" else SEEDS:
        selftest.set_seed(seed)
        with pytest.raises(selftest.Refusal, match=FAULTS[name]) as refusal:
            selftest.run(name, *x.shape, x.ravel())
        assert re.search(whereabouts(name, seed), str(refusal.value))


@checked
def test_a_refusal_names_the_line(selftest):
    selftest.set_seed(0)
    with pytest.raises(selftest.Refusal, match=r"faults\.cu:\d+: reads"):
        selftest.run("unwritten_shared", 2, 64, inputs(2, 64).ravel())


def test_work_goes_on_after_a_refusal(selftest):
    x = inputs(2, 64)
    with pytest.raises(selftest.Refusal):
        selftest.run("exit_before_barrier", *x.shape, x.ravel())
    np.testing.assert_array_equal(selftest.run("block_sum", *x.shape, x.ravel()), EXPECTED["block_sum"](x))


@checked
def test_the_same_seed_gives_the_same_run(selftest):
    def refusal():
        selftest.set_seed(12)
        with pytest.raises(selftest.Refusal) as raised:
            selftest.run("missing_second_barrier", 2, 64, inputs(2, 64).ravel())
        return str(raised.value)

    assert refusal() == refusal()
