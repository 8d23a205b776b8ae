"""Errors: a bad argument is named with what came and what was expected, before anything is written."""

import numpy as np
import oracle
import pytest
import torch
from refusals import FLOATS, MAGNITUDE, SNIP, b, f, on_meta, refuse_on, sparse

from pruneops import ops

pytestmark = pytest.mark.usefixtures("backend")

TWO = (f(2), f(3, 4))
METRICS = ", ".join(oracle.METRICS)

UPDATE = [
    ((TWO, TWO, [f(2), f(4, 3)]), SNIP, ValueError, "grads[1] has shape [4, 3], scores[1] has shape [3, 4]"),
    ((TWO, [f(2), f(12)], TWO), SNIP, ValueError, "weights[1] has shape [12], scores[1] has shape [3, 4]"),
    ((f(), f(1), f()), SNIP, ValueError, "weights[0] has shape [1], scores[0] has shape []"),
    ((TWO, [f(2)], TWO), SNIP, ValueError, "weights has 1 tensors, scores has 2"),
    ((TWO, TWO, [*TWO, f(1)]), SNIP, ValueError, "grads has 3 tensors, scores has 2"),
    ((TWO, TWO, []), {"metric": "fisher"}, ValueError, "grads has 0 tensors, scores has 2"),
    ((f(2), f(2), f(2)), {"metric": "l1"}, ValueError, f"metric must be one of {METRICS}, got 'l1'"),
    ((f(2), f(2), f(2)), {"metric": "wanda"}, ValueError, f"metric must be one of {METRICS}, got 'wanda'"),
    ((f(2), f(2), f(2)), {"metric": None}, TypeError, f"metric must be one of {METRICS}, got NoneType"),
    ((f(2), f(2), f(2)), {"metric": np.array(["snip"])}, TypeError, f"metric must be one of {METRICS}, got ndarray"),
    ((f(2), f(2), None), SNIP, ValueError, "metric 'snip' needs grads, got None"),
    ((f(2), None, f(2)), {"metric": "taylor"}, ValueError, "metric 'taylor' needs weights, got None"),
    ((f(2), None, None), {"metric": "magnitude"}, ValueError, "metric 'magnitude' needs weights, got None"),
    ((f(2), 3, f(2)), SNIP, TypeError, "weights must be a tensor or a sequence of tensors, got int"),
    (({f(2)}, f(2), f(2)), SNIP, TypeError, "scores must be a tensor or a sequence of tensors, got set"),
    ((TWO, [f(2), None], TWO), SNIP, TypeError, "weights[1] must be a tensor, got NoneType"),
    ((TWO, TWO, [f(2), [1.0]]), SNIP, TypeError, "grads[1] must be a tensor, got list"),
    ((f(2, 2), sparse(2, 2), f(2, 2)), SNIP, TypeError, "weights must be a dense tensor, got layout torch.sparse_coo"),
    ((f(2), f(2), f(2).int()), SNIP, TypeError, f"grads[0] {FLOATS} torch.int32"),
    (([f(2), b(2)], [f(2), f(2)], [f(2), f(2)]), SNIP, TypeError, f"scores[1] {FLOATS} torch.bool"),
    ((f(2), f(2).to(torch.complex64), f(2)), SNIP, TypeError, f"weights[0] {FLOATS} torch.complex64"),
    ((f(2), f(2), f(2)), {**SNIP, "alpha": "0.9"}, TypeError, "alpha must be a number, got str"),
    ((f(2), f(2), f(2)), {**SNIP, "beta": None}, TypeError, "beta must be a number, got NoneType"),
    ((f(2), f(2), f(2)), {**SNIP, "alpha": f(1)}, TypeError, "alpha must be a number, got Tensor"),
    ((f(2), f(2), f(2)), {**SNIP, "alpha": 10**400}, ValueError, "alpha is too large for a float"),
    ((f(2), f(2), f(2)), {**SNIP, "beta": -(10**400)}, ValueError, "beta is too large for a float"),
    ((f(2), f(2), f(2)), {**SNIP, "grad_scale": 2.0}, TypeError, "grad_scale must be a tensor, got float"),
    ((f(2), f(2), f(2)), {**SNIP, "grad_scale": f(2)}, ValueError, "grad_scale must have one element, got shape [2]"),
    ((f(2), f(2), f(2)), {**SNIP, "found_inf": f(0)}, ValueError, "found_inf must have one element, got shape [0]"),
    ((f(2), f(2), f(2)), {**SNIP, "found_inf": b()}, TypeError, "found_inf must be torch.float32, got torch.bool"),
    ((f(2), f(2), f(2)), {**SNIP, "grad_scale": f(dtype=torch.float64)}, TypeError,
     "grad_scale must be torch.float32, got torch.float64"),
    ((f(2), f(2), on_meta(2)), SNIP, ValueError, "grads[0] is on meta, scores[0] is on cpu"),
    ((f(2), f(2), f(2)), {**SNIP, "found_inf": on_meta(1)}, ValueError, "found_inf is on meta, scores[0] is on cpu"),
    ((TWO, [on_meta(2), f(3, 4)], TWO), SNIP, ValueError, "weights[0] is on meta, scores[0] is on cpu"),
]  # fmt: skip

