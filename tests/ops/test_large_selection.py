"""topk_mask and kth_value where they pass over the scores with a sampled bracket, and where that fails."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, VALUES, values
from tensors import array, assert_all_same, assert_same, tensor

from pruneops import ops

N = 300_000
#: Tensors of a list; the pass begins above 2^18 entries in all.
SHAPES = [(0,), (1,), (4099,), (500, 300), (7, 8, 9), (150_001,), (0, 4)]


def check(device, scores, keep, dtype="float32"):
    given = [tensor(score, dtype, device) for score in scores]
    for ties in ("exact", "threshold"):
        expected = oracle.topk_mask(scores, keep, ties)
        bits = [np.packbits(mask.ravel(), bitorder="little") for mask in expected]
        for strict in (False, True):
            assert_all_same(ops.topk_mask(given, keep=keep, ties=ties, strict=strict), expected)
            assert_all_same(ops.topk_mask(given, keep=keep, ties=ties, strict=strict, packed=True), bits)
    pruned = sum(score.size for score in scores) - keep
    if pruned:
        value = oracle.kth_value(scores, pruned)
        assert_same(ops.kth_value(given, pruned).to(torch.float64), np.float64(value).reshape(()))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    score = values(name, (N,), dtype)
    check(device, [score], N // 2, dtype)
    if dtype == "float32":
        check(device, [score], N // 10)


@pytest.mark.parametrize("keep", [1, 2, 100, 30_000, 299_999])
def test_ends(device, keep):
    for name in ("normal", "few_distinct", "everything"):
        check(device, [values(name, (N,))], keep)


@pytest.mark.parametrize("name", ["normal", "few_distinct", "all_equal", "everything", "one_outlier"])
def test_lists(device, name):
    scores = [values(name, shape, seed=i) for i, shape in enumerate(SHAPES)]
    total = sum(score.size for score in scores)
    for keep in (total // 3, total - 5):
        check(device, scores, keep)


#: Values among which others are planted where the CPU samples: one that is above or below the wanted score, or two
#: with almost everything between them.
MISLED = ("normal", "few_distinct", "denormals")
PLANTED = {"above": 100.0, "below": -100.0, "nan": np.nan, "inside": 0.25, "around": (-100.0, 100.0)}
MISLED_UPDATES = ("above", "below", "around")


def drawn(size, n):
    """``sample_position`` of csrc/math/bracket.h for all of ``size`` samples among n entries."""
    j = np.arange(size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = j * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        random = (x ^ (x >> np.uint64(31))) >> np.uint64(32)
    stretch, rest = divmod(n, size)
    index = j.astype(np.int64)
    length = (stretch + (index < rest)).astype(np.uint64)
    return index * stretch + np.minimum(index, rest) + ((random * length) >> np.uint64(32)).astype(np.int64)


def sampled_on_the_cpu(n):
    """What csrc/cpu/loops/sample.h reads of n entries: runs of neighbours and, where those are so alike that they tell
    too little, single entries. tests/emulation holds this to it."""
    points = min(n // 64, 2**18)
    runs = np.minimum(drawn(points // 16, n) // 64 * 64, n - 64)
    return runs[:, None] + np.arange(64), drawn(points, n)


def misleading(score, planted, alike):
    """``score`` with values planted where it is sampled: in the runs or, where those are alike, in single entries."""
    runs, single = sampled_on_the_cpu(score.size)
    score[runs] = np.resize((-100.0, 100.0), (len(runs), 1)) if alike else np.resize(planted, runs.shape)
    score[single] = np.resize(planted, single.shape)
    return score


def misleading_scores(name, planted, alike):
    """In three tensors, of which runs cross the bounds."""
    return np.split(misleading(values(name, (N,)), PLANTED[planted], alike), [4099, 4099, 154_321])


def misleading_update(planted, alike):
    """Scores before and after half of them is added to the magnitudes of weights, and the weights."""
    score, weight = misleading(values("normal", (N,)), PLANTED[planted], alike), values("normal", (N,), seed=1)
    return score, np.float32(0.5) * score + np.abs(weight), weight


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", MISLED)
def test_a_sample_that_misleads(device, name, planted, alike):
    check(device, misleading_scores(name, planted, alike), N // 2)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("planted", MISLED_UPDATES)
def test_the_update_is_made_once_where_the_sample_misleads(device, planted, alike):
    score, updated, weight = misleading_update(planted, alike)
    for ties in ("exact", "threshold"):
        (expected,) = oracle.topk_mask([updated], N // 2, ties)
        for packed in (False, True):
            given = tensor(score, device=device), tensor(weight, device=device)
            how = {"metric": "magnitude", "alpha": 0.5, "ties": ties, "packed": packed}
            mask = ops.update_topk_mask_(*given, None, keep=N // 2, **how)
            assert_same(given[0], updated)
            assert_same(mask, np.packbits(expected, bitorder="little") if packed else expected)


def memory_on_the_cpu():
    """Bytes of the scores, and the peaks of a selection that is not strict and of one that is, beside the masks; a
    sample that misleads has it collect as much as it may."""
    from bench.memory import peak_extra

    score = misleading(np.resize(values("normal", (N,)), 2**26), PLANTED["around"], alike=False)
    score = torch.from_numpy(score).bfloat16()
    out = ops.empty_masks(score, packed=True)
    peaks = []
    for strict in (False, True):
        select = partial(ops.topk_mask, score, sparsity=0.5, strict=strict, packed=True, out=out)
        select()  # memory of the mask, and what is kept between calls
        peaks.append(peak_extra(select, "cpu"))
    return score.nbytes, *peaks


@pytest.mark.skipif(bool(os.environ.get("PRUNEOPS_SANITIZE")), reason="sanitizers keep what is freed")
def test_memory_on_the_cpu():
    # In a process of its own: of a large one, the system takes back pages meanwhile that count for what is added.
    code = f"from {__name__} import memory_on_the_cpu; print(*memory_on_the_cpu())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    size, peak, strict_peak = map(int, done.stdout.split())
    assert peak < 0.06 * size + 16e6
    # A bound that a selection which is not strict exceeds here.
    assert strict_peak < 8 * 2**20 < peak


def test_counts_of_digits_find_the_kth_value(device):
    """Three rounds of counts, added up over tensors, as another process would do it."""
    scores = [values("wide_range", shape, seed=i) for i, shape in enumerate(SHAPES)]
    given = [tensor(score, device=device) for score in scores]
    total = sum(score.size for score in scores)
    for k in (1, 1000, total // 2, total):
        prefix, below = 0, 0
        for round in range(3):
            counts = ops.count_digits(given, torch.tensor(prefix, device=device), round)
            assert counts.shape == (len(SHAPES), 2048)
            reached = below + array(counts).sum(0).cumsum()
            digit = int(np.searchsorted(reached, k))
            prefix |= digit << max(0, 32 - 11 * (round + 1))
            below = int(reached[digit] - array(counts).sum(0)[digit])
        top = prefix >> 31
        bits = np.uint32(prefix ^ 0x80000000 if top else ~prefix & 0xFFFFFFFF)
        assert bits.view(np.float32) + 0.0 == np.float32(oracle.kth_value(scores, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["everything", "denormals", "few_distinct"])
def test_counts_of_digits(device, name, dtype):
    """Against keys made from the bits in NumPy."""
    score = values(name, (5000,), dtype)
    keys = oracle.key_bits(score.astype(np.float64 if dtype == "float64" else np.float32))
    size, wanted = 8 * keys.itemsize, int(np.sort(keys)[2500])
    given = [tensor(score, dtype, device), tensor(score[:0], dtype, device)]
    for round in range(-(-size // 11)):
        before = max(0, size - 11 * round)
        prefix = wanted >> before << before
        signed = prefix - 2**64 if prefix >= 2**63 else prefix
        counts = array(ops.count_digits(given, torch.tensor([signed], device=device), round))
        np.testing.assert_array_equal(counts, [oracle.count_digits(keys, prefix, round), np.zeros(2048)])
