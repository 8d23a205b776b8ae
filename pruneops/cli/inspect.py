"""``pruneops inspect``: the sparsity and structure of the weights of a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..checkpoint import FLOATING, Checkpoint
from ..inspection import BINS_PER_DECADE, DECADES, Structure, count_zeros, find_structure, magnitude_histogram
from ..planning import STACKED_EXPERTS, natural
from ..staging import staged
from . import console

_ABOUT = """
Show, for each floating-point tensor with at least two dimensions, the share of zeros and the structure that they
have: the N:M patterns that hold (N entries left in each M consecutive inputs) and the largest block NxM of which
every zero fills a whole one. No structure is looked for in tensors of three dimensions that stack experts, since they
do not say which dimension holds the inputs.
"""


@dataclass(frozen=True)
class _Layer:
    """A tensor of the checkpoint, and the structure of its zeros; ``shape`` is out x in, or as stored for experts."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    structure: Structure
    stacks_experts: bool

    def as_dict(self) -> dict[str, Any]:
        found = self.structure
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "numel": found.numel,
            "zeros": found.zeros,
            "sparsity": found.sparsity,
            "nm": found.nm,
            "block": found.block,
            "stacked_experts": self.stacks_experts,
        }


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("inspect", help="show the sparsity and structure of a checkpoint", description=_ABOUT)
    parser.add_argument("checkpoint", metavar="PATH", type=Path, help="a .safetensors file or a model directory")
    parser.add_argument("--picture", metavar="FILE.png", type=Path, help="draw per-layer sparsity and a histogram")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    console.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print what is found in the checkpoint, and draw it where a picture is asked for."""
    checkpoint = Checkpoint(args.checkpoint)
    if args.picture:
        layers, counts = _inspect_and_draw(checkpoint, args.picture, args.overwrite)
    else:
        layers, counts = _inspect(checkpoint)
    if args.json:
        console.print_json(_document(checkpoint, layers, counts))
    else:
        out = console.output()
        out.print(str(checkpoint.path), soft_wrap=True)
        out.print(_table(layers))


def _inspect_and_draw(checkpoint: Checkpoint, file: Path, overwrite: bool) -> tuple[list[_Layer], torch.Tensor]:
    # Only a picture needs matplotlib; where it is missing, or the file exists, that shows before the long reading.
    from .. import picture

    with staged(file, overwrite=overwrite) as path:
        layers, counts = _inspect(checkpoint)
        zeros = console.percent(_total(layers).sparsity)
        title = f"{checkpoint.path.resolve().name}: {zeros} of the weights are zero"
        picture.draw(path, title, {layer.name: layer.structure.sparsity for layer in layers}, counts)
    return layers, counts


def _inspect(checkpoint: Checkpoint) -> tuple[list[_Layer], torch.Tensor]:
    """The layers in natural order of their names, and the histogram of all their magnitudes."""
    names = [name for name, info in checkpoint.tensors.items() if info.dtype in FLOATING and len(info.shape) > 1]
    if not names:
        raise ValueError(f"{checkpoint.path}: holds no floating-point tensor with at least two dimensions")
    counts = torch.zeros((DECADES[1] - DECADES[0]) * BINS_PER_DECADE, dtype=torch.int64)
    layers = []
    with console.progress() as bars:
        for name in bars.track(sorted(names, key=natural), description="Reading"):
            weight = checkpoint.oriented(name, checkpoint.tensor(name))
            counts += magnitude_histogram(weight)
            layers.append(_layer(checkpoint, name, weight))
    return layers, counts


def _layer(checkpoint: Checkpoint, name: str, weight: torch.Tensor) -> _Layer:
    stacks = checkpoint.stacks_experts(name)
    found = count_zeros(weight) if stacks else find_structure(weight)
    return _Layer(name, tuple(weight.shape), checkpoint.tensors[name].dtype, found, stacks)


def _total(layers: list[_Layer]) -> Structure:
    found = [layer.structure for layer in layers]
    return Structure(sum(x.zeros for x in found), sum(x.numel for x in found), [], None)


def _document(checkpoint: Checkpoint, layers: list[_Layer], counts: torch.Tensor) -> dict[str, Any]:
    total = _total(layers)
    return {
        "path": str(checkpoint.path),
        "total": {"numel": total.numel, "zeros": total.zeros, "sparsity": total.sparsity},
        "layers": [layer.as_dict() for layer in layers],
        "magnitude_histogram": {
            "log10_from": DECADES[0],
            "bins_per_decade": BINS_PER_DECADE,
            "counts": counts.tolist(),
        },
    }


def _table(layers: list[_Layer]) -> Table:
    total = _total(layers)
    table = Table(show_footer=True)
    table.add_column("tensor", f"total of {len(layers)}", overflow="fold")
    table.add_column("shape (out x in)")
    table.add_column("dtype")
    table.add_column("sparsity", console.percent(total.sparsity), justify="right")
    table.add_column("N:M")
    table.add_column("block")
    for layer in layers:
        found = layer.structure
        row = (layer.name, _shape_text(layer), layer.dtype, console.percent(found.sparsity))
        table.add_row(*row, ", ".join(found.nm) or "-", found.block or "-")
    return table


def _shape_text(layer: _Layer) -> str:
    text = console.shape_text(layer.shape)
    return f"{text}, {STACKED_EXPERTS} as stored" if layer.stacks_experts else text