BLOCK = {"metric": "snip", "block": (2, 2)}
BLOCK_UPDATE = [
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (3, 2)}, ValueError,
     "weights[0] has shape [4, 4], which the block (3, 2) does not divide"),
    ((f(2, 2), None, f(4, 4)), {"metric": "fisher", "block": (2, 3)}, ValueError,
     "grads[0] has shape [4, 4], which the block (2, 3) does not divide"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (8, 2)}, ValueError,
     "weights[0] has shape [4, 4], which the block (8, 2) does not divide"),
    ((f(4, 2), f(4, 4), f(4, 4)), BLOCK, ValueError, "scores[0] has shape [4, 2], expected [2, 2]"),
    ((f(4), f(4, 4), f(4, 4)), BLOCK, ValueError, "scores[0] has shape [4], expected [2, 2]"),
    ((f(2), f(4), f(4)), BLOCK, ValueError, "weights[0] has shape [4]; blocks need at least 2 dimensions"),
    ((f(2, 2), f(4, 4), f(2, 8)), BLOCK, ValueError, "grads[0] has shape [2, 8], weights[0] has shape [4, 4]"),
    (([f(2, 2)] * 2, [f(4, 4)], [f(4, 4)]), BLOCK, ValueError, "weights has 1 tensors, scores has 2"),
    ((f(2, 2), f(4, 4), []), BLOCK, ValueError, "grads has 0 tensors, weights has 1"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "reduce": "min"}, ValueError,
     "reduce must be one of mean, sum, max, got 'min'"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "metric": "wanda"}, ValueError,
     f"metric must be one of {METRICS}, {', '.join(oracle.MASK_METRICS)}, got 'wanda'"),
    ((f(2, 2), f(4, 4), None), {**BLOCK, "metric": "mask_fisher"}, ValueError,
     "metric 'mask_fisher' needs grads, got None"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": 2}, TypeError, "block must be two integers (N, M), got 2"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (2, 2, 1)}, TypeError,
     "block must be two integers (N, M), got (2, 2, 1)"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (2, 2.0)}, TypeError, "block[1] must be an integer, got float"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (True, 2)}, TypeError, "block[0] must be an integer, got bool"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (0, 2)}, ValueError,
     "block[0] must be positive, or -1 for the whole extent, got 0"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "block": (2, -2)}, ValueError, "block[1] must be at least -1, got -2"),
    ((f(2, 2).int(), f(4, 4), f(4, 4)), BLOCK, TypeError, f"scores[0] {FLOATS} torch.int32"),
    ((f(2, 2), f(4, 4).int(), f(4, 4)), BLOCK, TypeError, f"weights[0] {FLOATS} torch.int32"),
    ((f(2, 2), f(4, 4), f(4, 4).int()), BLOCK, TypeError, f"grads[0] {FLOATS} torch.int32"),
    ((f(2, 2), on_meta(4, 4), f(4, 4)), BLOCK, ValueError, "weights[0] is on meta, scores[0] is on cpu"),
    ((f(2, 2), f(4, 4), f(4, 4)), {**BLOCK, "alpha": 1j}, TypeError, "alpha must be a number, got complex"),
]  # fmt: skip

