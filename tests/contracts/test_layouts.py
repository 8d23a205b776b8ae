"""Layouts: every op gives for any memory layout what it gives for contiguous copies."""

import numpy as np
import pytest
import torch
from hostile import layouts, values
from tensors import bits, tensor

from pruneops import ops

SHAPES = [(48,), (12, 32), (8, 3, 16), (4, 6, 3, 8)]


def block_update(w, g, mask):
    scores = torch.zeros_like(ops.block_reduce(w, (2, 2)))
    return ops.update_block_scores_(scores, w, g, block=(2, 2), metric="snip", reduce="max")


def matrix(x):
    """A view of two dimensions."""
    return x[(slice(None), slice(None), *[0] * (x.dim() - 2))]


def row_norm(w):
    return w.detach()[(0,) * (w.dim() - 1)].float().abs().contiguous()


ON_ANY = {
    "update_scores_": lambda w, g, mask: ops.update_scores_(w, w.clone(), g, metric="snip", alpha=0.9),
    "kth_value": lambda w, g, mask: ops.kth_value(w, 20),
    "topk_mask": lambda w, g, mask: ops.topk_mask(w, keep=20),
    "topk_mask metric": lambda w, g, mask: ops.topk_mask(w, keep=20, metric="snip", grads=g),
    "topk_mask wanda": lambda w, g, mask: ops.topk_mask(w, keep=20, metric="wanda", input_norm=row_norm(w)),
    "topk_mask out": lambda w, g, mask: ops.topk_mask(w, keep=20, out=mask),
    "row_topk_mask": lambda w, g, mask: ops.row_topk_mask(w, keep=5),
    "row_topk_mask metric": lambda w, g, mask: ops.row_topk_mask(w, keep=5, metric="taylor", grads=g),
    "nm_mask": lambda w, g, mask: ops.nm_mask(w, 2, 4),
    "nm_mask metric": lambda w, g, mask: ops.nm_mask(w, 2, 4, metric="snip", grads=g),
    "apply_masks_": lambda w, g, mask: ops.apply_masks_(w, mask),
    "pack_mask": lambda w, g, mask: ops.pack_mask(mask),
    "prune_by_importance": lambda w, g, mask: ops.prune_by_importance(w, w.flatten()[:4].clone(), 3, w.shape[0] // 4),
}
ON_MATRICES = {
    "update_block_scores_": block_update,
    "block_reduce max": lambda w, g, mask: ops.block_reduce(w, (2, 2), "max"),
    "block_reduce out": lambda w, g, mask: ops.block_reduce(matrix(g), (1, 1), "max", out=matrix(w)),
    "apply_masks_ block": lambda w, g, mask: ops.apply_masks_(w, ops.block_reduce(g, (2, 2), "max") > 0, block=(2, 2)),
}
CASES = [(name, shape) for shape in SHAPES for name in (ON_ANY if len(shape) == 1 else {**ON_ANY, **ON_MATRICES})]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=lambda x: str(x).replace(" ", "-"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_layout_is_as_good_as_contiguous(device, name, shape, dtype):
    run = {**ON_ANY, **ON_MATRICES}[name]
    weight, grad = (values("few_distinct" if i else "normal", shape, dtype, i) for i in range(2))
    mask = np.random.default_rng(0).random(shape) < 0.5

    def call(*how):
        arrays, dtypes = (weight, grad, mask), (dtype, dtype, None)
        inputs = [tensor(a, d, device, layout) for a, d, layout in zip(arrays, dtypes, how, strict=True)]
        return bits(run(*inputs)), [bits(x) for x in inputs]

    expected = call("contiguous", "contiguous", "contiguous")
    for layout in layouts(len(shape)):
        assert call(layout, layout, layout) == expected
        assert call(layout, "contiguous", "misaligned") == expected


@pytest.mark.parametrize("kind", ["parameter", "inference"])
@pytest.mark.parametrize("name", {**ON_ANY, **ON_MATRICES})
def test_what_autograd_alone_would_not_write_to(device, name, kind):
    run, shape = {**ON_ANY, **ON_MATRICES}[name], (12, 32)
    arrays = [values("few_distinct" if i else "normal", shape, seed=i) for i in range(2)]
    arrays.append(np.random.default_rng(0).random(shape) < 0.5)

    def call(layout):
        with torch.inference_mode(kind == "inference"):
            inputs = [tensor(a, device=device, layout=layout) for a in arrays]
        if kind == "parameter":
            inputs[:2] = map(torch.nn.Parameter, inputs[:2])
        return bits(run(*inputs)), [bits(x) for x in inputs]

    expected = call("contiguous")
    for layout in ("transposed", "strided"):
        assert call(layout) == expected


@pytest.mark.parametrize("offset", range(1, 17))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_misalignment(device, offset, dtype):
    score, weight, grad = (tensor(values("normal", (300,), dtype, i), dtype, device) for i in range(3))
    views = [x.clone()[offset:] for x in (score, weight, grad)]
    copies = [x[offset:].clone() for x in (score, weight, grad)]
    for w in (views, copies):
        ops.update_scores_(*w, metric="snip", alpha=0.9)
    assert bits(views[0]) == bits(copies[0])
    assert bits(ops.topk_mask(views[1], keep=100)) == bits(ops.topk_mask(copies[1], keep=100))
    mask = ops.topk_mask(copies[1], keep=100)
    assert bits(ops.apply_masks_(views[2], mask)) == bits(ops.apply_masks_(copies[2], mask))
    before = views[2].untyped_storage()[: offset * views[2].element_size()].tolist()
    assert before == grad.untyped_storage()[: offset * grad.element_size()].tolist()
