"""What a pruning run did: counts per layer and in total, times, and the masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from . import ops
from .layers import PrunableLayer
from .patterns import Pattern


@dataclass(frozen=True)
class LayerReport:
    """One pruned layer.

    Attributes:
        name: that of :class:`pruneops.layers.PrunableLayer`.
        shape: the matrix's shape, as it is stored.
        total: its entries.
        kept: how many of them are kept.
    """

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int

    @property
    def sparsity(self) -> float:
        """Share of the entries that are pruned; 0 for an empty layer."""
        return _sparsity(self.kept, self.total)


class LayerMasks(Mapping[str, Tensor]):
    """Element masks by layer name, in the shape of the stored matrix; True = keep.

    Block masks are expanded when they are asked for; until then there is one entry per block.

    Attributes:
        units: name -> the masks as they were selected: one entry per weight, or one per block; out x in.
    """

    def __init__(self, layers: list[PrunableLayer], units: dict[str, Tensor], pattern: Pattern) -> None:
        self.units = units
        # Not the layers themselves: they would keep the model and its gradients alive.
        self._stored = {layer.name: (layer.weight.shape, layer.transposed) for layer in layers}
        self._pattern = pattern

    def __getitem__(self, name: str) -> Tensor:
        mask, (shape, transposed) = self.units[name], self._stored[name]
        if self._pattern.block:
            mask = ops.expand_block_mask(mask, self._pattern.block, shape)
        return mask.t() if transposed else mask

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class PruneReport:
    """The result of :func:`pruneops.prune`; prints as a table.

    Attributes:
        layers: one entry per pruned matrix, in the model's order.
        criterion, pattern, scope: what was asked for.
        seconds: ``score``, ``select`` and ``apply``, in seconds. A score that is computed on the fly counts as
            selection.
        skipped: names of the layers that the pattern does not divide.
        masks: name -> element mask in the stored shape; ``masks.units`` holds one entry per block.
        unlayered: parameters of two or more dimensions that are no layer, and were not looked at -> their shares of
            the model's weights; see :func:`pruneops.layers.unlayered_weights`.

    Example:
        >>> report = pruneops.prune(nn.Sequential(nn.Linear(8, 8)), 0.5, include="*")
        >>> report.total, report.kept
        (64, 32)
    """

    layers: tuple[LayerReport, ...]
    criterion: str
    pattern: str
    scope: str
    seconds: dict[str, float]
    skipped: tuple[str, ...]
    masks: LayerMasks
    unlayered: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Entries of all pruned layers."""
        return sum(layer.total for layer in self.layers)

    @property
    def kept(self) -> int:
        """Kept entries of all pruned layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of the entries of all pruned layers that are pruned."""
        return _sparsity(self.kept, self.total)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the masks, as JSON types."""
        counts = {"total": self.total, "kept": self.kept, "sparsity": self.sparsity}
        return {
            "criterion": self.criterion,
            "pattern": self.pattern,
            "scope": self.scope,
            **counts,
            "seconds": self.seconds,
            "skipped": list(self.skipped),
            "unlayered": dict(self.unlayered),
            "layers": [
                {"name": x.name, "shape": list(x.shape), "total": x.total, "kept": x.kept, "sparsity": x.sparsity}
                for x in self.layers
            ],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def __rich__(self) -> Table:
        title = f"{self.criterion}, pattern {self.pattern}, scope {self.scope}"
        table = Table("layer", title=title, caption="\n".join(self._notes()), show_footer=True)
        table.columns[0].footer = f"total of {len(self.layers)} layers"
        table.add_column("shape", justify="right")
        table.add_column("kept", f"{self.kept:,}", justify="right")
        table.add_column("of", f"{self.total:,}", justify="right")
        table.add_column("sparsity", f"{self.sparsity:.2%}", justify="right")
        for x in self.layers:
            shape = " x ".join(map(str, x.shape))
            table.add_row(escape(x.name) or "(model)", shape, f"{x.kept:,}", f"{x.total:,}", f"{x.sparsity:.2%}")
        return table

    def _notes(self) -> Iterator[str]:
        """The lines below the table."""
        if self.seconds:
            yield ", ".join(f"{step} {seconds:.3g} s" for step, seconds in self.seconds.items())
        if self.skipped:
            yield f"skipped {len(self.skipped)} that the pattern does not divide"
        if self.unlayered:
            listed = ", ".join(f"{escape(name)} {share:.1%}" for name, share in self.unlayered.items())
            yield f"in parameters of no layer, and as they were: {sum(self.unlayered.values()):.1%} ({listed})"

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=120).print(self)
        return text.getvalue()


def _sparsity(kept: int, total: int) -> float:
    return (total - kept) / total if total else 0.0