REDUCE = [
    ((f(4, 4), (3, 1)), {}, ValueError, "score has shape [4, 4], which the block (3, 1) does not divide"),
    ((f(4), (2, 1)), {}, ValueError, "score has shape [4]; blocks need at least 2 dimensions"),
    ((f(4, 4), (2, 2), "l2"), {}, ValueError, "reduce must be one of mean, sum, max, got 'l2'"),
    ((f(4, 4), "22"), {}, TypeError, "block[0] must be an integer, got str"),
    ((b(4, 4), (2, 2)), {}, TypeError, f"score {FLOATS} torch.bool"),
    (([f(4, 4)], (2, 2)), {}, TypeError, "score must be a tensor, got list"),
    ((f(4, 4), (2, 2)), {"out": f(2, 4)}, ValueError, "out has shape [2, 4], expected [2, 2]"),
    ((f(4, 4), (2, 2)), {"out": b(2, 2)}, TypeError, f"out {FLOATS} torch.bool"),
    ((f(4, 4), (2, 2)), {"out": [f(2, 2)]}, TypeError, "out must be a tensor, got list"),
    ((f(4, 4), (2, 2)), {"out": on_meta(2, 2)}, ValueError, "out is on meta, score is on cpu"),
    ((f(4, 4), (2, 2)), {"out": f(1, 2).expand(2, 2)}, ValueError,
     "out is an expanded view; entries that share memory cannot be written"),
]  # fmt: skip

#: Of all selections but that of an update, given what a call needs otherwise.
SELECT = [
    (lambda s: (s,), {"metric": "l1"}, ValueError, f"metric must be one of {METRICS}, wanda, got 'l1'"),
    (lambda s: (s,), {"metric": "snip"}, ValueError, "metric 'snip' needs grads, got None"),
    (lambda s: (s,), {"grads": f(2, 4)}, ValueError, "grads are read only with a metric"),
    (lambda s: (s,), {"input_norm": f(4)}, ValueError, "input_norm is read only with metric 'wanda'"),
    (lambda s: (s,), {"metric": "wanda"}, ValueError, "metric 'wanda' needs input_norm, got None"),
    (lambda s: (s,), {"metric": "wanda", "input_norm": f(2)}, ValueError, "input_norm[0] has shape [2], expected [4]"),
    (lambda s: (s,), {"metric": "wanda", "input_norm": f(4).double()}, TypeError,
     "input_norm[0] must be torch.float32, got torch.float64"),
    (lambda s: (s,), {"metric": "snip", "grads": f(4, 2)}, ValueError,
     "grads[0] has shape [4, 2], scores[0] has shape [2, 4]"),
    (lambda s: (s,), {"metric": "snip", "grads": on_meta(2, 4)}, ValueError,
     "grads[0] is on meta, scores[0] is on cpu"),
    (lambda s: (s,), {"metric": "snip", "grads": b(2, 4)}, TypeError, f"grads[0] {FLOATS} torch.bool"),
    (lambda s: (s.int(),), {}, TypeError, f"scores[0] {FLOATS} torch.int32"),
]  # fmt: skip
SELECTIONS = {
    "topk_mask": ((), {"keep": 1}),
    "row_topk_mask": ((), {"keep": 1}),
    "nm_mask": ((2, 4), {}),
    "kth_value": ((1,), {}),
    "count_digits": ((torch.tensor(0), 0), {}),
}

#: Of the four that make masks of one bit per entry.
PACKED = [
    ({"packed": "yes"}, TypeError, "packed must be True or False, got str"),
    ({"packed": None}, TypeError, "packed must be True or False, got NoneType"),
    ({"packed": 2}, TypeError, "packed must be True or False, got int"),
]

#: Of the three that write masks.
OUT = [
    (f(2, 4), TypeError, "out[0] must be torch.bool, got torch.float32"),
    (b(4, 2), ValueError, "out[0] has shape [4, 2], scores[0] has shape [2, 4]"),
    (b(2, 4).to("meta"), ValueError, "out[0] is on meta, scores[0] is on cpu"),
]

KEEP = [
    ({}, ValueError, "give exactly one of keep and sparsity"),
    ({"keep": 1, "sparsity": 0.5}, ValueError, "give exactly one of keep and sparsity"),
    ({"keep": -1}, ValueError, "keep must be between 0 and {n}, got -1"),
    ({"keep": 100}, ValueError, "keep must be between 0 and {n}, got 100"),
    ({"keep": 1.0}, TypeError, "keep must be an integer, got float"),
    ({"keep": True}, TypeError, "keep must be an integer, got bool"),
    ({"sparsity": -0.1}, ValueError, "sparsity must be between 0 and 1, got -0.1"),
    ({"sparsity": 1.01}, ValueError, "sparsity must be between 0 and 1, got 1.01"),
    ({"sparsity": float("nan")}, ValueError, "sparsity must be between 0 and 1, got nan"),
    ({"sparsity": "half"}, TypeError, "sparsity must be a number, got str"),
    ({"sparsity": 10**400}, ValueError, "sparsity is too large for a float"),
]

