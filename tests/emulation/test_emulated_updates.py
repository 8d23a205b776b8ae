"""Score updates of the device code on the emulated grid, and of the CPU kernels, against NumPy."""

import numpy as np
import oracle
import pytest
from driver import LAYOUTS, READS_GRAD, READS_WEIGHT, Laid, as_matrix
from hostile import DTYPES, TAME, VALUES, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import assert_same

METRICS = ("magnitude", "gradient", "snip", "taylor", "fisher")
SIZES = (0, 1, 7, 8, 9, 255, 256, 257, 2047, 2049, 8191, 8192, 8193, 24_577)


def check_update(backend, entries, *, metric="snip", alpha=0.9, offset=0, **how):
    """``entries`` are (score, weight, grad, dtypes); scores that are neither read nor left are undefined before."""
    device, expected = [], []
    for score, weight, grad, dtypes in entries:
        place = backend.undefined(score.shape, dtypes[0], offset)
        if alpha or how.get("found_inf"):
            place.write(score)
        w = backend.array(weight, dtypes[1], offset) if metric in READS_WEIGHT else None
        g = backend.array(grad, dtypes[2], offset) if metric in READS_GRAD else None
        device.append((place, w, g))
        inputs = (weight if w else None, grad if g else None)
        expected.append(oracle.update_scores(score, *inputs, metric=metric, dtype=dtypes[0], alpha=alpha, **how))
    scores, weights, grads = zip(*device, strict=True) if device else ((), (), ())
    backend.update_scores(scores, weights, grads, metric=metric, alpha=alpha, **how)
    for score, value in zip(scores, expected, strict=True):
        assert_same(score.read(), value)


def entry(shape, name="normal", dtypes=("float32",) * 3, seed=0):
    return *(values(name, shape, d, seed + i) for i, d in enumerate(dtypes)), dtypes


@pytest.mark.parametrize("n", SIZES)
def test_sizes(backend, n):
    check_update(backend, [entry((n,))])
    check_update(backend, [entry((n,), dtypes=("float16",) * 3)], metric="fisher", alpha=0.0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(backend, metric, dtype):
    for name in VALUES:
        for alpha in (0.0, 0.9):
            check_update(backend, [entry((300,), name, (dtype,) * 3)], metric=metric, alpha=alpha, beta=0.7)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16", "bfloat16"), ("bfloat16", "float32", "float16"),
                                    ("float64", "float32", "float16"), ("float16", "float64", "float32")])  # fmt: skip
def test_mixed_dtypes(backend, dtypes):
    check_update(backend, [entry((1000,), "everything", dtypes)])


