"""update_scores_ against the formulas in NumPy, one axis varied at a time around a plain call."""

import numpy as np
import oracle
import pytest
import torch
from hostile import DTYPES, SIZES, VALUES, layouts, values
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensors import array, assert_all_same, assert_only_view_written, assert_same, bits, tensor

from pruneops import ops

MOMENTUM = {"metric": "snip", "alpha": 0.9, "beta": 1.0}


def check_update(device, score, weight, grad, *, dtypes=("float32",) * 3, layout="contiguous", **how):
    """One call on tensors of the arrays against the oracle."""
    s, w, g = (tensor(a, d, device, layout) for a, d in zip((score, weight, grad), dtypes, strict=True))
    w_bits, g_bits = bits(w), bits(g)
    scalars = {k: torch.tensor(v, device=device) for k, v in how.items() if k in ("grad_scale", "found_inf")}
    assert ops.update_scores_(s, w, g, **{**how, **scalars}) is s
    assert_same(s, oracle.update_scores(score, weight, grad, dtype=dtypes[0], **how))
    assert (bits(w), bits(g)) == (w_bits, g_bits)
    return s


def three(name, shape, dtypes=("float32",) * 3):
    return [values(name, shape, dtype, seed) for seed, dtype in enumerate(dtypes)]


@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_metric_and_dtype(device, metric, dtype):
    dtypes = (dtype,) * 3
    check_update(device, *three("normal", (33, 65), dtypes), dtypes=dtypes, metric=metric, alpha=0.9, beta=0.3)


@pytest.mark.parametrize("n", SIZES)
def test_sizes(device, n):
    check_update(device, *three("normal", (n,)), **MOMENTUM)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("metric", oracle.METRICS)
