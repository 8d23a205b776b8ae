"""The emulated grid itself: correct kernels pass whatever the order of threads, and planted faults are refused."""

import os
import re

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
    "warp_prefix_sum": by_warp(np.cumsum),
    "warp_first": by_warp(lambda w: w[0]),
    "warp_swap": by_block(lambda b: b[np.minimum(np.arange(len(b)) ^ 1, len(b) - 1)]),
    "equal_in_warp": by_warp(lambda w: counts(w & 3)),
    "odd_in_warp": by_warp(lambda w: (w & 1).sum()),
    "odd_in_block": by_block(lambda b: (b & 1).sum()),
    "equal_in_block": by_block(lambda b: counts(b & 15)),
    "count_with_activemask": by_block(len),
    "copy_vectors": np.ravel,
    "look_up": lambda x: np.ravel((x & 7) ** 2),
    "parameters": lambda x: np.ravel(x * 3 + 2 + 5),
}

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
    "skipped_tail": "byte 508 of an allocation of 512 bytes has not been written",
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
    "trapped": r"thread \(1,0,0\).*__trap",
    "large_parameters": "32776 bytes of parameters, at most 32764",
    "empty_grid": r"grid \(0,1,1\) .* is empty",
    "empty_block": r"blocks \(0,1,1\) is empty",
    "block_too_large": "1025 threads, at most 1024",
    "block_too_deep": r"65 threads, .*64 along z",
    "grid_too_large": "2147483648,1,1",
    "grid_too_tall": "1,65536,1",
    "too_much_dynamic_shared": "49153 bytes of dynamic shared memory, at most 49152",
    "memset_past_the_end": "516 bytes from offset 0 of an allocation of 512 bytes",
}

#: Where the host is to blame, or the launch is refused, no thread is named.
NO_THREAD = ("skipped_tail", "large_parameters", "empty", "too", "memset")

checked = pytest.mark.skipif("PRUNEOPS_SANITIZE" in os.environ, reason="sanitizers check instead of the emulation")


def inputs(blocks, threads):
    return np.random.default_rng(threads).integers(0, 1000, (blocks, threads)).astype(np.int32)


def test_every_planted_kernel_is_expected(selftest):
    assert selftest.correct == list(EXPECTED)
    assert selftest.faults == list(FAULTS)


@pytest.mark.parametrize("name", EXPECTED)
def test_correct_kernels_pass_for_every_seed(selftest, name):
    for seed in SEEDS:
        selftest.set_seed(seed)
        x = inputs(3, (1, 31, 32, 40, 64, 100, 256)[seed % 7])
        y = selftest.run(name, *x.shape, x.ravel())
        np.testing.assert_array_equal(y, EXPECTED[name](x), err_msg=f"seed {seed}")


@checked
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_refused_for_every_seed(selftest, name):
    x = inputs(2, 64)
    for seed in SEEDS[:2] if name == "endless_wait" else SEEDS:
        selftest.set_seed(seed)
        with pytest.raises(selftest.Refusal, match=FAULTS[name]) as refusal:
            selftest.run(name, *x.shape, x.ravel())
        if not any(part in name for part in NO_THREAD):
            place = rf"kernel planted::.*{name}.*, block \(\d,0,0\), thread \(\d+,0,0\).* \(seed {seed}\)"
            assert re.search(place, str(refusal.value))


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
