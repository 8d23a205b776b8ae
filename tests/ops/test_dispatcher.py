"""Every operator under torch.library.opcheck, torch.compile(fullgraph=True) and autograd."""

import gc
import weakref

import pytest
import torch
from hostile import values
from tensors import bits, tensor

from pruneops import ops

OPS = torch.ops.pruneops


def overload(name):
    """The operator of a case, such as ``topk_mask metric`` or ``block_reduce.out``."""
    packet, _, which = name.split()[0].partition(".")
    return getattr(getattr(OPS, packet), which or "default")


def inputs(device, shape=(8, 16)):
    return [tensor(values("few_distinct" if i > 1 else "normal", shape, seed=i), device=device) for i in range(3)]


def direct_calls(device):
    """Arguments of each operator as the functional API passes them."""
    score, weight, grad = inputs(device)
    blocks, mask = torch.zeros(4, 4, device=device), torch.zeros(8, 16, dtype=torch.bool, device=device)
    one, norm = torch.ones((), device=device), torch.ones(16, device=device)
    other = torch.ones(3, device=device)
    other_mask = torch.zeros(3, dtype=torch.bool, device=device)
    return {
        "update_scores_": ([score, other], [weight, other * 2], [grad, other], "snip", 0.9, 1.0, one, one * 0, True),
        "update_scores_ one input": ([score], [], [grad], "fisher", 0.0, 1.0, None, None, False),
        "update_topk_mask_": (
            [score, other],
            [weight, other * 2],
            [grad, other],
            "snip",
            0.9,
            1.0,
            one,
            None,
            False,
            [mask, other_mask],
            50,
            "exact",
        ),
        "update_block_scores_": ([blocks], [weight], [grad], [2, 4], "mask_fisher", "mean", 0.9, 1.0, None, one, False),
        "block_reduce": (score, [2, 4], "mean"),
        "block_reduce.out": (score, [2, 4], "mean", blocks),
        "kth_value": ([score, other], 5, None, [], []),
        "kth_value metric": ([weight], 5, "wanda", [], [norm]),
        "count_digits": ([score, other], torch.zeros((), dtype=torch.int64, device=device), 0, None, [], []),
        "topk_mask": ([score, other], [mask, other_mask], 50, "exact", False, None, [], []),
        "topk_mask metric": ([weight], [mask], 50, "threshold", True, "snip", [grad], []),
        "topk_mask packed": ([score], [mask.new_zeros(16, dtype=torch.uint8)], 50, "exact", False, None, [], []),
        "row_topk_mask": (score, mask, 7, None, None, None),
        "row_topk_mask metric": (weight, mask, 7, "wanda", None, norm),
        "nm_mask": (score, mask, 2, 4, None, None, None),
        "nm_mask metric": (weight, mask, 2, 4, "snip", grad, None),
        "empty_masks": ([score[:0], other[:0]], False),  # of which nothing is read
        "empty_masks packed": ([score[:0]], True),
        "expand_block_mask": (blocks > 0, [2, 4], [8, 16]),
        "pack_mask": (score > 0,),
        "unpack_mask": (ops.pack_mask(score > 0), [8, 16]),
        "apply_masks_": ([weight, other], [grad > 0, other_mask], None),
        "apply_masks_ packed": ([weight], [ops.pack_mask(grad > 0)], None),
        "apply_masks_ block": ([weight], [blocks > 0], [2, 4]),
        "prune_by_importance": (weight, grad[:4, 0].contiguous(), 2, 2, 0, "importance"),
    }


@pytest.mark.parametrize("name", direct_calls("cpu"))
def test_opcheck(device, name):
    torch.library.opcheck(overload(name), direct_calls(device)[name])


def test_every_operator_is_checked():
    operators = set(ops.__all__)
    assert {name.split()[0].partition(".")[0] for name in direct_calls("cpu")} == operators
    assert {name.split()[0] for name in FUNCTIONS} == operators


def spoiled(value):
    """What an argument cannot be beside the others: a list that lacks a tensor, tensors of too few entries."""
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        yield value[:-1]
        yield [value[0].flatten()[:-1].clone(), *value[1:]]
    elif isinstance(value, torch.Tensor) and value.numel() > 1:
        yield value.flatten()[:-1].clone()


#: Arguments that are right by themselves, with as many entries or tensors as they have.
ANY_LENGTH = {
    ("empty_masks", 0),
    ("empty_masks packed", 0),
    ("pack_mask", 0),
    ("kth_value", 0),
    ("count_digits", 0),
    ("topk_mask packed", 0),
    ("apply_masks_ packed", 0),
}