def test_values(device, name, metric):
    check_update(device, *three(name, (1500,)), metric=metric, alpha=0.9, beta=-1.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", VALUES)
def test_values_in_other_dtypes(device, name, dtype):
    dtypes = (dtype,) * 3
    check_update(device, *three(name, (1500,), dtypes), dtypes=dtypes, **MOMENTUM)


@pytest.mark.parametrize("shape", [(37,), (9, 35), (5, 6, 7), (4, 5, 3, 6)])
def test_layouts_write_through(device, shape):
    for layout in layouts(len(shape)):
        score = check_update(device, *three("normal", shape), layout=layout, **MOMENTUM)
        assert_only_view_written(score)


def test_every_operand_has_its_own_layout(device):
    arrays = three("normal", (8, 6, 3, 5))
    for names in [("contiguous", "channels_last", "sliced"), ("transposed", "contiguous", "misaligned")]:
        s, w, g = (tensor(a, layout=layout, device=device) for a, layout in zip(arrays, names, strict=True))
        ops.update_scores_(s, w, g, **MOMENTUM)
        assert_same(s, oracle.update_scores(*arrays, dtype="float32", **MOMENTUM))


def test_expanded_inputs(device):
    score, grad = values("normal", (6, 40)), values("normal", (40,), seed=1)
    s = tensor(score, device=device)
    ops.update_scores_(
        s, torch.ones((), device=device).expand(6, 40), tensor(grad, device=device).expand(6, 40), **MOMENTUM
    )
    ones, grads = np.ones((6, 40), np.float32), np.broadcast_to(grad, (6, 40))
    assert_same(s, oracle.update_scores(score, ones, grads, dtype="float32", **MOMENTUM))


@pytest.mark.parametrize("dtypes", [
    ("float32", "bfloat16", "bfloat16"), ("float32", "float16", "bfloat16"), ("bfloat16", "float32", "float32"),
    ("float16", "float32", "bfloat16"), ("bfloat16", "float16", "float32"), ("float64", "float32", "bfloat16"),
    ("float32", "float64", "float16"), ("float32", "float32", "float64"), ("float64", "float64", "float32"),
])  # fmt: skip
def test_dtypes_mixed_in_one_call(device, dtypes):
    check_update(device, *three("normal", (2049,), dtypes), dtypes=dtypes, metric="taylor", alpha=0.7, beta=1.3)


def test_list_mixes_dtypes_shapes_and_layouts(device):
    shapes = [(5, 7), (0,), (), (3, 0, 2), (70_000,), (1,), (4, 3, 3, 3), (0, 4)]
    kinds = [("float32",) * 3, ("bfloat16",) * 3, ("float32", "float16", "bfloat16"), ("float64",) * 3]
    kinds = [kinds[i % 4] for i in range(len(shapes))]
    arrays = [three("normal", shape, dtypes) for shape, dtypes in zip(shapes, kinds, strict=True)]
    lists = [
        [
            tensor(a[i], d[i], device, "transposed" if j % 2 else "misaligned")
            for j, (a, d) in enumerate(zip(arrays, kinds, strict=True))
        ]
        for i in range(3)
    ]
    scores = lists[0]
    assert ops.update_scores_(*lists, **MOMENTUM) is scores
    expected = [oracle.update_scores(*a, dtype=d[0], **MOMENTUM) for a, d in zip(arrays, kinds, strict=True)]
    assert_all_same(scores, expected)
    for score in scores:
        assert_only_view_written(score)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_empty_list(sequence):
    scores = sequence()
    assert ops.update_scores_(scores, [], [], metric="snip") is scores


def test_many_tensors(device):
    arrays = [three("normal", (i % 5,)) for i in range(1000)]
    scores, weights, grads = ([tensor(a[i], device=device) for a in arrays] for i in range(3))
    ops.update_scores_(scores, weights, grads, **MOMENTUM)
    assert_all_same(scores, [oracle.update_scores(*a, dtype="float32", **MOMENTUM) for a in arrays])


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_never_reads_the_score(device, dtype):
    weight = values("normal", (1025,), dtype)
    for garbage in (np.nan, np.inf):
        score = np.full(weight.shape, garbage, weight.dtype)
        s = check_update(device, score, weight, weight, dtypes=(dtype,) * 3, metric="magnitude", beta=2.0)
        assert np.isfinite(array(s)).all()


@pytest.mark.parametrize("metric", oracle.METRICS)
def test_input_that_the_metric_does_not_read_may_be_none(device, metric):
    weights, grads = oracle.METRICS[metric]
    score, weight, grad = three("normal", (100,))
    s, w, g = (tensor(a, device=device) for a in (score, weight, grad))
    ops.update_scores_(s, w if weights else None, g if grads else None, metric=metric)
    assert_same(s, oracle.update_scores(score, weight, grad, dtype="float32", metric=metric))


# Powers of two whose inverse is a normal number, a subnormal one and none, and what is no power of two.
SCALES = [65536.0, -2.0, 2.0**-10, 2.0**-125, 2.0**126, 2.0**127, 2.0**-127, 2.0**-149, 3.0, 0.0, np.inf, np.nan]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["normal", "everything", "denormals"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_grad_scale(device, dtype, scale, name, skip):
    arrays, dtypes = three(name, (513,), (dtype,) * 3), (dtype,) * 3
    check_update(device, *arrays, dtypes=dtypes, grad_scale=scale, skip_nonfinite=skip, **MOMENTUM)


def test_grad_scale_leaves_the_weight_alone(device):
    check_update(device, *three("normal", (513,)), metric="magnitude", grad_scale=2.0)


@pytest.mark.parametrize("found", [0.0, -0.0, 1.0, 3.0])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_found_inf(device, found, layout):
    arrays = three("everything", (33, 35))
    s = check_update(device, *arrays, layout=layout, found_inf=found, **MOMENTUM)
    if found != 0:
        assert bits(s) == bits(tensor(arrays[0]))


def test_found_inf_with_alpha_zero_changes_nothing(device):
    arrays = three("everything", (1000,))
    s = check_update(device, *arrays, found_inf=1.0, metric="snip")
    assert bits(s) == bits(tensor(arrays[0]))


def test_scalars_may_have_any_shape_of_one_element(device):
    score, weight, grad = three("normal", (50,))
    s, w, g = (tensor(a, device=device) for a in (score, weight, grad))
    scale, found = torch.full((1,), 8.0, device=device), torch.zeros(1, 1, device=device)
    ops.update_scores_(s, w, g, grad_scale=scale, found_inf=found, **MOMENTUM)
    assert_same(s, oracle.update_scores(score, weight, grad, dtype="float32", grad_scale=8.0, **MOMENTUM))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("name", ["everything", "wide_range"])
def test_skip_nonfinite(device, name, dtype, metric):
    arrays = three(name, (1500,), (dtype,) * 3)
    arrays[0] = values("normal", (1500,), dtype)
    s = check_update(device, *arrays, dtypes=(dtype,) * 3, metric=metric, alpha=0.5, skip_nonfinite=True)
    if dtype != "float16":  # a finite v may be too large for float16
        assert np.isfinite(array(s)).all()


def test_skip_nonfinite_looks_at_v_not_at_its_inputs(device):
    # The gradient of the first entry is Inf, but divided by an infinite scale it is NaN; the second overflows in w*g.
    score, weight, grad = (np.array(a, np.float32) for a in ([1, 1, 1], [0, 1e30, 2], [np.inf, 1e30, 3]))
    s = check_update(device, score, weight, grad, metric="snip", alpha=1.0, skip_nonfinite=True)
    assert array(s).tolist() == [1, 1, 7]


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_every_half_value_is_read_and_rounded(device, half):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(getattr(torch, half))
    weight = array(patterns)
    for grad in (1.0, 1.00390625, 1.0009765625, 0.3, 2.0**-10):
        grads = np.full(weight.shape, grad, np.float32)
        for score_dtype in (half, "float32"):
            check_update(device, weight, weight, grads, dtypes=(score_dtype, half, "float32"), metric="snip")


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_ties_in_rounding_go_to_even(device, half):
    step = 2.0 ** (-8 if half == "bfloat16" else -11)
    weight = np.array([1 + step, 1 + 3 * step, 1 + step * (1 + 2**-10), 1 - step / 2], np.float32)
    s = check_update(
        device, np.zeros(4, np.float32), weight, weight, dtypes=(half, "float32", "float32"), metric="magnitude"
    )
    assert array(s).tolist() == [1.0, 1 + 4 * step, 1 + 2 * step, 1.0]


def test_no_fused_multiply_add(device):
    # 0.9 * s + w * g differs in the last bit for many of these entries when a product is not rounded.
    score, weight, grad = three("normal", (20_000,))
    check_update(device, score, weight, grad, **MOMENTUM)
    product = weight.astype(np.float64) * grad
    fused = (np.float32(0.9).astype(np.float64) * score + np.abs(product)).astype(np.float32)
    assert (fused != oracle.update_scores(score, weight, grad, dtype="float32", **MOMENTUM)).sum() > 1000


def test_many_momentum_steps_keep_the_storage(device):
    score = np.zeros((64, 33), np.float32)
    s = tensor(score, device=device)
    address = s.data_ptr()
    for step in range(20):
        weight, grad = values("normal", (64, 33), seed=step), values("normal", (64, 33), seed=step + 100)
        ops.update_scores_(s, tensor(weight, device=device), tensor(grad, device=device), **MOMENTUM)
        score = oracle.update_scores(score, weight, grad, dtype="float32", **MOMENTUM)
    assert_same(s, score)
    assert s.data_ptr() == address


def test_parameters_and_their_gradients(device):
    weight, grad = values("normal", (9, 9)), values("normal", (9, 9), seed=1)
    parameter = torch.nn.Parameter(tensor(weight, device=device))
    parameter.grad = tensor(grad, device=device)
    score = torch.zeros(9, 9, device=device)
    ops.update_scores_(score, parameter, parameter.grad, metric="snip")
    assert_same(score, oracle.update_scores(np.zeros((9, 9), np.float32), weight, grad, dtype="float32", metric="snip"))
    assert not score.requires_grad


POOL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 3.0, np.nan, np.inf, -np.inf, 1e-40, -1e-45, 3e38, 65504.0, 6e-8])


