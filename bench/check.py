"""Every operator on a device against the PyTorch reference on the CPU, bit for bit: ``python -m bench.check``.

Needs torch and NumPy alone, and launches few kernels of torch itself, so that it is what compute-sanitizer runs.
Values are multiples of 1/64: block sums are exact in any order, and most scores tie.
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

To = Callable[[Tensor], Tensor]
Check = Callable[[To], list[Tensor]]
#: Around the widths of a vector, a warp and a tile; an empty tensor first, between and last.
SIZES = (0, 1, 3, 31, 33, 0, 255, 1023, 4099, 0)
MATRICES = ((4, 4), (64, 48), (16, 1024), (256, 336))
BLOCKS = ((4, 1), (1, 4), (2, 2), (16, 16), (-1, 1), (1, -1))


@contextmanager
def reference() -> Iterator[None]:
    """Let the functional API call the reference."""
    with ExitStack() as stack:
        for module in (ops.gather, ops.masks, ops.select, ops.update):
            stack.enter_context(patch.object(module, "OPS", _library))
        yield


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-128, 129, shape, generator=generator) / 64).to(dtype)


def hostile(n: int) -> Tensor:
    x = values(n)
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


def block_update(to: To, block: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    shapes = [s for s in MATRICES if all(b == -1 or extent % b == 0 for b, extent in zip(block, s, strict=True))]
    weights, grads = ([to(values(*s, dtype=dtype, seed=k)) for s in shapes] for k in (1, 2))
    scores = [to(values(*_library.block_grid(block, s))) for s in shapes]
    reduced = [ops.block_reduce(weight, block, "sum") for weight in weights]
    return [*ops.update_block_scores_(scores, weights, grads, block=block, metric="snip", alpha=0.5), *reduced]


def selection(to: To, ties: str, sparsity: float, dtype: torch.dtype, n: int) -> list[Tensor]:
    scores = [to(hostile(size).to(dtype)) for size in (*SIZES, n)] + [to(values(n + 1, dtype=dtype))[1:]]
    total = sum(score.numel() for score in scores)
    masks = ops.topk_mask(scores, sparsity=sparsity, ties=ties)
    return [*masks, ops.kth_value(scores, max(1, int(sparsity * total)))]


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
    for dtype in (fp32, bf16, fp16):
        for metric in ("magnitude", "gradient", "snip", "taylor", "fisher"):
            yield f"update_scores_ {metric} {dtype}", partial(update, metric=metric, dtype=dtype)
        for block in BLOCKS:
            yield f"update_block_scores_ {block} {dtype}", partial(block_update, block=block, dtype=dtype)
        for ties, sparsity in (("exact", 0.5), ("exact", 0.0), ("exact", 1.0), ("exact", 0.9), ("threshold", 0.5)):
            yield (f"topk_mask {ties} {sparsity} {dtype}",
                   partial(selection, ties=ties, sparsity=sparsity, dtype=dtype, n=n))  # fmt: skip
        yield f"apply_masks_ {dtype}", partial(masks, dtype=dtype)
    yield "update_scores_ transposed", transposed_update
    yield "selections with a metric", fused_selection
    for columns in (1, 40, 1000, 12345):
        yield f"row_topk_mask {columns}", partial(rows, columns=columns)
    for kept, m in ((2, 4), (1, 4), (4, 8), (16, 32), (3, 5)):
        yield f"nm_mask {kept}:{m}", partial(groups, n=kept, m=m)
    for order in ("importance", "original"):
        yield f"prune_by_importance {order}", partial(slabs, order=order)


def same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


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