@pytest.mark.parametrize("name", direct_calls("cpu"))
def test_direct_calls_are_checked_too(device, name):
    # Python's checks are not before these calls; what does not fit is refused, not read.
    for i in range(len(direct_calls(device)[name])):
        for wrong in spoiled(direct_calls(device)[name][i]) if (name, i) not in ANY_LENGTH else ():
            arguments = list(direct_calls(device)[name])
            arguments[i] = wrong
            with pytest.raises(RuntimeError):
                overload(name)(*arguments)


#: Words of other operators than the one called.
MISPLACED = {
    "update_scores_": [(3, "wanda"), (3, "mask_sum"), (3, "l1")],
    "update_topk_mask_": [(3, "wanda"), (3, "mask_gradient"), (11, "first")],
    "update_block_scores_": [(4, "wanda")],
    "block_reduce": [(2, "median")],
    "kth_value": [(2, "mask_sum")],
    "topk_mask": [(3, "first"), (5, "mask_fisher")],
    "prune_by_importance": [(5, "reverse")],
}


@pytest.mark.parametrize("name", MISPLACED)
def test_direct_calls_with_words_of_others(device, name):
    for i, word in MISPLACED[name]:
        arguments = list(direct_calls(device)[name])
        arguments[i] = word
        with pytest.raises(RuntimeError):
            overload(name)(*arguments)


def test_direct_call_without_tensors_but_with_other_lists(device):
    one = torch.ones(2, device=device)
    with pytest.raises(RuntimeError):
        OPS.topk_mask([], [], 0, "exact", False, None, [one], [])


def update_scores(score, weight, grad):
    return ops.update_scores_([score, torch.ones_like(grad)], [weight, grad], [grad, weight], metric="snip", alpha=0.9)


def update_with_scalars(score, weight, grad):
    scale, found = grad.new_full((1,), 4.0), grad.new_zeros(())
    return ops.update_scores_(
        score, weight, grad, metric="taylor", grad_scale=scale, found_inf=found, skip_nonfinite=True
    )


def update_block_scores(score, weight, grad):
    blocks = score.new_zeros(score.shape[0] // 2, score.shape[1] // 4)
    return ops.update_block_scores_(blocks, weight, grad, block=(2, 4), metric="mask_gradient")


def topk_on_the_fly(score, weight, grad):
    return ops.topk_mask([weight, score], sparsity=0.25, metric="snip", grads=[grad, weight])


def wanda(score, weight, grad):
    return ops.row_topk_mask(weight, sparsity=0.5, metric="wanda", input_norm=score[0].abs())


FUNCTIONS = {
    "update_scores_": update_scores,
    "update_scores_ scalars": update_with_scalars,
    "update_topk_mask_": lambda s, w, g: ops.update_topk_mask_(s, w, g, metric="snip", keep=30),
    "update_block_scores_": update_block_scores,
    "block_reduce": lambda s, w, g: ops.block_reduce(s, (2, -1), "max"),
    "block_reduce out": lambda s, w, g: ops.block_reduce(s, (1, 1), "max", out=w),
    "kth_value": lambda s, w, g: ops.kth_value([s, w], 30),
    "count_digits": lambda s, w, g: ops.count_digits([s, w], torch.zeros(1, dtype=torch.int64, device=s.device), 0),
    "topk_mask": lambda s, w, g: ops.topk_mask(s, keep=30),
    "topk_mask packed": lambda s, w, g: ops.topk_mask([s, w], keep=30, packed=True),
    "topk_mask metric": topk_on_the_fly,
    "topk_mask out": lambda s, w, g: ops.topk_mask([s, w], keep=30, out=[s > 0, w > 0]),
    "row_topk_mask": lambda s, w, g: ops.row_topk_mask(s, keep=3),
    "row_topk_mask metric": wanda,
    "nm_mask": lambda s, w, g: ops.nm_mask(s, 2, 4),
    "nm_mask metric": lambda s, w, g: ops.nm_mask(w, 1, 2, metric="snip", grads=g),
    "empty_masks": lambda s, w, g: [mask.fill_(True) for mask in ops.empty_masks([s, w])],
    "empty_masks packed": lambda s, w, g: ops.empty_masks(s, packed=True).fill_(1),
    "expand_block_mask": lambda s, w, g: ops.expand_block_mask(ops.block_reduce(s, (2, 4)) > 0, (2, 4), s.shape),
    "pack_mask": lambda s, w, g: ops.pack_mask(s > 0),
    "unpack_mask": lambda s, w, g: ops.unpack_mask(ops.pack_mask(s > 0), s.shape),
    "apply_masks_": lambda s, w, g: ops.apply_masks_([w, s], [g > 0, ops.pack_mask(s > 0)]),
    "apply_masks_ block": lambda s, w, g: ops.apply_masks_(w, ops.block_reduce(g, (2, 4)) > 0, block=(2, 4)),
    "prune_by_importance": lambda s, w, g: ops.prune_by_importance(w, g[:, 0].clone(), 2, 1, order="original"),
}


def as_bytes(result):
    return [bits(x) for x in (result if isinstance(result, list) else [result])]


def assert_compiled_is_eager(compiled, function, device, shape):
    """Results and what was written into the arguments."""
    given, expected = inputs(device, shape), inputs(device, shape)
    assert as_bytes(compiled(*given)) == as_bytes(function(*expected))
    assert as_bytes(given) == as_bytes(expected)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_to_one_graph(device, name):
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    assert_compiled_is_eager(compiled, FUNCTIONS[name], device, (8, 16))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_with_dynamic_shapes(device, name):
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(8, 16), (12, 32)]:
        assert_compiled_is_eager(compiled, FUNCTIONS[name], device, shape)