@pytest.mark.parametrize("offset", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_misaligned(backend, dtype, offset):
    if dtype != "float32" or offset >= 4:
        check_update(backend, [entry((n,), dtypes=(dtype,) * 3) for n in (5, 100, 9000)], offset=offset)


def test_more_tensors_than_a_table_holds(backend):
    shapes = [(0,), *((i % 40,) for i in range(1300)), (20_000,), (0,)]
    dtypes = [(DTYPES[i % 4],) * 3 for i in range(len(shapes))]
    entries = [entry(shape, dtypes=d, seed=i) for i, (shape, d) in enumerate(zip(shapes, dtypes, strict=True))]
    check_update(backend, entries)


def test_no_tensors(backend):
    check_update(backend, [])


def test_skip_nonfinite(backend):
    check_update(backend, [entry((500,), "everything")], skip_nonfinite=True)


@pytest.mark.parametrize("found", [0.0, 1.0, np.nan])
def test_found_inf(backend, found):
    check_update(backend, [entry((500,))], found_inf=found)


def test_grad_scale(backend):
    check_update(backend, [entry((500,), "wide_range"), entry((500,), dtypes=("float64",) * 3)], grad_scale=3.0)


@given(data=st.data(), sizes=st.lists(st.integers(0, 600), max_size=6), metric=st.sampled_from(METRICS))
def test_any_lists(any_backend, data, sizes, metric):
    any_backend.vary(data)
    name = data.draw(st.sampled_from(sorted(VALUES)))
    dtypes = st.tuples(*[st.sampled_from(DTYPES)] * 3)
    entries = [entry((n,), name, data.draw(dtypes), i) for i, n in enumerate(sizes)]
    how = st.fixed_dictionaries(
        {"alpha": st.sampled_from([0.0, 0.9]), "beta": st.sampled_from([1.0, -0.7]), "skip_nonfinite": st.booleans(),
         "offset": st.sampled_from([0, 8])},
        optional={"grad_scale": st.just(3.0), "found_inf": st.sampled_from([0.0, 1.0])},
    )  # fmt: skip
    check_update(any_backend, entries, metric=metric, **data.draw(how))


# --- blocks -----------------------------------------------------------------------------------------

BLOCK_METRICS = (*METRICS, "stored", "mask_sum", "mask_gradient", "mask_fisher")


def check_blocks(
    backend, shape, block, *, metric="snip", reduce="mean", name="normal", dtypes=("float32",) * 3, layout="contiguous",
    alpha=0.0, found_inf=None, **how,
):  # fmt: skip
    weight, grad = (values(name, shape, d, i) for i, d in enumerate(dtypes[1:]))
    grid = oracle.block_ids(shape, block)[1]
    score = values("normal", grid, dtypes[0], 5)
    with np.errstate(all="ignore"):
        v, error = oracle.block_values(
            weight, grad, metric, block, reduce, kind=oracle.compute_type(weight, grad), **how
        )
    place = backend.array(score, dtypes[0]) if alpha or found_inf else backend.undefined(grid, dtypes[0])
    w = Laid(backend, weight, dtypes[1], layout) if metric in READS_WEIGHT else None
    g = Laid(backend, grad, dtypes[2], layout) if metric in READS_GRAD else None
    how |= {"metric": metric, "reduce": reduce, "alpha": alpha, "found_inf": found_inf}
    backend.update_block_scores([place], [w], [g], block=block, **how)
    if found_inf:
        return assert_same(place.read(), score)
    kind = oracle.compute_type(score, weight, grad)
    old = float(kind(alpha)) * score if alpha else np.zeros(grid)
    # The product and the sum of the update round too, and so does the score's dtype.
    error = error + 2 * np.finfo(kind).eps * (np.abs(old) + np.abs(v) + error)
    error = error + oracle.ROUNDING[dtypes[0]] * (np.abs(old + v) + error)
    found, new = place.read(), old + v
    finite = np.isfinite(new)
    assert (np.abs(found[finite] - new[finite]) <= error[finite] + 1e-38).all()
    np.testing.assert_array_equal(found[~finite], new[~finite])


GEOMETRIES = [((4, 1), (4, 1)), ((64, 40), (4, 1)), ((24, 64), (1, 8)), ((64, 64), (32, 32)), ((6, 700), (2, 350)),
              ((40, 300), (40, 1)), ((5, 520), (1, 520)), ((48, 48), (3, 3)), ((300, 7), (300, 7)), ((17, 256), (1, 1)),
              ((8, 16, 3, 3), (4, 8)), ((6, 10, 2, 3), (3, 4)), ((0, 8), (4, 4)), ((600, 9), (100, 9))]  # fmt: skip


@pytest.mark.parametrize(("shape", "block"), GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks(backend, shape, block, layout):
    check_blocks(backend, shape, block, layout=layout)
    check_blocks(
        backend, shape, block, layout=layout, metric="mask_fisher", alpha=0.5, dtypes=("float32", *["bfloat16"] * 2)
    )


@pytest.mark.parametrize("metric", BLOCK_METRICS)
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_block_metrics(backend, metric, reduce):
    for name in TAME:
        check_blocks(backend, (12, 40), (4, 5), metric=metric, reduce=reduce, name=name)


@pytest.mark.parametrize("metric", ["stored", "magnitude", "snip"])
def test_block_values(backend, metric):
    """Sums of what is not finite, and maxima of whatever there is."""
    for name in VALUES:
        check_blocks(backend, (12, 40), (4, 5), metric=metric, reduce="max", name=name)
    for name in ("infinities", "nans", "all_nan", "half_denormals", "one_outlier"):
        check_blocks(backend, (12, 40), (4, 5), metric=metric, reduce="sum", name=name, alpha=0.5)


@pytest.mark.parametrize("metric", ["snip", "gradient", "mask_gradient"])
def test_block_options(backend, metric):
    check_blocks(backend, (32, 48), (4, 8), metric=metric, alpha=0.5, grad_scale=3.0)
    check_blocks(backend, (32, 48), (4, 8), metric=metric, alpha=0.5, found_inf=1.0)
    check_blocks(backend, (32, 48), (4, 8), metric=metric, alpha=0.5, found_inf=0.0)
    for name in ("nans", "infinities"):
        check_blocks(backend, (32, 48), (2, 4), metric=metric, name=name, reduce="sum", skip_nonfinite=True)


@pytest.mark.parametrize("dtypes", [("bfloat16",) * 3, ("float16", "float32", "float16"), ("float64",) * 3])
def test_block_dtypes(backend, dtypes):
    check_blocks(backend, (32, 64), (4, 16), dtypes=dtypes, alpha=0.9)


def test_a_nan_wins_the_maximum_wherever_it_is(backend):
    weight = np.ones((4, 17, 4), np.float32)  # 17 blocks: one for each place of the NaN, and one without
    for place in range(16):
        weight[place // 4, place, place % 4] = np.nan
    score = backend.undefined((1, 17))
    laid = Laid(backend, weight.reshape(4, 68))
    backend.update_block_scores([score], [laid], [None], block=(4, 4), metric="magnitude", reduce="max")
    assert_same(score.read(), np.float32([[*[np.nan] * 16, 1]]))


#: Blocks that are cut into parts of 64 rows, of so many columns that a tile reads 32,768 entries, or of both; and
#: those around them that are not. More parts than a warp has lanes come last.
LARGE = [((63, 3), (63, 1)), ((64, 5), (64, 1)), ((65, 5), (65, 1)), ((514, 300), (257, 1)), ((130, 264), (65, 8)),
         ((260, 40), (130, 20)), ((3, 4096), (1, 4096)), ((9, 4097), (1, 4097)), ((8, 9000), (8, 9000)),
         ((5, 7000), (5, 3500)), ((140, 600), (140, 600)), ((2, 256), (1, 256)), ((4, 514), (2, 257)),
         ((256, 64), (256, 32)), ((2150, 2), (2150, 1)), ((1100, 40), (1100, 1))]  # fmt: skip


#: Blocks that a warp sums and finishes alone, in fewer columns than a span, in one, and in more with a rest; in rows of
#: which the last task has few; and rows of several spans, cut into parts or not.
STREAMED = [((24, 8), (4, 1)), ((20, 264), (4, 1)), ((37, 16), (1, 4)), ((3, 1032), (1, 8)), ((34, 520), (2, 2)),
            ((48, 272), (16, 16)), ((96, 256), (32, 32)), ((64, 512), (64, 256)), ((130, 8), (130, 1)),
            ((200, 264), (100, 8)), ((5, 768), (1, 768)), ((9, 5120), (1, 5120)), ((2, 10_240), (1, 5120))]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "block"), STREAMED)
def test_streamed_blocks(backend, shape, block, dtype):
    for metric, scores in (("snip", "float32"), ("magnitude", dtype), ("gradient", "float32"), ("mask_fisher", dtype)):
        check_blocks(backend, shape, block, metric=metric, alpha=0.9, dtypes=(scores, dtype, dtype))
    check_blocks(backend, shape, block, metric="taylor", reduce="sum", dtypes=("float32", dtype, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "block", [(4, 1), (3, 5), (16, 16), (130, 8), (1, 768), (1, 1792), (1, 3840), (1, 5120), (7, 1000)]
)
def test_means_are_rounded_once(backend, block, dtype):
    for value in (3.0, 6.0, 11.0):  # sums that are exact in any order
        weight = np.full((2 * block[0], 8 * block[1]), value, np.float32)
        score = backend.undefined((2, 8))
        laid = [Laid(backend, weight, dtype)]
        backend.update_block_scores([score], laid, [None], block=block, metric="magnitude", reduce="mean")
        assert_same(score.read(), np.full((2, 8), value, np.float32))


@pytest.mark.parametrize(("shape", "block"), LARGE)
def test_large_blocks(backend, shape, block):
    check_blocks(backend, shape, block)
    check_blocks(backend, shape, block, metric="magnitude", reduce="max", dtypes=("float32", *["bfloat16"] * 2))
    check_blocks(backend, shape, block, metric="mask_fisher", alpha=0.9)


def test_large_blocks_of_doubles_and_of_other_layouts(backend):
    check_blocks(backend, (300, 40), (300, 1), dtypes=("float64",) * 3, alpha=0.5)
    for layout in LAYOUTS:
        check_blocks(backend, (300, 40), (300, 1), layout=layout)
        check_blocks(backend, (130, 16, 3, 3), (130, 8), layout=layout)


def test_parts_of_many_tensors(backend):
    # More than a table holds, in both types that are computed in.
    kinds = [DTYPES[i % len(DTYPES)] for i in range(400)]
    weights = [values("normal", (130 * (1 + i % 3), 2), kind, i) for i, kind in enumerate(kinds)]
    scores = [backend.undefined((len(w) // 130, 2), kind) for w, kind in zip(weights, kinds, strict=True)]
    laid = [Laid(backend, w, kind) for w, kind in zip(weights, kinds, strict=True)]
    backend.update_block_scores(scores, laid, [None] * len(laid), block=(130, 1), metric="magnitude", reduce="max")
    for score, weight in zip(scores, weights, strict=True):
        assert_same(score.read(), np.abs(weight).reshape(-1, 130, 2).max(1))


def test_a_nan_wins_the_maximum_in_every_part(backend):
    weight = np.ones((300, 4), np.float32)
    weight[[0, 63, 64, 299], range(4)] = np.nan
    score = backend.undefined((1, 4))
    backend.update_block_scores(
        [score], [Laid(backend, weight)], [None], block=(300, 1), metric="magnitude", reduce="max"
    )
    assert_same(score.read(), np.full((1, 4), np.nan, np.float32))


def test_parts_are_left_alone_where_gradients_overflowed(backend):
    score, weight = backend.array(np.float32([[1, 2]])), Laid(backend, np.ones((300, 2), np.float32))
    backend.update_block_scores([score], [weight], [None], block=(300, 1), metric="magnitude", found_inf=1.0)
    assert_same(score.read(), np.float32([[1, 2]]))


@pytest.mark.parametrize(("shape", "block"), [((64, 96), (32, 32)), ((400, 6), (400, 1)), ((8, 9000), (8, 9000))])
def test_block_sums_have_the_same_bits_whatever_the_order(backend, shape, block):
    weight, grad = (values("normal", shape, seed=i) for i in range(2))
    results = set()
    for seed in range(5):
        backend.module.set_seed(seed)
        backend.module.set_grid(seed)
        place = backend.undefined((shape[0] // block[0], shape[1] // block[1]))
        laid = [Laid(backend, x) for x in (weight, grad)]
        backend.update_block_scores([place], *([x] for x in laid), block=block, metric="mask_gradient")
        results.add(place.read().tobytes())
    assert len(results) == 1


@given(data=st.data())
def test_any_grid(any_backend, data):
    any_backend.vary(data)
    small = st.integers(1, 9)
    n, m, rows, cols = (data.draw(small) for _ in range(4))
    kernel = data.draw(st.lists(st.integers(1, 3), max_size=2))
    metric, reduce = data.draw(st.sampled_from(BLOCK_METRICS)), data.draw(st.sampled_from(["mean", "sum", "max"]))
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    name, dtype = data.draw(st.sampled_from(TAME)), data.draw(st.sampled_from(DTYPES))
    check_blocks(
        any_backend, (n * rows, m * cols, *kernel), (n, m), metric=metric, reduce=reduce, layout=layout, name=name,
        dtypes=("float32", dtype, dtype),
    )  # fmt: skip


def test_matrix_view_of_a_conv_weight():
    x = np.arange(2 * 3 * 4).reshape(2, 3, 2, 2)
    assert as_matrix(x)[1, 5] == x[1, 5 % 3, 0, 1]
