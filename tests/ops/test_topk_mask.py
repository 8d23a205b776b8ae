"""topk_mask against a stable sort in NumPy, exactly."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, keeps, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from metrics import scored_on_the_fly
from tensors import array, assert_all_same, assert_only_view_written, assert_same, bits, tensor

from pruneops import ops


def check_topk(device, score, keep, *, dtype="float32", ties="exact", layout="contiguous"):
    mask = ops.topk_mask(tensor(score, dtype, device, layout), keep=keep, ties=ties)
    assert mask.dtype == torch.bool
    assert_same(mask, oracle.topk_mask([score], keep, ties)[0])
    if ties == "exact":
        assert int(mask.sum()) == keep


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    for keep in keeps(n):
        check_topk(device, values("normal", (n,)), keep)
    check_topk(device, values("few_distinct", (n,)), n // 2)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(device, name, dtype):
    score = values(name, (40, 50), dtype)
    for keep in keeps(score.size):
        for ties in ("exact", "threshold"):
            check_topk(device, score, keep, dtype=dtype, ties=ties)


@pytest.mark.parametrize("metric", [None, "magnitude"])
@pytest.mark.parametrize("copies", [1, 5])  # few scores, and as many as are selected in one pass
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_every_half_value(device, half, copies, metric):
    patterns = np.random.default_rng(0).permutation(copies * 2**16).astype(np.uint16).view(np.int16)
    score = torch.from_numpy(patterns).view(getattr(torch, half))
    ranked = array(score) if metric is None else np.abs(array(score))
    for keep in (1, 100, 2**14, 2**15 - 300, 2**15, 2**15 + 1, 50_000, 65_000, 2**16 - 1):
        expected = oracle.topk_mask([ranked], copies * keep)[0]
        assert_same(ops.topk_mask(score.to(device), keep=copies * keep, metric=metric), expected)


@pytest.mark.parametrize("shape", [(), (1,), (70,), (9, 35), (5, 6, 7), (4, 5, 3, 6)])
def test_layouts(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(len(shape)):
        for keep in keeps(score.size):
            check_topk(device, score, keep, layout=layout)


@pytest.mark.parametrize("shape", [(9, 35), (4, 5, 3, 6)])
def test_out_is_written_through_and_returned(device, shape):
    score = values("few_distinct", shape)
    for layout in layouts(len(shape)):
        out = tensor(np.ones(shape, bool), device=device, layout=layout)
        assert ops.topk_mask(tensor(score, device=device), keep=30, out=out) is out
        assert_same(out, oracle.topk_mask([score], 30)[0])
        assert_only_view_written(out)


SHAPES = [(0,), (5, 7), (), (40_000,), (0, 3), (1,), (4, 3, 3, 3), (1025,), (0,)]


@pytest.mark.parametrize("ties", ["exact", "threshold"])
@pytest.mark.parametrize("name", ["normal", "few_distinct", "all_equal", "everything", "one_outlier"])
def test_lists(device, ties, name):
    scores = [values(name, shape, seed=i) for i, shape in enumerate(SHAPES)]
    tensors = [tensor(a, device=device, layout="transposed" if a.ndim > 1 else "misaligned") for a in scores]
    for keep in keeps(sum(a.size for a in scores)):
        masks = ops.topk_mask(tensors, keep=keep, ties=ties)
        assert isinstance(masks, list)
        assert_all_same(masks, oracle.topk_mask(scores, keep, ties))


@pytest.mark.parametrize("packed", [False, True])
def test_masks_made_beforehand(device, packed):
    # The last is large enough to ask for huge pages.
    scores = [tensor(values("few_distinct", shape), device=device) for shape in ((), (3, 0), (7, 5), (2100, 2000))]
    masks = ops.empty_masks(scores, packed=packed)
    assert all(ops.empty_masks(x, packed=packed).shape == mask.shape for x, mask in zip(scores, masks, strict=True))
    expected = ops.topk_mask(scores, sparsity=0.6, packed=packed)
    assert [bits(x) for x in ops.topk_mask(scores, sparsity=0.6, packed=packed, out=masks)] == [
        bits(x) for x in expected
    ]
    with pytest.raises(TypeError, match=r"empty_masks: scores\[1\] must be a tensor, got int"):
        ops.empty_masks([scores[0], 3])


def test_lists_into_out(device):
    scores = [values("few_distinct", shape, seed=i) for i, shape in enumerate(SHAPES)]
    out = tuple(tensor(np.ones(a.shape, bool), device=device, layout="misaligned") for a in scores)
    assert ops.topk_mask([tensor(a, device=device) for a in scores], keep=1000, out=out) is out
    assert_all_same(out, oracle.topk_mask(scores, 1000))
    for mask in out:
        assert_only_view_written(mask)


def test_lists_of_mixed_dtypes(device):
    kinds = [DTYPES[i % 4] for i in range(len(SHAPES))]
    scores = [values("everything", shape, d, i) for i, (shape, d) in enumerate(zip(SHAPES, kinds, strict=True))]
    scores[3] = values("normal", SHAPES[3], "float64")
    tensors = [tensor(a, d, device) for a, d in zip(scores, [*kinds[:3], "float64", *kinds[4:]], strict=True)]
    for keep in keeps(sum(a.size for a in scores)):
        assert_all_same(ops.topk_mask(tensors, keep=keep), oracle.topk_mask(scores, keep))


def test_float64_is_not_narrowed(device):
    score = 1.0 + np.arange(100) * 2.0**-50
    check_topk(device, score, 50, dtype="float64")
    masks = ops.topk_mask([torch.ones(3, device=device), tensor(score, device=device)], keep=60)
    assert_all_same(masks, oracle.topk_mask([np.ones(3), score], 60))


@pytest.mark.parametrize("sequence", [list, tuple])
def test_empty_list(sequence):
    assert list(ops.topk_mask(sequence(), keep=0)) == []
    assert list(ops.topk_mask(sequence(), sparsity=0.5)) == []


def test_outlier_tensor_takes_all(device):
    scores = [values("normal", (1000,)), values("normal", (500,), seed=1) * 1e20, values("normal", (1000,), seed=2)]
    assert_all_same(ops.topk_mask([tensor(a, device=device) for a in scores], keep=200), oracle.topk_mask(scores, 200))


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.1, 0.29, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1.0, 1])
@pytest.mark.parametrize("n", [1, 3, 100, 1001])
def test_sparsity_prunes_its_floor(device, sparsity, n):
    score = values("few_distinct", (n,))
    mask = ops.topk_mask(tensor(score, device=device), sparsity=sparsity)
    assert_same(mask, oracle.topk_mask([score], n - int(sparsity * n))[0])


def test_threshold_prunes_all_ties(device):
    score = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0], device=device)
    assert array(ops.topk_mask(score, keep=3, ties="threshold")).tolist() == [False, False, False, False, True]
    assert array(ops.topk_mask(score, keep=5, ties="threshold")).tolist() == [True] * 5
    assert array(ops.topk_mask(torch.zeros(4, device=device), keep=2, ties="threshold")).tolist() == [False] * 4


def check_metric(device, shapes, metric, dtypes, keep, name="normal", layout="contiguous"):
    made = [scored_on_the_fly(device, metric, name, shape, dtypes, layout, i) for i, shape in enumerate(shapes)]
    weights, inputs, scores = zip(*made, strict=True)
    inputs = {argument: [one[argument] for one in inputs] for argument in inputs[0]}
    assert_all_same(ops.topk_mask(weights, keep=keep, metric=metric, **inputs), oracle.topk_mask(scores, keep))


@pytest.mark.parametrize("metric", oracle.SELECT_METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metric_on_the_fly(device, metric, dtype):
    shapes = [(33, 40), (0, 4), (), (1030,), (4, 3, 5)]
    for name in ("normal", "few_distinct", "everything"):
        check_metric(device, shapes, metric, (dtype, dtype), 1300, name)


@pytest.mark.parametrize("metric", oracle.SELECT_METRICS)
def test_metric_with_mixed_dtypes(device, metric):
    for dtypes in [("bfloat16", "float32"), ("float16", "bfloat16"), ("float32", "float64")]:
        check_metric(device, [(64, 40), (7,)], metric, dtypes, 1000)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided", "misaligned"])
def test_metric_in_other_layouts(device, layout):
    for metric in oracle.SELECT_METRICS:
        check_metric(device, [(33, 40), (70,)], metric, ("float32", "float32"), 600, layout=layout)


def test_metric_of_each_tensor_has_its_own_precision(device):
    # Beside a float64 tensor a float32 product is still rounded to float32: all of these tie, so the first is kept.
    weight, grad = np.array([1 + 2**-12, 1 + 2**-23, 1.0], np.float32), np.array([1 - 2**-13, 1.0, 1.0], np.float32)
    w, g = [weight, weight.astype(np.float64)[2:]], [grad, grad.astype(np.float64)[2:]]
    scores = [oracle.entry_values("snip", a, b, kind=oracle.compute_type(a, b)) for a, b in zip(w, g, strict=True)]
    tensors, grads = ([tensor(a, device=device) for a in arrays] for arrays in (w, g))
    for keep in range(5):
        assert_all_same(ops.topk_mask(tensors, keep=keep, metric="snip", grads=grads), oracle.topk_mask(scores, keep))


def test_metric_is_not_rounded_to_the_weight(device):
    # Two products that differ in float32 and are equal in bfloat16: the higher one wins, not the first.
    weight = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16, device=device)
    grad = torch.tensor([256.0, 254.0], dtype=torch.bfloat16, device=device)
    products = [1.0 * 256.0, 1.0078125 * 254.0]
    mask = ops.topk_mask(weight, keep=1, metric="snip", grads=grad)
    assert array(mask).tolist() == [p == max(products) for p in products]


def test_same_as_the_stored_score(device):
    weight, grad = (tensor(values("normal", (70, 90), seed=i), device=device) for i in range(2))
    score = ops.update_scores_(torch.empty_like(weight), weight, grad, metric="taylor")
    direct = ops.topk_mask(weight, keep=2000, metric="taylor", grads=grad)
    assert bits(ops.topk_mask(score, keep=2000)) == bits(direct)


POOL = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, 2.0])


@given(data=st.data(), pieces=st.lists(st.lists(POOL, max_size=40), min_size=1, max_size=6))
def test_any_values_splits_and_keep(device, data, pieces):
    scores = [np.array(piece, np.float32) for piece in pieces]
    keep = data.draw(st.integers(0, sum(map(len, pieces))))
    ties = data.draw(st.sampled_from(["exact", "threshold"]))
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in scores]
    scores = [oracle.round_to(a, d) for a, d in zip(scores, dtypes, strict=True)]
    tensors = [tensor(a, d, device) for a, d in zip(scores, dtypes, strict=True)]
    assert_all_same(ops.topk_mask(tensors, keep=keep, ties=ties), oracle.topk_mask(scores, keep, ties))


@given(data=st.data(), n=st.integers(1, 3000), seed=st.integers(0, 2**30), levels=st.integers(1, 2000))
def test_any_number_of_levels(device, data, n, seed, levels):
    score = np.random.default_rng(seed).integers(-levels, levels, n).astype(np.float32)
    check_topk(device, score, data.draw(st.integers(0, n)))


#: From here on the CPU selects in one pass, by a bracket from a sample.
ONE_PASS = 2**18


def plateau(n, share):
    """Normal scores, of which a run of ``share`` of all is equal: the rank may lie inside of it, or at its edge."""
    score = values("normal", (n,))
    score[n // 4 : n // 4 + int(share * n)] = 0.0
    return score


def in_parts(score, places):
    return [tensor(part) for part in np.split(score, places)]


@pytest.mark.parametrize("name", VALUES)
def test_one_pass_values(name):
    for n in (ONE_PASS - 1, ONE_PASS, ONE_PASS + 333):
        score = values(name, (n,))
        for keep in (1, n // 10, n // 2, n - 1):
            for ties in ("exact", "threshold"):
                expected = oracle.topk_mask([score], keep, ties)[0]
                masks = ops.topk_mask(in_parts(score, (5, n // 3)), keep=keep, ties=ties)
                assert_same(torch.cat(masks), expected)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.6])
def test_one_pass_at_the_edges_of_a_plateau(share):
    n = ONE_PASS + 77
    score = plateau(n, share)
    below, ties = int((score < 0).sum()), int((score == 0).sum())
    for pruned in (below - 1, below, below + 1, below + ties // 2, below + ties - 1, below + ties, below + ties + 1):
        assert_same(ops.topk_mask(tensor(score), keep=n - pruned), oracle.topk_mask([score], n - pruned)[0])
        assert_same(ops.kth_value(tensor(score), pruned), np.float32(oracle.kth_value([score], pruned)))


@pytest.mark.parametrize("period", [64, 256, 1024])
def test_one_pass_sees_through_periods(period):
    n = ONE_PASS + period
    score = (np.arange(n) % period == 0).astype(np.float32) + values("normal", (n,)) * 1e-3
    keep = n // period // 2
    assert_same(ops.topk_mask(tensor(score), keep=keep), oracle.topk_mask([score], keep)[0])