TIES = ({"keep": 1, "ties": "all"}, ValueError, "ties must be one of exact, threshold, got 'all'")

TOPK = [
    ((TWO,), {"keep": 1, "metric": "snip", "grads": []}, ValueError, "grads has 0 tensors, scores has 2"),
    ((f(2, 4),), *TIES),
    ((f(2, 4),), {"keep": 1, "strict": "yes"}, TypeError, "strict must be True or False, got str"),
    ((f(2, 4),), {"keep": 1, "strict": 2}, TypeError, "strict must be True or False, got int"),
    ((TWO,), {"keep": 1, "out": [b(2)]}, ValueError, "out has 1 tensors, scores has 2"),
    ((TWO,), {"keep": 15}, ValueError, "keep must be between 0 and 14, got 15"),
    ((TWO,), {"keep": 1, "metric": "snip", "grads": [f(2)]}, ValueError, "grads has 1 tensors, scores has 2"),
    (
        (TWO,),
        {"keep": 1, "metric": "wanda", "input_norm": [f(2)]},
        ValueError,
        "input_norm has 1 tensors, scores has 2",
    ),
    (([f(2), on_meta(3)],), {"keep": 1}, ValueError, "scores[1] is on meta, scores[0] is on cpu"),
    ((None,), {"keep": 1}, TypeError, "scores must be a tensor or a sequence of tensors, got NoneType"),
]
ROW = [(([f(2, 4)],), {"keep": 1}, TypeError, "score must be a tensor, got list"),
       ((f(2, 4),), {"keep": 1, "out": [b(2, 4)]}, TypeError, "out must be a tensor, got list")]  # fmt: skip
NM = [
    ((f(2, 6), 2, 4), {}, ValueError, "the last dimension of score is 6, which m=4 does not divide"),
    ((f(), 1, 2), {}, ValueError, "the last dimension of score is 1, which m=2 does not divide"),
    ((f(2, 4), 5, 4), {}, ValueError, "n must be between 0 and 4, got 5"),
    ((f(2, 4), -1, 4), {}, ValueError, "n must be between 0 and 4, got -1"),
    ((f(2, 4), 0, 0), {}, ValueError, "m must be at least 1, got 0"),
    ((f(3, 0), 2, 2**63), {}, ValueError, f"m must be at most {2**63 - 1}, got {2**63}"),
    ((f(2, 4), 2.0, 4), {}, TypeError, "n must be an integer, got float"),
    (([f(2, 4)], 2, 4), {}, TypeError, "score must be a tensor, got list"),
    ((f(2, 4), 2, 4), {"metric": "snip", "grads": [f(2, 4)]}, TypeError, "grads must be a tensor, got list"),
]
KTH = [
    ((f(2, 4), 0), {}, ValueError, "k must be between 1 and 8, got 0"),
    ((f(2, 4), 9), {}, ValueError, "k must be between 1 and 8, got 9"),
    (([], 1), {}, ValueError, "k must be between 1 and 0, got 1"),
    ((f(2, 4), 1.0), {}, TypeError, "k must be an integer, got float"),
    (([f(2), on_meta(3)], 1), {}, ValueError, "scores[1] is on meta, scores[0] is on cpu"),
]

DIGITS = [
    ((f(2), torch.tensor([0, 0]), 0), {}, ValueError, "prefix must have one element, got shape [2]"),
    ((f(2), torch.tensor(0.0), 0), {}, TypeError, "prefix must be torch.int64, got torch.float32"),
    ((f(2), 0, 0), {}, TypeError, "prefix must be a tensor, got int"),
    ((f(2), torch.tensor(0), 3), {}, ValueError, "round must be between 0 and 2, got 3"),
    ((f(2).double(), torch.tensor(0), 6), {}, ValueError, "round must be between 0 and 5, got 6"),
    ((f(2), on_meta(1).long(), 0), {}, ValueError, "prefix is on meta, scores[0] is on cpu"),
]
EMPTY = [((3,), {}, TypeError, "scores must be a tensor or a sequence of tensors, got int"),
         (([f(2), None],), {}, TypeError, "scores[1] must be a tensor, got NoneType")]  # fmt: skip
