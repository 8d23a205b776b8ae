"""Tensors that are refused wherever they stand: the last of many, those on another device, those that are not dense."""

import re

import pytest
import torch
from refusals import FLOATS, MAGNITUDE, SNIP, b, f, on_meta, refuse, refuse_on, sparse

from pruneops import ops

pytestmark = pytest.mark.usefixtures("backend")

SHARED = "is an expanded view; entries that share memory cannot be written"


class Marked(torch.Tensor):
    """A tensor of a class of its own, which torch hands to Python and not to compiled operators."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def marked(*shape):
    return f(*shape).as_subclass(Marked)


BYTES = torch.ones(1, dtype=torch.uint8)
TWO_BLOCKS = [f(2, 2), f(2, 2)]


@pytest.mark.parametrize(("op", "args", "how", "error", "message"), [
    # Of hundreds of tensors any may be wrong: the last one here, where the compiled operators look by themselves.
    ("update_scores_", ([f(2, 2)] * 2, [f(2, 2), sparse(2, 2)], None), {"metric": "magnitude"}, TypeError,
     "weights[1] must be a dense tensor, got layout torch.sparse_coo"),
    ("update_scores_", ([f(2), f(2)], [f(2), on_meta(2)], None), {"metric": "magnitude"}, ValueError,
     "weights[1] is on meta, scores[0] is on cpu"),
    ("update_scores_", ([f(2), f(2)], [f(2), marked(3)], None), {"metric": "magnitude"}, ValueError,
     "weights[1] has shape [3], scores[1] has shape [2]"),
    ("topk_mask", ([f(2), sparse(2, 2)],), {"keep": 1}, TypeError,
     "scores[1] must be a dense tensor, got layout torch.sparse_coo"),
    ("topk_mask", ([f(2), marked(2).int()],), {"keep": 1}, TypeError, f"scores[1] {FLOATS} torch.int32"),
    ("topk_mask", ([f(2), f(2)],), {"keep": 1, "out": [b(2), BYTES.clone()]}, TypeError,
     "out[1] must be torch.bool, got torch.uint8"),
    ("topk_mask", ([f(2), f(2)],), {"keep": 1, "packed": True, "out": [BYTES.clone(), b(2)]}, TypeError,
     "out[1] must be torch.uint8, got torch.bool"),
    ("topk_mask", ([f(2), f(2)],), {"keep": 1, "packed": True, "out": [BYTES.clone(), BYTES.reshape(1, 1)]}, ValueError,
     "out[1] has shape [1, 1], expected [1]"),
    ("topk_mask", ([f(2, 3)] * 2,), {"keep": 1, "metric": "wanda", "input_norm": [f(3), f(1, 3)]}, ValueError,
     "input_norm[1] has shape [1, 3], expected [3]"),
    ("topk_mask", ([f(2)] * 2,), {"keep": 1, "metric": "fisher", "grads": [f(2)] * 3}, ValueError,
     "grads has 3 tensors, scores has 2"),
    ("kth_value", ([f(2), on_meta(2)], 1), {}, ValueError, "scores[1] is on meta, scores[0] is on cpu"),
    ("count_digits", ([f(2)], torch.tensor(0), True), {}, TypeError, "round must be an integer, got bool"),
    ("count_digits", ([f(2)], torch.tensor(0), -1), {}, ValueError, "round must be between 0 and 2, got -1"),
    ("update_topk_mask_", ([f(2)] * 2, [f(2)] * 2, None),
     {"metric": "magnitude", "keep": 1, "out": [b(2), BYTES.clone()]}, TypeError,
     "out[1] must be torch.bool, got torch.uint8"),
    ("apply_masks_", ([f(2), f(8)], [b(2), BYTES.reshape(1, 1)]), {}, ValueError,
     "masks[1] has shape [1, 1], expected [1]"),
    ("apply_masks_", ([f(4, 4), f(4, 4)], [b(2, 2), b(1, 4)]), {"block": (2, 2)}, ValueError,
     "masks[1] has shape [1, 4], expected [2, 2]"),
    ("apply_masks_", ([f(4, 4), f(0, 4)], [b(2, 2), b(0, 3)]), {"block": (2, 2)}, ValueError,
     "masks[1] has shape [0, 3], expected [0, 2]"),
    ("update_block_scores_", (TWO_BLOCKS, [f(4, 4), f(2, 8)], None), {"metric": "magnitude", "block": (2, 2)},
     ValueError, "scores[1] has shape [2, 2], expected [1, 4]"),
    ("update_block_scores_", ([f(2, 2), f(1, 0)], [f(4, 4), f(3, 0)], None), {"metric": "magnitude", "block": (2, 2)},
     ValueError, "weights[1] has shape [3, 0], which the block (2, 2) does not divide"),
])  # fmt: skip
def test_the_last_of_several_is_refused(device, op, args, how, error, message):
    refuse_on(device, op, args, how, error, message)


def quantized():
    return torch.quantize_per_tensor(f(2), 0.1, 10, torch.quint8)


def nested():
    return torch.nested.nested_tensor([f(2), f(3)])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("make", "got"), [(quantized, "a quantized one"), (nested, "a nested one")])
@pytest.mark.parametrize(("op", "name", "call"), [
    ("update_scores_", "scores", lambda x: ops.update_scores_(x, f(2), None, **MAGNITUDE)),
    ("update_scores_", "weights[1]", lambda x: ops.update_scores_([f(2)] * 2, [f(2), x], None, **MAGNITUDE)),
    ("update_scores_", "found_inf", lambda x: ops.update_scores_(f(2), f(2), None, found_inf=x, **MAGNITUDE)),
    ("update_topk_mask_", "out", lambda x: ops.update_topk_mask_(f(2), f(2), None, keep=1, out=x, **MAGNITUDE)),
    ("update_block_scores_", "weights",
     lambda x: ops.update_block_scores_(f(1, 1), x, None, block=(-1, -1), **MAGNITUDE)),
    ("block_reduce", "score", lambda x: ops.block_reduce(x, (1, 1))),
    ("kth_value", "scores", lambda x: ops.kth_value(x, 1)),
    ("count_digits", "prefix", lambda x: ops.count_digits([], x, 0)),
    ("topk_mask", "scores[1]", lambda x: ops.topk_mask([f(2), x], keep=1)),
    ("row_topk_mask", "score", lambda x: ops.row_topk_mask(x, keep=1)),
    ("nm_mask", "out", lambda x: ops.nm_mask(f(2), 1, 2, out=x)),
    ("empty_masks", "scores", ops.empty_masks),
    ("expand_block_mask", "mask", lambda x: ops.expand_block_mask(x, (1, 1), (1, 2))),
    ("apply_masks_", "tensors", lambda x: ops.apply_masks_(x, b(2))),
    ("apply_masks_", "tensors[1]", lambda x: ops.apply_masks_([f(2), x], [b(2), b(2)])),
    ("apply_masks_", "masks", lambda x: ops.apply_masks_(f(2), x)),
    ("pack_mask", "mask", ops.pack_mask),
    ("unpack_mask", "packed", lambda x: ops.unpack_mask(x, (2,))),
    ("prune_by_importance", "tensor", lambda x: ops.prune_by_importance(x, f(2), 1, 1)),
])  # fmt: skip
def test_a_tensor_that_only_says_it_is_dense_is_refused(op, name, call, make, got):
    with pytest.raises(TypeError, match="^" + re.escape(f"{op}: {name} must be a dense tensor, got {got}") + "$"):
        call(make())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("op", "name", "arguments"), [
    ("update_scores_", "scores", lambda x: ((x, [f(1, 4)] * 2, None), MAGNITUDE)),
    ("update_topk_mask_", "scores", lambda x: ((x, [f(1, 4)] * 2, None), {"keep": 3, **MAGNITUDE})),
    ("update_topk_mask_", "out", lambda x: (([f(1, 4)] * 2, [f(1, 4)] * 2, None), {"keep": 3, "out": x, **MAGNITUDE})),
    ("update_block_scores_", "scores", lambda x: ((x, [f(2, 8)] * 2, None), {"block": (2, 2), **MAGNITUDE})),
    ("apply_masks_", "tensors", lambda x: ((x, [~b(1, 4)] * 2), {})),
    ("topk_mask", "out", lambda x: (([f(1, 4)] * 2,), {"keep": 3, "out": x})),
])  # fmt: skip
def test_an_output_that_shares_memory_with_itself_is_refused(device, op, name, arguments, last):
    make = b if name == "out" else f
    given = [make(1, 4), make(1, 1).expand(1, 4)][:: 1 if last else -1]
    refuse_on(device, op, *arguments(given), ValueError, f"{name}[{int(last)}] {SHARED}")


def two_devices(first, other):
    """Calls whose arguments are on both, and what is said of them."""
    x, y = f(2, 4, device=first), f(2, 4, device=other)
    one, norm, prefix = f(1, device=other), f(4, device=other), torch.tensor(0, device=other)
    mask, blocks = b(2, 4, device=other), [b(1, 2, device=first), b(1, 2, device=other)]
    return [
        ("update_scores_", (x, y, x), SNIP, "weights[0]", "scores[0]"),
        ("update_scores_", ([x, x], [x, x], [x, y]), SNIP, "grads[1]", "scores[0]"),
        ("update_scores_", (x, x, x), {**SNIP, "grad_scale": one}, "grad_scale", "scores[0]"),
        ("update_topk_mask_", (x, x, y), {**SNIP, "keep": 1}, "grads[0]", "scores[0]"),
        ("update_topk_mask_", (x, x, x), {**SNIP, "keep": 1, "out": mask}, "out[0]", "scores[0]"),
        ("update_block_scores_", (x, y, y), {**SNIP, "block": (1, 1)}, "weights[0]", "scores[0]"),
        ("block_reduce", (x, (1, 1)), {"out": y}, "out", "score"),
        ("kth_value", ([x, y], 1), {}, "scores[1]", "scores[0]"),
        ("count_digits", (x, prefix, 0), {}, "prefix", "scores[0]"),
        ("topk_mask", (x,), {"keep": 1, "out": mask}, "out[0]", "scores[0]"),
        ("row_topk_mask", (x,), {"keep": 1, "metric": "wanda", "input_norm": norm}, "input_norm[0]", "scores[0]"),
        ("nm_mask", (x, 2, 4), {**SNIP, "grads": y}, "grads[0]", "scores[0]"),
        ("apply_masks_", (x, mask), {}, "masks[0]", "tensors[0]"),
        ("apply_masks_", ([x, x], blocks), {"block": (2, 2)}, "masks[1]", "tensors[0]"),
        ("prune_by_importance", (x, one, 1, 2), {}, "importance", "tensor"),
    ]


@pytest.mark.cuda
@pytest.mark.parametrize(("first", "other"), [("cpu", "cuda:0"), ("cuda:0", "cpu")])
@pytest.mark.parametrize("case", range(len(two_devices("meta", "meta"))))
def test_two_devices(first, other, case):
    op, args, how, name, first_name = two_devices(first, other)[case]
    refuse(op, args, how, ValueError, f"{name} is on {other}, {first_name} is on {first}")
