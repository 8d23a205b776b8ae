"""Every operator on a device against the PyTorch reference on the CPU, bit for bit: ``python -m bench.check``.

Needs torch and NumPy alone, and launches few kernels of torch itself, so that it is what compute-sanitizer runs.
Values are multiples of 1/64, but where many are selected: block sums are exact in any order, and most scores tie.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from pruneops import _library, ops
from pruneops._checks import BLOCK_METRICS, SCORE_METRICS

To = Callable[[Tensor], Tensor]
Check = Callable[[To], list[Tensor]]
#: Around the widths of a vector, a warp and a tile; an empty tensor first, between and last.
SIZES = (0, 1, 3, 31, 33, 0, 255, 1023, 4099, 0)
MATRICES = ((4, 4), (64, 48), (16, 1024), (256, 336))
BLOCKS = ((4, 1), (1, 4), (2, 2), (16, 16), (-1, 1), (1, -1))
#: Entries from which CUDA selects in one pass (kShippedLimits in csrc/cuda/plan.cuh).
ONE_PASS = 2**22


@contextmanager
def reference() -> Iterator[None]:
    """Let the functional API call the reference, as where there is no compiled library."""
    with ExitStack() as stack:
        for module in (ops.common, ops.gather, ops.masks, ops.select, ops.update):
            stack.enter_context(patch.object(module, "OPS", _library))
        stack.enter_context(patch.object(ops.common, "is_served", lambda tensor: False))
        stack.enter_context(patch.object(_library.block_reduce, "out", _library.block_reduce_out, create=True))
        yield


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-128, 129, shape, generator=generator) / 64).to(dtype)


def hostile(n: int, seed: int = 0) -> Tensor:
    x = values(n, seed=seed)
    x[: n // 3] = 0
    for i, special in enumerate((float("nan"), float("inf"), -float("inf"), -0.0)):
        x[i::97] = special
    return x


def update(to: To, metric: str, dtype: torch.dtype) -> list[Tensor]:
    scores = [to(values(n + 1, seed=n))[1:] for n in SIZES]
    weights, grads = ([to(values(n, dtype=dtype, seed=n + k)) for n in SIZES] for k in (1, 2))
    return ops.update_scores_(scores, weights, grads, metric=metric, alpha=0.5, beta=2.0)


def transposed_update(to: To) -> list[Tensor]:
    scores, weights = to(values(48, 64)).t(), to(values(64, 48, seed=1))
    return [ops.update_scores_(scores, weights, None, metric="magnitude", alpha=0.5)]


def scaled_update(to: To, scale: float, found: float) -> list[Tensor]:
    scores = [to(hostile(4099)) for _ in range(2)]
    weights, grads = (to(hostile(4099, seed=k)) for k in (1, 2))
    scalars = {"grad_scale": to(torch.tensor(scale)), "found_inf": to(torch.tensor([found]))}
    for score, skip in zip(scores, (False, True), strict=True):
        ops.update_scores_(score, weights, grads, metric="snip", alpha=0.5, skip_nonfinite=skip, **scalars)
    return scores


def block_update(to: To, block: tuple[int, int], dtype: torch.dtype, metric: str = "snip") -> list[Tensor]:
    shapes = [s for s in MATRICES if all(b == -1 or extent % b == 0 for b, extent in zip(block, s, strict=True))]
    weights, grads = ([to(values(*s, dtype=dtype, seed=k)) for s in shapes] for k in (1, 2))
    scores = [to(values(*_library.block_grid(block, s))) for s in shapes]
    reduced = [ops.block_reduce(weight, block, "sum") for weight in weights]
    highest = [ops.block_reduce(x, block, "max", out=score.clone()) for x, score in zip(weights, scores, strict=True)]
    ops.update_block_scores_(scores, weights, grads, block=block, metric=metric, alpha=0.5)
    return [*scores, *reduced, *highest]


def selection(to: To, ties: str, sparsity: float, dtype: torch.dtype, n: int) -> list[Tensor]:
    scores = [to(hostile(size).to(dtype)) for size in (*SIZES, n)] + [to(values(n + 1, dtype=dtype))[1:]]
    total = sum(score.numel() for score in scores)
    masks = ops.topk_mask(scores, sparsity=sparsity, ties=ties)
    return [*masks, ops.kth_value(scores, max(1, int(sparsity * total)))]


def selection_of_many(to: To, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = [to(torch.randn(size, generator=generator)) for size in (n // 2, 77, n // 2)]
    masks = ops.topk_mask(scores, sparsity=0.5), ops.topk_mask(scores, sparsity=0.9, ties="threshold", strict=True)
    return [*masks[0], *masks[1], ops.kth_value(scores, n // 3)]


def other_masks(to: To, n: int) -> list[Tensor]:
    scores, matrix = [to(hostile(size)) for size in (*SIZES, n)], to(hostile(64 * 48).reshape(64, 48))
    return [
        *ops.topk_mask(scores, sparsity=0.5, packed=True, out=ops.empty_masks(scores, packed=True)),
        *ops.topk_mask(scores, sparsity=0.5, strict=True),
        ops.row_topk_mask(matrix, keep=20, packed=True),
        ops.nm_mask(matrix, 2, 4, packed=True),
    ]


def updated_selection(to: To, dtype: torch.dtype, n: int) -> list[Tensor]:
    result = []
    for how in ({"ties": "exact"}, {"ties": "threshold", "packed": True}):
        scores, weights, grads = ([to(values(s, dtype=dtype, seed=s + k)) for s in (*SIZES, n)] for k in range(3))
        result += ops.update_topk_mask_(scores, weights, grads, metric="snip", alpha=0.5, sparsity=0.5, **how)
        result += scores
    return result


def digits(to: To, n: int) -> list[Tensor]:
    scores, one = [to(hostile(size)) for size in (*SIZES, n)], 0xBF800000  # the key of 1.0
    return [ops.count_digits(scores, to(torch.tensor(one if round else 0)), round) for round in range(3)]


def fused_selection(to: To) -> list[Tensor]:
    weights, grads = (to(values(64, 48, seed=k)) for k in (1, 2))
    norm = to(values(48, seed=3).abs())
    return [
        ops.topk_mask(weights, keep=1000, metric="snip", grads=grads),
        ops.row_topk_mask(weights, keep=20, metric="wanda", input_norm=norm),
        ops.nm_mask(weights, 2, 4, metric="taylor", grads=grads),
    ]


def rows(to: To, columns: int) -> list[Tensor]:
    scores = to(hostile(8 * columns).reshape(8, columns))
    return [ops.row_topk_mask(scores, sparsity=0.5), ops.row_topk_mask(scores, keep=columns)]


def groups(to: To, n: int, m: int) -> list[Tensor]:
    return [ops.nm_mask(to(hostile(96 * m).reshape(32, 3 * m).to(dtype)), n, m)
            for dtype in (torch.float32, torch.bfloat16)]  # fmt: skip


def masks(to: To, dtype: torch.dtype) -> list[Tensor]:
    result = []
    for shape in MATRICES:
        mask = to(values(*shape) > 0)
        packed, blocks = ops.pack_mask(mask), to(values(shape[0] // 4, shape[1], seed=1) > 0)
        tensors = [to(values(*shape, dtype=dtype, seed=2)) for _ in range(3)]
        ops.apply_masks_(tensors[0], mask)
        ops.apply_masks_(tensors[1], packed)
        ops.apply_masks_(tensors[2], blocks, block=(4, 1))
        result += [*tensors, packed, ops.unpack_mask(packed, shape), ops.expand_block_mask(blocks, (4, 1), shape)]
    return result


def slabs(to: To, order: str) -> list[Tensor]:
    return [ops.prune_by_importance(to(values(24, 5)), to(values(8)), 3, 3, order=order)]


def checks(n: int) -> Iterator[tuple[str, Check]]:
    """Name and check; ``n`` is the size of the large tensors of a selection."""
    fp32, bf16, fp16 = torch.float32, torch.bfloat16, torch.float16
    for dtype in (fp32, bf16, fp16, torch.float64):
        for metric in SCORE_METRICS:
            yield f"update_scores_ {metric} {dtype}", partial(update, metric=metric, dtype=dtype)
        for block in BLOCKS:
            yield f"update_block_scores_ {block} {dtype}", partial(block_update, block=block, dtype=dtype)
        for ties, sparsity in (("exact", 0.5), ("exact", 0.0), ("exact", 1.0), ("exact", 0.9), ("threshold", 0.5)):
            yield (f"topk_mask {ties} {sparsity} {dtype}",
                   partial(selection, ties=ties, sparsity=sparsity, dtype=dtype, n=n))  # fmt: skip
        yield f"update_topk_mask_ {dtype}", partial(updated_selection, dtype=dtype, n=n)
        yield f"apply_masks_ {dtype}", partial(masks, dtype=dtype)
    for metric in sorted(BLOCK_METRICS.keys() - SCORE_METRICS.keys()):
        for block in BLOCKS:
            update_blocks = partial(block_update, block=block, dtype=fp32, metric=metric)
            yield f"update_block_scores_ {metric} {block}", update_blocks
    for scale, found in ((1024.0, 0.0), (3.0, 0.0), (1.0, 1.0)):
        yield f"update_scores_ scale {scale}, found {found}", partial(scaled_update, scale=scale, found=found)
    yield "update_scores_ transposed", transposed_update
    yield "packed and strict masks", partial(other_masks, n=n)
    yield "count_digits", partial(digits, n=n)
    if n >= ONE_PASS // 16:  # the sanitizers would take too long
        yield f"topk_mask of {ONE_PASS}", partial(selection_of_many, n=ONE_PASS)
    yield "selections with a metric", fused_selection
    for columns in (1, 40, 1000, 12345):
        yield f"row_topk_mask {columns}", partial(rows, columns=columns)
    for kept, m in ((2, 4), (1, 4), (4, 8), (16, 32), (3, 5)):
        yield f"nm_mask {kept}:{m}", partial(groups, n=kept, m=m)
    for order in ("importance", "original"):
        yield f"prune_by_importance {order}", partial(slabs, order=order)


def same(a: Tensor, b: Tensor) -> bool:
    """Same bits; one NaN is as good as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        missing = a.isnan()
        if not torch.equal(missing, b.isnan()):
            return False
        a, b = (x.masked_fill(missing, 0) for x in (a, b))
        return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
    return torch.equal(a, b)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--entries", type=int, default=300_000, help="of the large tensors of a selection")
    options = parser.parse_args(arguments)
    failed, every = [], list(checks(options.entries))
    for name, check in every:
        found = [x.cpu() for x in check(lambda x: x.to(options.device))]
        with reference():
            expected = check(lambda x: x.clone())
        wrong = [i for i, pair in enumerate(zip(found, expected, strict=True)) if not same(*pair)]
        if wrong:
            failed.append(name)
            print(f"{name}: results {wrong} differ from the reference")
    print(f"{len(every) - len(failed)} of {len(every)} checks on {options.device} agree with the reference")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
