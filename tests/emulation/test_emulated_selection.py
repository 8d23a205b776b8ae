"""Selection by the device code on the emulated grid, and by the CPU kernels, against NumPy: exactly."""

import numpy as np
import oracle
import pytest
from driver import READS_GRAD, Backend, assert_mask, undefined_mask
from hostile import DTYPES, VALUES, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same

SIZES = (1, 7, 8, 9, 31, 33, 255, 257, 2047, 2048, 2049, 8191, 8192, 8193, 16_385)
METRICS = ("magnitude", "gradient", "snip", "taylor", "fisher", "wanda")


def keeps(n):
    return sorted({0, 1, n // 10, n // 2, n - n // 10, max(n - 1, 0), n})


def check_topk(backend, scores, keep, *, dtypes=None, ties="exact", offset=0, packed=False, strict=False):
    dtypes = dtypes or ["float32"] * len(scores)
    device = [backend.array(a, d, offset) for a, d in zip(scores, dtypes, strict=True)]
    masks = [undefined_mask(backend, a.shape, packed, offset) for a in scores]
    backend.topk_mask(device, masks, keep, ties, strict=strict)
    for mask, expected in zip(masks, oracle.topk_mask(scores, keep, ties), strict=True):
        assert_mask(mask, expected)


@pytest.mark.parametrize("n", SIZES)
def test_topk_sizes(backend, n):
    for keep in keeps(n):
        check_topk(backend, [values("normal", (n,))], keep)
    check_topk(backend, [values("few_distinct", (n,))], n // 2)
    check_topk(backend, [values("all_equal", (n,))], n // 3)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_values(backend, name, dtype):
    score = values(name, (30, 40), dtype)
    for i, keep in enumerate((1, 120, 600, 1199), DTYPES.index(dtype)):
        check_topk(backend, [score], keep, dtypes=[dtype], ties=("exact", "threshold")[i % 2])


SHAPES = [(0,), (5, 7), (17_000,), (0, 3), (1,), (4, 3, 3, 3), (1025,), (0,)]


@pytest.mark.parametrize("ties", ["exact", "threshold"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "all_equal", "everything", "one_outlier"])
def test_topk_lists(backend, ties, name):
    scores = [values(name, shape, seed=i) for i, shape in enumerate(SHAPES)]
    for keep in keeps(sum(a.size for a in scores)):
        check_topk(backend, scores, keep, ties=ties, offset=4)


def test_topk_of_mixed_dtypes(backend):
    scores = [values("few_distinct", (500,), d, i) for i, d in enumerate(DTYPES)]
    for keep in keeps(2000):
        check_topk(backend, scores, keep, dtypes=DTYPES)


def test_topk_of_nothing(backend):
    check_topk(backend, [], 0)
    check_topk(backend, [np.zeros(0, np.float32)], 0)


@given(data=st.data(), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5), levels=st.integers(1, 3000))
def test_topk_of_any_lists(any_backend, data, sizes, levels):
    any_backend.vary(data)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "values"))
    scores = [rng.integers(-levels, levels, n).astype(np.float32) for n in sizes]
    how = {name: data.draw(st.booleans()) for name in ("packed", "strict")}
    ties = data.draw(st.sampled_from(["exact", "threshold"]))
    keep = data.draw(st.integers(0, sum(sizes)))
    check_topk(any_backend, scores, keep, ties=ties, **how)
    if keep:
        value = any_backend.kth_value([any_backend.array(score) for score in scores], keep)
        assert_same(np.float32(value), np.float32(oracle.kth_value(scores, keep)))


# --- many entries: a sample, a pass over a bracket, and what the sample may do to it -------------------

HOWS = [{}, {"packed": True}, {"strict": True}, {"strict": True, "packed": True}]
#: Beside each way a turn, another one where one thing differs: what alternates by turns meets bytes and bits, strict
#: and not, without meeting all four ways.
IN_TURNS = list(zip(HOWS, (0, 1, 1, 0), strict=True))


def many(backend):
    """So many entries that they are sampled; the emulated kernels are built to sample fewer than others."""
    return 2**18 + 4321 if backend.name == "cpu" else 20_013


@pytest.mark.parametrize(("how", "turn"), IN_TURNS)
@pytest.mark.parametrize("name", VALUES)
def test_topk_of_many(backend, name, how, turn):
    n = many(backend)
    score = values(name, (n,))
    for i, keep in enumerate((3, n // 2, n - n // 8)):
        check_topk(backend, [score], keep, ties=("exact", "threshold")[(i + turn) % 2], **how)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_topk_of_many_of_each_dtype(backend, dtype, how):
    n = many(backend)
    for name in ("normal", "wide_range", "mostly_zero"):
        check_topk(backend, [values(name, (n,), dtype)], n // 2, dtypes=[dtype], **how)


@pytest.mark.parametrize("how", HOWS)
def test_topk_of_more_samples_than_a_block_takes(backend, how):
    check_topk(backend, [values("normal", (n,), seed=n) for n in (160_000, 9)], 100_000, **how)


@pytest.mark.parametrize("name", ["few_distinct", "all_equal", "mostly_zero"])
def test_topk_with_ties_in_parts_of_several_tiles(backend, name):
    for keep in (70_000, 100_000):
        check_topk(backend, [values(name, (n,), seed=n) for n in (160_000, 9)], keep)


def first_pass(backend, scores, k):
    """What the CPU kernels sample of scores, as positions of all; and how their first pass with it ends: "found", or
    with a bracket "above" the k-th smallest, "below" it, or "around" too many."""
    device = [backend.array(score) for score in scores]
    reads, low, high, is_found = backend.kernels.first_pass(backend._select_all(device, [None] * len(scores)), k)
    begins = np.cumsum([0, *(score.size for score in scores)])
    sampled = np.concatenate([np.arange(n) + begins[i] + at for i, at, n in reads])
    keys = np.sort(oracle.key_bits(np.concatenate([score.ravel() for score in scores])))
    end = "above" if keys[k - 1] < low else "below" if keys[k - 1] > high else "found" if is_found else "around"
    assert is_found == (end == "found")
    return sampled, end


def sampled(backend, n):
    """Where the kernels take their samples of ``n`` entries: on the CPU runs of 64 neighbours, and then single ones."""
    if backend.name == "cuda":
        return [backend.module.sample_position(j, n // 64, n) for j in range(n // 64)]
    # Neighbours are so alike that single entries are sampled too.
    return first_pass(backend, [np.float32(np.arange(n) // 64 % 2)], n // 2)[0]


#: Where samples are that mislead: above or below all other entries, or on both sides of them with the bracket between.
MISLEADING = {
    "above": lambda rng, size: 10 + rng.random(size),
    "below": lambda rng, size: -10 - rng.random(size),
    "around": lambda rng, size: rng.choice([-10, 10], size) + rng.random(size),
    "neighbours alike": lambda rng, size: np.repeat(rng.choice([-10, 10], size // 64 + 1), 64)[:size],
    "equal, above": lambda rng, size: np.full(size, 10),
    "equal, inside": lambda rng, size: np.full(size, 0.5),
}


def misleading(backend, name, levels):
    """Scores of so many levels, but for those that are sampled."""
    rng = np.random.default_rng(0)
    score = (rng.integers(0, levels, many(backend)) / levels).astype(np.float32)
    positions = sampled(backend, score.size)
    score[positions] = MISLEADING[name](rng, len(positions))
    return score


#: How the first pass over them ends on the CPU where half of the scores are kept, and where a tenth is.
ENDS = {
    "above": ("above", "above"),
    "below": ("below", "below"),
    "around": ("around", "above"),
    "neighbours alike": ("below", "above"),
    "equal, above": ("above", "above"),
    "equal, inside": ("found", "below"),
}


@pytest.fixture
def cpu(emulation):
    return Backend(emulation, "cpu", 1)


@pytest.mark.parametrize("name", MISLEADING)
def test_the_cpu_is_misled(cpu, name):
    n = many(cpu)
    for levels in (4, 1 << 20):
        score = misleading(cpu, name, levels)
        for keep, expected in zip((n // 2, n // 10), ENDS[name], strict=True):
            positions, end = first_pass(cpu, [score], n - keep)
            assert end == expected
            # Single entries are sampled too where neighbours are alike.
            assert (positions.size == sampled(cpu, n).size) == (name == "neighbours alike")


def test_the_cpu_samples_the_last_size_of_the_tests_of_operators(cpu):
    from ops.test_update_topk_mask import SIZES

    first_pass(cpu, [np.zeros(SIZES[-1], np.float32)], 1)
    with pytest.raises(ValueError, match="so few entries are not sampled"):
        first_pass(cpu, [np.zeros(SIZES[-2], np.float32)], 1)


@pytest.mark.parametrize("alike", [False, True])
def test_the_cpu_is_misled_in_the_tests_of_operators(cpu, alike):
    from ops import test_large_selection as tests

    runs, single = tests.sampled_on_the_cpu(tests.N)
    expected = np.concatenate([runs.ravel(), *([single] if alike else [])])
    ends = {"nan": "below", "inside": "above"}
    inputs = {(name, x): tests.misleading_scores(name, x, alike) for name in tests.MISLED for x in tests.PLANTED}
    inputs |= {("updated", x): [tests.misleading_update(x, alike)[1]] for x in tests.MISLED_UPDATES}
    for (_, planted), scores in inputs.items():
        positions, end = first_pass(cpu, scores, tests.N - tests.N // 2)
        assert end == ends.get(planted, planted)
        assert_same(positions, expected)


@pytest.mark.parametrize(("how", "turn"), IN_TURNS)
@pytest.mark.parametrize("name", MISLEADING)
def test_topk_of_many_where_the_sample_misleads(backend, name, how, turn):
    for i, levels in enumerate((4, 1 << 20)):  # with ties everywhere, and with few
        score = misleading(backend, name, levels)
        check_topk(backend, [score], score.size // (2, 10)[(i + turn) % 2], **how)


@pytest.mark.parametrize(("how", "turn"), IN_TURNS)
def test_topk_with_ties_at_every_place_of_the_bracket(backend, how, turn):
    # A value that fills the bracket is both ends of it; others lie at one end, or strictly inside.
    rng, n = np.random.default_rng(1), many(backend)
    for levels in (1, 2, 7, 40, 300):
        score = rng.integers(0, levels, n).astype(np.float32)
        for keep in (1, n // 3, n // 2, n - 1)[turn::2]:
            check_topk(backend, [score], keep, **how)


@pytest.mark.parametrize(("how", "turn"), IN_TURNS)
def test_topk_of_many_tensors(backend, how, turn):
    # More than a table holds, of mixed dtypes, with ties across their bounds.
    sizes = [i % 61 * (many(backend) // 15_000) for i in range(520)]
    dtypes = [("float32", "bfloat16")[i % 2] for i in range(520)]
    scores = [
        values("few_distinct" if i % 3 else "normal", (n,), d, i)
        for i, (n, d) in enumerate(zip(sizes, dtypes, strict=True))
    ]
    check_topk(backend, scores, sum(sizes) // (2, 5)[turn], dtypes=dtypes, **how)


def test_kth_of_many(backend):
    n = many(backend)
    for name in ("normal", "few_distinct", "everything", "mostly_zero"):
        score = values(name, (n,))
        device = [backend.array(score)]
        for k in (1, 77, n // 2, n):
            assert_same(np.float32(backend.kth_value(device, k)), np.float32(oracle.kth_value([score], k)))


@pytest.mark.parametrize("name", MISLEADING)
def test_kth_of_many_where_the_sample_misleads(backend, name):
    score = misleading(backend, name, 1 << 20)
    device = [backend.array(score)]
    for k in (score.size // 10, score.size // 2):
        assert backend.kth_value(device, k) == np.float32(oracle.kth_value([score], k))


def check_update_topk(backend, entries, keep, *, ties="exact", packed=False, **how):
    """``entries`` are (score, weight, grad, dtype)."""
    device = [[backend.array(a, dtype) for a in arrays] for *arrays, dtype in entries]
    masks = [undefined_mask(backend, score.shape, packed) for score, *_ in entries]
    backend.update_topk_mask(*zip(*device, strict=True), masks, keep, ties, metric="snip", **how)
    expected = [oracle.update_scores(*arrays, metric="snip", dtype=dtype, **how) for *arrays, dtype in entries]
    for (score, *_), value in zip(device, expected, strict=True):
        assert_same(score.read(), value)
    for mask, kept in zip(masks, oracle.topk_mask(expected, keep, ties), strict=True):
        assert_mask(mask, kept)


@pytest.mark.parametrize("packed", [False, True])
def test_update_and_topk_of_one_dtype(backend, packed):
    entries = [(*(values("normal", (n,), seed=3 * n + j) for j in range(3)), "float32") for n in (9001, 300, 8192)]
    for keep in (4000, 9000):
        check_update_topk(backend, entries, keep, alpha=0.9, packed=packed)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MISLEADING)
def test_update_and_topk_where_the_sample_misleads(backend, name, packed):
    score = misleading(backend, name, 1 << 20)
    # So little is added that the sample still lies where it did among the others.
    weight, grad = np.full(score.size, 0.25, np.float32), values("few_distinct", score.shape)
    for ties in ("exact", "threshold"):
        entries = [(score, weight, grad, "float32")]
        check_update_topk(backend, entries, score.size // 2, alpha=0.9, ties=ties, packed=packed)


@pytest.mark.parametrize("ties", ["exact", "threshold"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "everything", "all_zero"])
def test_update_and_topk(backend, name, ties):
    shapes = [(0,), (5, 7), (many(backend),), (1,), (1025,), (700,)]
    kinds = ["float32", "float32", "bfloat16", "float64", "float16", "float32"]
    entries = [
        (*(values(name, shape, d, 3 * i + j) for j in range(3)), d)
        for i, (shape, d) in enumerate(zip(shapes, kinds, strict=True))
    ]
    hows = ({"alpha": 0.9}, {"alpha": 0.0, "grad_scale": 3.0}, {"alpha": 0.5, "found_inf": 1.0})
    for i, how in enumerate(hows, ties == "exact"):
        for keep in (0, 1, 10_000, many(backend) + 1761)[i % 2 :: 2]:
            check_update_topk(backend, entries, keep, ties=ties, **how)


@given(data=st.data(), sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4))
def test_update_and_topk_of_any_lists(any_backend, data, sizes):
    any_backend.vary(data)
    name, dtype = data.draw(st.sampled_from(sorted(VALUES))), st.sampled_from(DTYPES)
    entries = [
        (*(values(name, (n,), d, 3 * i + j) for j in range(3)), d)
        for i, (n, d) in enumerate((n, data.draw(dtype)) for n in [*sizes, data.draw(st.sampled_from([0, 5000]))])
    ]
    keep = data.draw(st.integers(0, sum(score.size for score, *_ in entries)))
    check_update_topk(any_backend, entries, keep, alpha=0.9, packed=data.draw(st.booleans()))


# --- k-th value -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
def test_kth_value(backend, name, dtype):
    score = values(name, (1200,), dtype)
    for k in (1, 2, 600, 1199, 1200):
        value = backend.kth_value([backend.array(score, dtype)], k, dtype)
        assert_same(np.asarray(value), np.asarray(oracle.kth_value([score], k), value.dtype))


@pytest.mark.parametrize("n", SIZES)
def test_kth_value_sizes(backend, n):
    scores = [values("normal", (size,), seed=i) for i, size in enumerate((n, 0, 3))]
    device = [backend.array(a) for a in scores]
    for k in {1, n // 2 + 1, n + 3}:
        assert backend.kth_value(device, k) == np.float32(oracle.kth_value(scores, k))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_counts_of_digits(backend, dtype):
    """Of keys made from the bits in NumPy: those that share a key's first digits, by their next digit."""
    sizes = [3000, 0, 9000, 8192, *range(240), 17_000]  # more than a table holds
    names = ("everything", "normal", "wide_range")
    scores = [values(names[i % 3], (n,), dtype, i) for i, n in enumerate(sizes)]
    kind = np.float64 if dtype == "float64" else np.float32
    size = 8 * np.dtype(kind).itemsize
    device = [backend.array(score, dtype) for score in scores]
    keys = [oracle.key_bits(score.astype(kind)) for score in scores]
    wanted = int(np.median(keys[2]))
    for round in range(-(-size // 11)):
        before = max(0, size - 11 * round)
        prefix = wanted >> before << before
        counts = backend.count_digits(device, prefix, round, wide=dtype == "float64")
        for found, own in zip(counts, keys, strict=True):
            np.testing.assert_array_equal(found, oracle.count_digits(own, prefix, round))


# --- N:M --------------------------------------------------------------------------------------------


def check_nm(backend, score, n, m, dtype="float32", offset=0, packed=False):
    mask = undefined_mask(backend, score.shape, packed, offset)
    backend.nm_mask(backend.array(score, dtype, offset), mask, n, m)
    assert_mask(mask, oracle.nm_mask(score, n, m))


@pytest.mark.parametrize("m", [1, 2, 4, 8, 16, 24, 32])
def test_packed_groups(backend, m):
    for n in {0, 1, m // 2, m}:
        for groups in (1, 13, 80):
            check_nm(backend, values("few_distinct", (groups * m,)), n, m, packed=True)


@pytest.mark.parametrize("m", range(1, 33))
def test_nm_groups(backend, m):
    for n in {0, 1, m // 2, m - 1, m}:
        for groups in (1, 13, 80):
            check_nm(backend, values("few_distinct", (groups * m,)), n, m)


#: Around what a block takes, of which a thread has four vectors.
NM_SIZES = (2048, 2052, 6144, 6148, 8184, 8188, 8192, 8196, 16_388)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", NM_SIZES)
def test_nm_sizes(backend, dtype, size):
    check_nm(backend, values("everything", (size,), dtype), 2, 4, dtype)
    # A mask that begins between two words, beside scores that do not.
    score, mask = values("few_distinct", (size,), dtype), backend.undefined(size, "bool", 4)
    backend.nm_mask(backend.array(score, dtype), mask, 1, 4)
    assert_mask(mask, oracle.nm_mask(score, 1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nm_of_magnitudes(backend, dtype):
    score = values("wide_range", (8196,), dtype)
    mask = backend.undefined(score.shape, "bool")
    backend.nm_mask(backend.array(score, dtype), mask, 2, 4, metric="magnitude")
    assert_mask(mask, oracle.nm_mask(np.abs(score), 2, 4))


@pytest.mark.parametrize("m", [2, 4, 8])
def test_nm_of_nan_and_infinities(backend, m):
    # Every pair of a NaN, both infinities and both zeros meets in both orders.
    score = np.random.default_rng(m).choice(np.float32([np.nan, -np.inf, np.inf, -0.0, 0.0, 1.0]), (8 * 8192 // m, m))
    for n in range(m + 1):
        check_nm(backend, score.ravel(), n, m, packed=n % 2 == 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5)])
def test_nm_values(backend, name, dtype, n, m):
    check_nm(backend, values(name, (6, 20 * m), dtype), n, m, dtype)
    check_nm(backend, values(name, (6, 20 * m), dtype), n, m, dtype, offset=8)


@given(data=st.data(), groups=st.integers(1, 130), m=st.integers(1, 32))
def test_any_groups(any_backend, data, groups, m):
    any_backend.vary(data)
    name, dtype = data.draw(st.sampled_from(sorted(VALUES))), data.draw(st.sampled_from(DTYPES))
    score = values(name, (groups * m,), dtype, data.draw(st.integers(0, 9)))
    check_nm(any_backend, score, data.draw(st.integers(0, m)), m, dtype, data.draw(st.sampled_from([0, 8])))


# --- scores made on the fly -------------------------------------------------------------------------


def metric_inputs(backend, metric, shape, dtypes, name, seed=0):
    """The arrays of a selection by ``metric`` and the scores that it selects among."""
    weight, grad = (values(name, shape, d, seed + i) for i, d in enumerate(dtypes))
    norm = np.abs(values(name, shape[-1:], seed=seed + 2))
    reads_grad = metric in READS_GRAD
    kind = oracle.compute_type(weight, grad if reads_grad else None)
    scores = oracle.entry_values(metric, weight, grad, norm, kind=kind)
    arrays = {"grad": backend.array(grad, dtypes[1]) if reads_grad else None}
    arrays["norm"] = backend.array(norm) if metric == "wanda" else None
    return backend.array(weight, dtypes[0]), arrays, scores


DTYPE_PAIRS = [(d, d) for d in DTYPES] + [("bfloat16", "float32"), ("float16", "float64")]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_metrics(backend, metric, dtypes):
    # Every metric and every pair of dtypes meets all three.
    turn = METRICS.index(metric) + DTYPE_PAIRS.index(dtypes)
    name = ("normal", "few_distinct", "everything")[turn % 3]
    shapes = [(33, 40), (7, 300), (2, 12)]
    inputs = [metric_inputs(backend, metric, shape, dtypes, name, 10 * i) for i, shape in enumerate(shapes)]
    weights, arrays, scores = zip(*inputs, strict=True)
    masks = [backend.undefined(shape, "bool") for shape in shapes]
    listed = {f"{key}s": [a[key] for a in arrays] for key in ("grad", "norm")}
    backend.topk_mask(weights, masks, 1300, metric=metric, **listed)
    for mask, expected in zip(masks, oracle.topk_mask(scores, 1300), strict=True):
        assert_same(mask.read(), expected)
    out = "float64" if any(score.dtype == np.float64 for score in scores) else "float32"
    for k in (1, 700):
        value = backend.kth_value(weights, k, out, metric, **listed)
        assert_same(np.asarray(value, np.float64), np.asarray(oracle.kth_value(scores, k)))
    backend.row_topk_mask(weights[0], masks[0], 17, metric=metric, **arrays[0])
    assert_same(masks[0].read(), oracle.row_topk_mask(scores[0], 17))
    for n, m in ((2, 4), (3, 10)):
        backend.nm_mask(weights[0], masks[0], n, m, metric=metric, **arrays[0])
        assert_same(masks[0].read(), oracle.nm_mask(scores[0], n, m))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_metrics_of_many(backend, metric, dtypes):
    # A pass over whole tiles, and over some that are not.
    turn = METRICS.index(metric) + DTYPE_PAIRS.index(dtypes)
    name, packed = ("normal", "few_distinct", "everything")[turn % 3], turn % 2 == 0
    shapes = [(many(backend) // 200, 200), (7, 301)]
    inputs = [metric_inputs(backend, metric, shape, dtypes, name, 10 * i) for i, shape in enumerate(shapes)]
    weights, arrays, scores = zip(*inputs, strict=True)
    listed = {f"{key}s": [a[key] for a in arrays] for key in ("grad", "norm")}
    for keep in (300, many(backend) // 2):
        masks = [undefined_mask(backend, shape, packed) for shape in shapes]
        backend.topk_mask(weights, masks, keep, metric=metric, **listed)
        for mask, expected in zip(masks, oracle.topk_mask(scores, keep), strict=True):
            assert_mask(mask, expected)