@given(
    data=st.data(), dtypes=st.tuples(*[st.sampled_from(DTYPES[:3])] * 3), metric=st.sampled_from(list(oracle.METRICS))
)
def test_any_values_and_shapes(device, data, dtypes, metric):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    arrays = [oracle.round_to(data.draw(hnp.arrays(np.float32, shape, elements=POOL)), d) for d in dtypes]
    how = {name: data.draw(st.sampled_from([0.0, 1.0, 0.9, -0.5])) for name in ("alpha", "beta")}
    layout = data.draw(st.sampled_from(layouts(len(shape))))
    check_update(
        device, *arrays, dtypes=dtypes, layout=layout, metric=metric, skip_nonfinite=data.draw(st.booleans()), **how
    )


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_half_score_of_doubles_is_rounded_once(device, half):
    """Just above a tie, and so near that float32 would land on it."""
    step = 2.0 ** (-11 if half == "float16" else -8)
    weight = np.array([1 + step + 2.0**-40, 1 + step, 1 + step - 2.0**-40, 2.0**-25 * (1 + 2.0**-40), 3e38])
    score = tensor(np.zeros(5, np.float32), half, device)
    ops.update_scores_(score, tensor(weight, device=device), None, metric="magnitude")
    expected = [1 + 2 * step, 1, 1, 2.0**-24, np.inf] if half == "float16" else [1 + 2 * step, 1, 1, 2.0**-25, 3e38]
    assert_same(score, oracle.round_to(np.float32(expected), half))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_scores_that_no_cache_holds(device, dtype):
    """Scores that are written and not read go past the caches from 16 MiB on: all of them, and nothing beside them."""
    kind = getattr(torch, dtype)
    n = 2**24 // kind.itemsize + 77
    weight = torch.randn(n, device=device).to(kind)
    around = torch.full((n + 10,), 7.0, dtype=kind, device=device)
    ops.update_scores_(around[3:-7], weight, None, metric="magnitude", alpha=0.0, beta=1.0)
    assert torch.equal(around[3:-7], weight.abs())
    assert torch.cat([around[:3], around[-7:]]).tolist() == [7.0] * 10


def test_scores_of_a_list_that_no_cache_holds(device):
    """What counts is the list: each tensor would fit."""
    weights = [torch.randn(99_991 + i, device=device) for i in range(50)]
    around = torch.full((sum(map(len, weights)) + 50,), 7.0, device=device)
    parts = around.split([len(w) + 1 for w in weights])
    ops.update_scores_([part[:-1] for part in parts], weights, None, metric="magnitude", alpha=0.0, beta=1.0)
    for part, weight in zip(parts, weights, strict=True):
        assert torch.equal(part[:-1], weight.abs())
        assert part[-1] == 7