def prune_step(score, weight, grad):
    ops.update_scores_(score, weight, grad, metric="snip", alpha=0.9)
    mask = ops.topk_mask(score * 2, sparsity=0.5)
    return ops.apply_masks_(weight + 1, mask)


def test_inductor_runs_ops_between_its_own_kernels(device):
    compiled = torch.compile(prune_step, fullgraph=True)
    assert_compiled_is_eager(compiled, prune_step, device, (8, 16))


def test_errors_are_raised_while_compiling(device):
    def wrong(score, weight, grad):
        return ops.update_scores_(score, weight[:4], grad, metric="snip")

    with pytest.raises(Exception, match="weights\\[0\\] has shape"):
        torch.compile(wrong, fullgraph=True, backend="aot_eager")(*inputs(device))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_result_carries_a_graph(device, name):
    """Scores and masks are not differentiable: a graph of them would grow with every training step."""
    score, weight, grad = inputs(device)
    weight.requires_grad_()
    with torch.no_grad() if name.startswith("apply") else torch.enable_grad():
        result = FUNCTIONS[name](score, weight, grad if name.startswith("update") else grad.clone())
    results = result if isinstance(result, list) else [result]
    assert not any(x.requires_grad for x in (*results, score, grad) if x is not weight)


@pytest.mark.parametrize("name", ["update_scores_", "apply_masks_ block", "topk_mask out", "block_reduce out"])
def test_a_write_is_seen_by_autograd(device, name):
    x = torch.ones(8, 16, device=device, requires_grad=True)
    written = torch.ones(8, 16, dtype=torch.bool if name == "topk_mask out" else torch.float32, device=device)
    loss = (x * written).sum()
    weight = torch.zeros(8, 16, device=device)
    if name == "update_scores_":
        ops.update_scores_(written, weight, None, metric="magnitude")
    elif name == "topk_mask out":
        ops.topk_mask(weight, keep=0, out=written)
    elif name == "block_reduce out":
        ops.block_reduce(weight, (1, 1), out=written)
    else:
        ops.apply_masks_(written, torch.zeros(4, 4, dtype=torch.bool, device=device), block=(2, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors(device):
    with torch.inference_mode():
        score, weight, grad = inputs(device)
        expected = ops.update_scores_(score.clone(), weight, grad, metric="snip")
        assert bits(ops.update_scores_(score, weight, grad, metric="snip")) == bits(expected)
        mask = ops.topk_mask(score, keep=10)
        assert int(ops.apply_masks_(score, mask).count_nonzero()) <= 10


@pytest.mark.parametrize("name", direct_calls("cpu"))
def test_meta_tensors_give_the_shapes(name):
    def to_meta(value):
        if isinstance(value, list):
            return [to_meta(x) for x in value]
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    arguments = direct_calls("cpu")[name]
    real, meta = overload(name)(*arguments), overload(name)(*map(to_meta, arguments))
    real, meta = ([] if x is None else x if isinstance(x, list) else [x] for x in (real, meta))
    assert [(x.shape, x.dtype, x.stride()) for x in meta] == [(x.shape, x.dtype, x.stride()) for x in real]


def test_a_refused_call_lets_go_of_its_tensors():
    score = torch.ones(4)
    seen = weakref.ref(score)
    gc.disable()  # at once, and not when cycles are looked for
    try:
        with pytest.raises(ValueError, match="weights"):
            ops.update_scores_(score, torch.ones(5), None, metric="magnitude")
        del score
        assert seen() is None
    finally:
        gc.enable()


def test_what_finds_no_memory_says_so():
    with pytest.raises(RuntimeError, match=r"no memory: .*alloc"):
        ops.empty_masks(torch.ones(1).expand(2**50))
    with pytest.raises(ValueError, match=r"packed has shape \[0\]"):
        ops.unpack_mask(torch.empty(0, dtype=torch.uint8), (2**32, 2**32))
    with pytest.raises(RuntimeError, match="too many entries"):
        OPS.unpack_mask(torch.empty(0, dtype=torch.uint8), (2**32, 2**32))
