"""Scores on disk: collected once from data, to prune a checkpoint at any sparsity without another pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ._checks import listed
from .checkpoint import Checkpoint, Shard
from .criteria import criterion_class, get_criterion
from .staging import staged

_KIND = "pruneops-scores"


def save_scores(path: str | Path, criterion: str, scores: Mapping[str, Tensor], *, overwrite: bool = False) -> None:
    """Save the scores of a checkpoint's tensors.

    Args:
        path: the safetensors file to make, whole or not at all.
        criterion: ``wanda``, or the name of what the scores are.
        scores: tensor name in the checkpoint -> with ``wanda`` the norms of its inputs, shape (in,), from which the
            scores are computed on the fly; else scores in the stored shape of the tensor.
        overwrite: replace what is there.

    Raises:
        OSError: the file exists, or cannot be written.

    Example:
        >>> save_scores("scores.safetensors", "wanda", {"fc.weight": norms["fc"]})  # doctest: +SKIP
    """
    with staged(path, overwrite=overwrite) as file:
        ready = {name: score.detach().contiguous() for name, score in scores.items()}
        owners = {score.data_ptr(): name for name, score in ready.items()}
        # The format holds no two tensors of the same memory: those of one expert may have the same norms.
        ready = {name: x if owners[x.data_ptr()] == name else x.clone() for name, x in ready.items()}
        save_file(ready, file, {"format": _KIND, "criterion": criterion})


class CriterionScores:
    """Scores of a registered criterion that needs no data, made when they are asked for.

    Args:
        criterion: its name.

    Raises:
        ValueError: the criterion is unknown, or reads gradients, which a checkpoint has not.

    Example:
        >>> CriterionScores("snip")
        Traceback (most recent call last):
        ...
        ValueError: criterion 'snip' reads gradients, which a checkpoint has not
    """

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion
        if criterion_class(criterion).needs_gradient:
            raise ValueError(f"criterion {criterion!r} reads gradients, which a checkpoint has not")

    def check(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        """Nothing can be missing."""

    def ranking(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
        """As in :meth:`SavedScores.ranking`."""
        weights = {name: checkpoint.oriented(name, checkpoint.tensor(name)) for name in names}
        # As everywhere else, a criterion gets what has a weight, not the weight itself.
        modules = {name: SimpleNamespace(weight=weight) for name, weight in weights.items()}
        criterion = get_criterion({"criterion_type": self.criterion}, modules)
        criterion.on_step_begin()
        criterion.on_before_optimizer_step()
        return {"scores": criterion.scores}


class SavedScores:
    """A file of :func:`save_scores`, memory-mapped.

    Attributes:
        criterion: what the scores are.

    Raises:
        ValueError: the file is missing or holds no scores.

    Example:
        >>> SavedScores("scores.safetensors").criterion  # doctest: +SKIP
        'wanda'
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Shard(Path(path))
        if self._file.metadata.get("format") != _KIND:
            raise ValueError(f"{path}: holds no scores; 'pruneops score' makes them")
        self.criterion = self._file.metadata["criterion"]

    def check(self, checkpoint: Checkpoint, names: Sequence[str]) -> None:
        """Raise what :meth:`ranking` would, before the first tensor is written."""
        self.ranking(checkpoint, names)

    def ranking(self, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
        """The arguments of :func:`pruneops.select_masks` that rank these tensors of a checkpoint.

        Raises:
            ValueError: a tensor has no score here, or one of another shape.
        """
        if missing := [name for name in names if name not in self._file.tensors]:
            raise ValueError(f"{self._file.path}: has no score for {listed(missing)}; exclude it (--exclude)")
        found = {name: self._score(checkpoint, name) for name in names}
        if self.criterion == "wanda":
            return {"metric": "wanda", "input_norms": found}
        return {"scores": {name: checkpoint.oriented(name, score) for name, score in found.items()}}

    def _score(self, checkpoint: Checkpoint, name: str) -> Tensor:
        shape = checkpoint.tensors[name].shape
        expected = checkpoint.weight_shape(name)[1:] if self.criterion == "wanda" else shape
        info = self._file.tensors[name]
        if info.shape != expected:
            raise ValueError(f"{self._file.path}: the score of {name!r} has shape {info.shape}, expected {expected}")
        return self._file.tensor(name).to(torch.float32)