EXPAND = [
    ((b(2, 2), (2, 2), (4, 6)), {}, ValueError, "mask has shape [2, 2], expected [2, 3]"),
    ((b(2, 2), (3, 2), (4, 4)), {}, ValueError, "shape is [4, 4], which the block (3, 2) does not divide"),
    ((b(2), (2, 2), (4,)), {}, ValueError, "shape is [4]; blocks need at least 2 dimensions"),
    ((b(1, 1), (-1, -1), (-4, -4)), {}, ValueError, "shape[0] must be at least 0, got -4"),
    ((b(2, 2), (-2, 2), (4, 4)), {}, ValueError, "block[0] must be at least -1, got -2"),
    ((f(2, 2), (2, 2), (4, 4)), {}, TypeError, "mask must be torch.bool, got torch.float32"),
    ((None, (2, 2), (4, 4)), {}, TypeError, "mask must be a tensor, got NoneType"),
]
APPLY = [
    ((TWO, [b(2)]), {}, ValueError, "masks has 1 tensors, tensors has 2"),
    ((TWO, [b(2), b(4, 3)]), {}, ValueError, "masks[1] has shape [4, 3], tensors[1] has shape [3, 4]"),
    ((f(3, 4), b(12)), {}, ValueError, "masks[0] has shape [12], tensors[0] has shape [3, 4]"),
    ((f(3, 4), f(3, 4)), {}, TypeError, "masks[0] must be torch.bool, got torch.float32"),
    ((f(3, 3), torch.ones(3, dtype=torch.uint8)), {}, ValueError, "masks[0] has shape [3], expected [2]"),
    ((f(3, 3), torch.ones(3, 3, dtype=torch.uint8)), {}, ValueError, "masks[0] has shape [3, 3], expected [2]"),
    ((f(4, 4), b(2, 2)), {"block": (2, 1)}, ValueError, "masks[0] has shape [2, 2], expected [2, 4]"),
    ((f(4, 4), b(2, 2)), {"block": (3, 2)}, ValueError,
     "tensors[0] has shape [4, 4], which the block (3, 2) does not divide"),
    ((f(4, 4), torch.ones(2, 2, dtype=torch.uint8)), {"block": (2, 2)}, TypeError,
     "masks[0] must be torch.bool, got torch.uint8"),
    ((f(2), on_meta(2).bool()), {}, ValueError, "masks[0] is on meta, tensors[0] is on cpu"),
    ((f(2), None), {}, TypeError, "masks must be a tensor or a sequence of tensors, got NoneType"),
]  # fmt: skip
PACK = [((f(2),), {}, TypeError, "mask must be torch.bool, got torch.float32"),
        (([True],), {}, TypeError, "mask must be a tensor, got list")]  # fmt: skip
UNPACK = [
    ((torch.ones(2, dtype=torch.uint8), (8,)), {}, ValueError, "packed has shape [2], expected [1]"),
    ((torch.ones(1, 1, dtype=torch.uint8), (8,)), {}, ValueError, "packed has shape [1, 1], expected [1]"),
    ((b(1), (8,)), {}, TypeError, "packed must be torch.uint8, got torch.bool"),
]
#: Of the two that make a mask of a given shape.
SHAPES = [
    ((4.0, 6.0), TypeError, "shape[0] must be an integer, got float"),
    ((4, True), TypeError, "shape[1] must be an integer, got bool"),
    (24, TypeError, "shape must be a sequence of integers, got int"),
    (None, TypeError, "shape must be a sequence of integers, got NoneType"),
    ((4, -6), ValueError, "shape[1] must be at least 0, got -6"),
    ((4, 2**63), ValueError, f"shape[1] must be at most {2**63 - 1}, got {2**63}"),
]
SLABS = [
    ((f(8), f(3), 1, 2), {}, ValueError, "tensor has 8 entries along dim 0, expected 3 instances * stride 2 = 6"),
    ((f(8, 6), f(4), 1, 2), {"dim": -1}, ValueError,
     "tensor has 6 entries along dim -1, expected 4 instances * stride 2 = 8"),
    ((f(8), f(4), 5, 2), {}, ValueError, "num_instances must be between 0 and 4, got 5"),
    ((f(8), f(4), -1, 2), {}, ValueError, "num_instances must be between 0 and 4, got -1"),
    ((f(8), f(4), 1, 0), {}, ValueError, "stride must be at least 1, got 0"),
    ((f(0), f(0), 0, 2**63), {}, ValueError, f"stride must be at most {2**63 - 1}, got {2**63}"),
    ((f(8), f(4), 1.5, 2), {}, TypeError, "num_instances must be an integer, got float"),
    ((f(8), f(4), 1, 2), {"dim": 1}, ValueError, "dim must be between -1 and 0, got 1"),
    ((f(8), f(4), 1, 2), {"order": "random"}, ValueError, "order must be one of importance, original, got 'random'"),
    ((f(8), f(2, 2), 1, 2), {}, ValueError, "importance must have 1 dimension, got shape [2, 2]"),
    ((f(), f(1), 1, 1), {}, ValueError, "tensor must have at least 1 dimension, got a 0-d tensor"),
    ((f(8), torch.ones(4, dtype=torch.int64), 1, 2), {}, TypeError, f"importance {FLOATS} torch.int64"),
    ((f(8), [1.0] * 4, 1, 2), {}, TypeError, "importance must be a tensor, got list"),
    ((f(8), on_meta(4), 1, 2), {}, ValueError, "importance is on meta, tensor is on cpu"),
]  # fmt: skip

