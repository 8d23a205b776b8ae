"""``prune_by_importance`` on NumPy arrays beside a heap and NumPy slices, and on tensors beside ``index_select``."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneops import ops

from .common import Case, Config

Arrays = tuple[Any, Any, int, int]


def _heap(data: Arrays) -> np.ndarray:
    """As Neural Compressor's gradient sensitivity pruner: slabs popped from a heap, sliced, concatenated."""
    tensor, importance, kept, stride = data
    heap: list[tuple[float, int]] = []
    for i, value in enumerate(importance):
        heappush(heap, (-value, i))
    slabs = [heappop(heap)[1] * stride for _ in range(kept)]
    return np.concatenate([tensor[first : first + stride] for first in slabs])


def _index_select(data: Arrays) -> Tensor:
    tensor, importance, kept, stride = data
    slabs = importance.topk(kept).indices
    rows = slabs[:, None] * stride + torch.arange(stride, device=tensor.device)
    return tensor.index_select(0, rows.flatten())


def cases(config: Config) -> Iterator[Case]:
    columns = 64 if config.smoke else 4096
    for name, instances, stride in (("heads", 64, 64), ("neurons", 4096, 1)):
        kept, rows = instances // 2, instances * stride

        def tensors(rows=rows, instances=instances, kept=kept, stride=stride) -> Arrays:
            return config.randn(rows, columns), torch.rand(instances, device=config.device), kept, stride

        def arrays(tensors=tensors) -> Arrays:
            tensor, importance, *rest = tensors()
            return tensor.cpu().numpy(), importance.cpu().numpy(), *rest

        def case(kind: str, data, peers, entries=kept * stride * columns, name=name, **more) -> Case:
            ours = {"pruneops": lambda data: ops.prune_by_importance(*data)}
            return Case("prune_by_importance", f"{name}, {kind}", entries, 8, data, {**ours, **peers}, **more)

        if config.device == "cpu":
            yield case("NumPy", arrays, {"INC heap": _heap}, headline=True)
        yield case("tensor", tensors, {"topk + index_select": _index_select})


def test_speed(timed, case, contender):
    timed(case, contender)
