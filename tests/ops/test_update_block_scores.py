"""update_block_scores_ against float64 block sums, within the error bound of a float32 sum; maxima exactly."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, TAME, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from tensors import array, assert_only_view_written, assert_same, bits, tensor

from pruneops import ops


def check_blocks(
    device, score, weight, grad, *, block, metric, reduce="mean", dtypes=("float32",) * 3, layout="contiguous", **how
):
    s, w, g = (tensor(a, d, device, layout) for a, d in zip((score, weight, grad), dtypes, strict=True))
    assert ops.update_block_scores_(s, w, g, block=block, metric=metric, reduce=reduce, **how) is s
    kind = oracle.compute_type(score, weight, grad)
    skip = how.get("skip_nonfinite", False)
    v, error = oracle.block_values(weight, grad, metric, block, reduce, kind=kind, skip_nonfinite=skip)
    alpha, beta = kind(how.get("alpha", 0.0)), kind(how.get("beta", 1.0))
    old = alpha * score.astype(np.float64) if alpha else 0.0
    new = old + np.float64(beta) * v
    # The three operations of the update round too, and so does the score's dtype (2**-133: denormals of bfloat16).
    error = abs(beta) * error + 2 * np.finfo(kind).eps * (np.abs(old) + np.abs(beta * v))
    error = (
        error + oracle.ROUNDING[dtypes[0]] * (np.abs(new) + error) + (2.0**-24 if dtypes[0] == "float16" else 2.0**-133)
    )
    assert (np.abs(array(s).astype(np.float64) - new) <= error).all()
    return s


def arrays(shape, block, name="normal", dtypes=("float32",) * 3):
    grid = oracle.block_ids(shape, block)[1]
    return [values(name, size, d, i) for i, (size, d) in enumerate(zip((grid, shape, shape), dtypes, strict=True))]


@pytest.mark.parametrize("metric", [*oracle.METRICS, *oracle.MASK_METRICS])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_metric_reduce_and_dtype(device, metric, reduce, dtype):
    dtypes, block = (dtype,) * 3, (4, 3)
    how = {"metric": metric, "reduce": reduce, "alpha": 0.9, "beta": 0.5}
    check_blocks(device, *arrays((32, 33), block, dtypes=dtypes), block=block, dtypes=dtypes, **how)


@pytest.mark.parametrize(
    "block", [(1, 1), (4, 1), (1, 4), (16, 16), (2, 64), (64, 2), (-1, 1), (1, -1), (-1, -1), (3, 7)]
)
@pytest.mark.parametrize("metric", ["snip", "mask_gradient"])
def test_blocks(device, block, metric):
    shape = (63, 70) if block == (3, 7) else (64, 192)
    check_blocks(device, *arrays(shape, block), block=block, metric=metric, alpha=0.9)


@pytest.mark.parametrize("cols", [1, 2, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 4096, 4097])
@pytest.mark.parametrize("block", [(4, 1), (1, -1), (2, -1)])
@pytest.mark.parametrize(
    ("dtype", "reduce", "alpha"), [("float32", "sum", 0.0), ("float32", "mean", 0.9), ("float64", "mean", 0.9)]
)
def test_widths(device, cols, block, dtype, reduce, alpha):
    dtypes, how = (dtype,) * 3, {"metric": "snip", "reduce": reduce, "alpha": alpha}
    check_blocks(device, *arrays((8, cols), block, dtypes=dtypes), block=block, dtypes=dtypes, **how)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 8, 9, 12, 16, 20, 36, 64, 300, 511, 512, 768])
def test_blocks_of_one_row(device, width, dtype, reduce):
    dtypes, block = (dtype,) * 3, (1, width)
    inputs = arrays((3, width * (2200 // width + 1)), block, dtypes=dtypes)
    check_blocks(device, *inputs, block=block, dtypes=dtypes, metric="snip", reduce=reduce, alpha=0.9)


@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [1024, 1500, 9000])
def test_several_long_rows_beside_each_other(device, cols, dtype, reduce):
    dtypes, block = (dtype,) * 3, (1, cols)
    inputs = arrays((5, 3 * cols), block, dtypes=dtypes)
    check_blocks(device, *inputs, block=block, dtypes=dtypes, metric="snip", reduce=reduce, alpha=0.9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height", [2, 3, 4, 5, 256, 257])
@pytest.mark.parametrize("down", [1, 2, 3, 49])
@pytest.mark.parametrize("cols", [3, 84, 2048])
def test_any_number_of_rows_of_columns(device, cols, down, height, dtype):
    dtypes, block = ("float64" if dtype == "float64" else "float32", dtype, dtype), (height, 1)
    inputs = arrays((height * min(down, 10000 // height), cols), block, dtypes=dtypes)
    check_blocks(device, *inputs, block=block, dtypes=dtypes, metric="snip", alpha=0.9)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [("bfloat16", "float32")])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [2, 4, 6, 8, 20])
def test_small_blocks(device, width, height, dtypes, reduce):
    dtypes, block = ("float64" if "float64" in dtypes else "float32", *dtypes), (height, width)
    inputs = arrays((3 * height, 83 * width), block, dtypes=dtypes)  # 83 blocks: vectors of them, and a rest
    check_blocks(device, *inputs, block=block, dtypes=dtypes, metric="snip", reduce=reduce, alpha=0.9)


@pytest.mark.parametrize("block", [(32768, 1), (65536, 1), (1, 1), (-1, -1)])
def test_tall_weights(device, block):
    check_blocks(device, *arrays((65536, 3), block), block=block, metric="magnitude")


@pytest.mark.parametrize("name", TAME)
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_values(device, name, reduce):
    block = (2, 16)
    check_blocks(device, *arrays((16, 64), block, name), block=block, metric="snip", reduce=reduce, alpha=0.9)


def exact_maximum(weight, grad, block, metric="taylor"):
    return oracle.block_values(weight, grad, metric, block, "max", kind=np.float32)[0].astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 10), (6, 8, 5), (6, 8, 3, 5), (6, 8, 1, 1), (6, 4, 2, 3, 2)])
@pytest.mark.parametrize("block", [(2, 2), (1, -1), (-1, 1), (3, 2)])
def test_shapes_in_every_layout(device, shape, block):
    score, weight, grad = arrays(shape, block)
    for layout in layouts(len(shape)):
        s = tensor(score, layout="transposed", device=device)
        w, g = (tensor(a, layout=layout, device=device) for a in (weight, grad))
        ops.update_block_scores_(s, w, g, block=block, metric="taylor", reduce="max")
        assert_same(s, exact_maximum(weight, grad, block))


@pytest.mark.parametrize("layout", layouts(2))
def test_layouts_of_the_score_write_through(device, layout):
    assert_only_view_written(
        check_blocks(device, *arrays((12, 20), (2, 4)), block=(2, 4), metric="snip", alpha=0.9, layout=layout)
    )


@pytest.mark.parametrize("dtypes", [
    ("float32", "bfloat16", "bfloat16"), ("float32", "float16", "bfloat16"), ("bfloat16", "float32", "float32"),
    ("float64", "float32", "bfloat16"), ("float32", "bfloat16", "float64"),
])  # fmt: skip
def test_dtypes_mixed_in_one_call(device, dtypes):
    check_blocks(
        device, *arrays((16, 64), (4, 2), dtypes=dtypes), block=(4, 2), metric="mask_gradient", dtypes=dtypes, alpha=0.5
    )


def test_list_of_shapes_with_empty_ones(device):
    shapes, block = [(8, 6), (0, 6), (4, 0), (128, 1030), (4, 4, 3, 3), (0, 2), (4, 2)], (4, 2)
    lists = [arrays(shape, block, dtypes=("float32", "bfloat16", "float32")) for shape in shapes]
    scores = [tensor(a[0], device=device) for a in lists]
    weights = [tensor(a[1], "bfloat16" if i % 2 else "float32", device) for i, a in enumerate(lists)]
    grads = [tensor(a[2], device=device) for a in lists]
    assert ops.update_block_scores_(scores, weights, grads, block=block, metric="snip", reduce="max") is scores
    for score, (_, weight, grad) in zip(scores, lists, strict=True):
        assert_same(score, exact_maximum(weight, grad, block, "snip"))


def test_whole_extent_of_an_empty_weight(device):
    for shape, block in [((0, 3), (-1, 1)), ((3, 0), (1, -1)), ((0, 0), (-1, -1))]:
        grid = oracle.block_ids(shape, block)[1]
        score = torch.ones(grid, device=device)
        ops.update_block_scores_(score, torch.ones(shape, device=device), None, block=block, metric="magnitude")
        assert score.numel() == 0


@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_one_entry_are_the_entries(device, metric, dtype):
    score, weight, grad = (values("wide_range", (9, 33), dtype, i) for i in range(3))
    s, w, g = (tensor(a, dtype, device) for a in (score, weight, grad))
    how = {"metric": metric, "alpha": 0.9, "beta": -0.3}
    for reduce in ("mean", "sum", "max"):
        blocks = ops.update_block_scores_(s.clone(), w, g, block=(1, 1), reduce=reduce, **how)
        assert_same(blocks, oracle.update_scores(score, weight, grad, dtype=dtype, **how))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_nonfinite_entries_reach_only_their_block(device, special, reduce):
    _, weight, grad = arrays((8, 40), (4, 10))
    for row, col in [(0, 0), (3, 9), (5, 21), (7, 39)]:
        hit = weight.copy()
        hit[row, col] = special
        score = torch.zeros(2, 4, device=device)
        ops.update_block_scores_(
            score, tensor(hit, device=device), tensor(grad, device=device), block=(4, 10), metric="snip", reduce=reduce
        )
        finite = np.ones((2, 4), bool)
        finite[row // 4, col // 10] = False
        np.testing.assert_array_equal(np.isfinite(array(score)), finite)
        assert np.isnan(array(score)[~finite]).all() == np.isnan(special)


@pytest.mark.parametrize("metric", ["snip", "mask_gradient"])
def test_opposite_infinities(device, metric):
    weight = torch.tensor([[torch.inf, -torch.inf, 1.0, 1.0]], device=device)
    score = ops.update_block_scores_(
        torch.zeros(1, 2, device=device), weight, torch.ones_like(weight), block=(1, 2), metric=metric, reduce="sum"
    )
    assert array(score).tolist()[0][1] == 2.0
    assert np.isnan(array(score)[0, 0]) == (metric == "mask_gradient")


@pytest.mark.parametrize(("shape", "block"), [
    ((16, 64), (4, 8)), ((8, 1100), (4, 1)), ((5, 1100), (1, 4)), ((3, 2048), (1, -1)), ((6, 1030), (1, 5)),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_skip_nonfinite_counts_entries_as_zero(device, shape, block, dtype, reduce):
    weight, grad = (values("infinities", shape, dtype, seed=i) for i in (1, 2))
    weight[2, 5] = np.nan
    score = np.full(oracle.block_ids(shape, block)[1], 2.0, np.float32)
    s = check_blocks(
        device, score, weight, grad, block=block, dtypes=("float32", dtype, dtype), metric="snip", reduce=reduce,
        alpha=1.0, skip_nonfinite=True,
    )  # fmt: skip
    assert np.isfinite(array(s)).all()


@pytest.mark.parametrize("metric", oracle.MASK_METRICS)
def test_skip_nonfinite_counts_a_mask_gradient_as_zero(device, metric):
    weight = torch.tensor([[torch.inf, 1.0, 1.0, 2.0]], device=device)
    score = torch.full((1, 2), 5.0, device=device)
    ops.update_block_scores_(
        score, weight, torch.ones_like(weight), block=(1, 2), metric=metric, alpha=1.0, skip_nonfinite=True
    )
    assert array(score).tolist() == [[5.0, 14.0 if metric == "mask_fisher" else 8.0]]


def test_mask_gradient_is_the_gradient_of_a_block_mask(device):
    torch.manual_seed(0)
    weight, x = torch.randn(8, 12, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    weight.requires_grad_()
    mask = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    wide = mask.repeat_interleave(4, 0).repeat_interleave(3, 1)
    torch.tanh(x @ (weight * wide).T).square().sum().backward()
    score = torch.zeros(2, 4, dtype=torch.float64, device=device)
    w, g = weight.detach().to(device), weight.grad.to(device)
    ops.update_block_scores_(score, w, g, block=(4, 3), metric="mask_gradient")
    np.testing.assert_allclose(array(score), np.abs(array(mask.grad)), rtol=1e-12)
    ops.update_block_scores_(score, w, g, block=(4, 3), metric="mask_fisher")
    np.testing.assert_allclose(array(score), array(mask.grad) ** 2, rtol=1e-12)


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("metric", ["snip", "mask_fisher"])
def test_found_inf(device, found, metric):
    score, weight, grad = (tensor(a, device=device) for a in arrays((8, 8), (2, 2), "everything"))
    before = bits(score)
    flag = torch.tensor(found, device=device)
    ops.update_block_scores_(score, weight, grad, block=(2, 2), metric=metric, found_inf=flag)
    assert (bits(score) == before) == (found != 0)


@pytest.mark.parametrize("scale", [3.0, 1024.0, 2.0**100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "block"), [((8, 8), (2, 2)), ((4, 1100), (4, 1)), ((3, 1100), (1, 4)), ((3, 2048), (1, -1))]
)
def test_grad_scale_divides_the_gradient(device, shape, block, dtype, scale):
    dtypes = ("float32", dtype, dtype)
    _, weight, grad = arrays(shape, block, dtypes=dtypes)
    s = torch.zeros(oracle.block_ids(shape, block)[1], device=device)
    w, g = tensor(weight, dtype, device), tensor(grad, dtype, device)
    ops.update_block_scores_(
        s, w, g, block=block, metric="snip", reduce="max", grad_scale=torch.tensor(scale, device=device)
    )
    entry = oracle.entry_values("snip", weight, grad, kind=oracle.compute_type(weight, grad), grad_scale=scale)
    assert_same(s, oracle.reduce_blocks(entry, block, "max")[0].astype(np.float32))


def test_alpha_zero_never_reads_the_score(device):
    _, weight, grad = arrays((8, 8), (2, 2))
    s = torch.full((4, 4), torch.nan, device=device)
    ops.update_block_scores_(s, tensor(weight, device=device), tensor(grad, device=device), block=(2, 2), metric="snip")
    assert np.isfinite(array(s)).all()


@pytest.mark.parametrize("block", [(4, 1), (1, 4), (64, 64), (-1, 1), (1, -1), (-1, -1)])
def test_same_call_same_bits(device, block):
    _, weight, grad = (tensor(a, device=device) for a in arrays((256, 512), block))
    grid = oracle.block_ids((256, 512), block)[1]
    runs = [
        ops.update_block_scores_(torch.zeros(grid, device=device), weight, grad, block=block, metric="mask_gradient")
        for _ in range(3)
    ]
    assert bits(runs[0]) == bits(runs[1]) == bits(runs[2])


def test_inputs_are_not_written(device):
    score, weight, grad = (tensor(a, device=device) for a in arrays((8, 8), (2, 2)))
    before = bits(weight), bits(grad)
    ops.update_block_scores_(score, weight, grad, block=(2, 2), metric="mask_fisher", alpha=0.9)
    assert (bits(weight), bits(grad)) == before


@given(data=st.data())
def test_any_grid(device, data):
    small = st.integers(1, 6)
    n, m, rows, cols = (data.draw(small) for _ in range(4))
    block = (data.draw(st.sampled_from([n, -1])), data.draw(st.sampled_from([m, -1])))
    shape = (n * rows, m * cols, *data.draw(st.lists(st.integers(1, 4), max_size=2)))
    metric = data.draw(st.sampled_from((*oracle.METRICS, *oracle.MASK_METRICS)))
    reduce = data.draw(st.sampled_from(["mean", "sum", "max"]))
    check_blocks(device, *arrays(shape, block), block=block, metric=metric, reduce=reduce, alpha=0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(1, 2), (2, 1)])
def test_scores_that_no_cache_holds(device, block, dtype):
    """Block scores that are written and not read go past the caches from 16 MiB on: all of them, and nothing beside
    them."""
    rows, columns = 16 // dtype.itemsize, 2**21 + 34
    weight = torch.randn(rows, columns, device=device).to(dtype)
    grid = (rows // block[0], columns // block[1])
    highest = weight.abs().reshape(grid[0], block[0], grid[1], block[1]).amax((1, 3))
    around = torch.full((highest.numel() + 10,), 7.0, dtype=dtype, device=device)
    scores = around[3:-7].view(grid)
    ops.update_block_scores_(scores, weight, None, block=block, metric="magnitude", reduce="max", alpha=0.0, beta=1.0)
    assert torch.equal(scores, highest)
    assert torch.cat([around[:3], around[-7:]]).tolist() == [7.0] * 10