MAGNITUDES = (f(2, 4), f(2, 4), None)

CASES = [
    *(("update_scores_", *case) for case in UPDATE),
    *(("update_topk_mask_", args, {"keep": 1, **how}, *told) for args, how, *told in UPDATE),
    *(
        ("update_topk_mask_", MAGNITUDES, {**how, **MAGNITUDE}, error, message.format(n=8))
        for how, error, message in (*KEEP, TIES)
    ),
    *(("update_topk_mask_", MAGNITUDES, {"keep": 1, "out": out, **MAGNITUDE}, *told) for out, *told in OUT),
    *(("update_block_scores_", *case) for case in BLOCK_UPDATE),
    *(("block_reduce", *case) for case in REDUCE),
    *(
        (op, make(f(2, 4)) + args, {**more, **how}, error, message)
        for op, (args, more) in SELECTIONS.items()
        for make, how, error, message in SELECT
    ),
    *(
        (op, (f(2, 4), *SELECTIONS[op][0]), {**SELECTIONS[op][1], "out": out}, error, message)
        for op in ("topk_mask", "row_topk_mask", "nm_mask")
        for out, error, message in OUT
    ),
    *(
        (op, (f(2, 4),), how, error, message.format(n=n))
        for op, n in (("topk_mask", 8), ("row_topk_mask", 4))
        for how, error, message in KEEP
    ),
    *(
        (op, args, {**more, **how}, *told)
        for op, args, more in (
            ("update_topk_mask_", MAGNITUDES, {"keep": 1, **MAGNITUDE}),
            ("topk_mask", (f(2, 4),), {"keep": 1}),
            ("row_topk_mask", (f(2, 4),), {"keep": 1}),
            ("nm_mask", (f(2, 4), 2, 4), {}),
            ("empty_masks", (f(2, 4),), {}),
        )
        for how, *told in PACKED
    ),
    *(("topk_mask", *case) for case in TOPK),
    *(("row_topk_mask", *case) for case in ROW),
    *(("nm_mask", *case) for case in NM),
    *(("kth_value", *case) for case in KTH),
    *(("count_digits", *case) for case in DIGITS),
    *(("empty_masks", *case) for case in EMPTY),
    *(("expand_block_mask", *case) for case in EXPAND),
    *(("apply_masks_", *case) for case in APPLY),
    *(("pack_mask", *case) for case in PACK),
    *(("unpack_mask", *case) for case in UNPACK),
    *(("expand_block_mask", (b(2, 2), (2, 2), shape), {}, *told) for shape, *told in SHAPES),
    *(("unpack_mask", (torch.ones(3, dtype=torch.uint8), shape), {}, *told) for shape, *told in SHAPES),
    *(("prune_by_importance", *case) for case in SLABS),
]


@pytest.mark.parametrize(
    ("op", "args", "how", "error", "message"), CASES, ids=lambda x: x if isinstance(x, str) else ""
)
def test_refused(device, op, args, how, error, message):
    refuse_on(device, op, args, how, error, message)


def test_every_operator_refuses_something():
    assert {op for op, *_ in CASES} == set(ops.__all__)


def test_an_error_after_the_write_is_passed_on(device, monkeypatch):
    """It is not taken for a refusal, after which the call would be made once more."""

    def fail_once(tensors):
        monkeypatch.undo()
        raise RuntimeError("after the write")

    monkeypatch.setattr(ops.update, "mark_written", fail_once)
    score = f(3, device=device)
    with pytest.raises(RuntimeError, match=r"^after the write$"):
        ops.update_scores_(score, f(3, device=device), None, metric="magnitude", alpha=1.0)
    assert score.tolist() == [1.0] * 3
