"""The base of pruners that work by epochs, their registry, and several of them run as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

from .config import Settings, parse_tile_pattern, read_settings, read_yaml
from .importance import StepSums
from .model import as_model

PRUNERS: dict[str, type[Pruner]] = {}
_Pruner = TypeVar("_Pruner", bound="type[Pruner]")


def register_pruner(name: str) -> Callable[[_Pruner], _Pruner]:
    """Register the decorated class in ``PRUNERS`` under ``name``.

    Args:
        name: the ``prune_type`` of a configuration; a name that is taken goes to the new class.

    Returns:
        A decorator that returns its class, a subclass of :class:`Pruner`, as it is.

    Example:
        >>> @register_pruner("mine")
        ... class MyPruner(Pruner):
        ...     def on_epoch_end(self):
        ...         print("an epoch is over")
    """

    def register(pruner: _Pruner) -> _Pruner:
        PRUNERS[name] = pruner
        return pruner

    return register


class Pruner:
    """Base of pruners: settings, schedule and hooks, which a training loop calls.

    Args:
        model: ``nn.Module``, or an object with Neural Compressor's model interface.
        local_config: mapping, dataclass, object with attributes or YAML file; see
            :class:`pruneops.gradient_sensitivity.config.Settings` for the keys.
        global_config: the same, for what the local one leaves out.

    Attributes:
        settings: both together.
        weights: names to prune as they were given; all weights where none were.
        parameters: of structured pruning, or None.
        masks: weight name -> bool mask, True = keep.
        is_last_epoch: whether this epoch is ``end_epoch``.

    Raises:
        ValueError: an unknown key, or a value out of range; the message names it.
        TypeError: a value or the model is of the wrong kind.
    """

    def __init__(self, model: Any, local_config: Any, global_config: Any = None) -> None:
        self.settings: Settings = read_settings(local_config, global_config)
        self.model = model
        self._model = as_model(model)
        self.start_epoch, self.end_epoch = self.settings.start_epoch, self.settings.end_epoch
        self.initial_sparsity, self.target_sparsity = self.settings.initial_sparsity, self.settings.target_sparsity
        self.freq = self.settings.update_frequency
        self.method = self.settings.method
        self.pattern = parse_tile_pattern(self.settings.pattern)
        self.weights = self._model.names() if self.settings.names is None else self.settings.names
        self.parameters = self.settings.parameters
        self.masks: dict[str, Any] = {}
        self.is_last_epoch = False

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Called before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Called at the beginning of an epoch; they count from 0."""

    def on_step_begin(self, batch_id: int) -> None:
        """Called at the beginning of a training step."""

    def on_before_optimizer_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""

    def on_step_end(self) -> None:
        """Called at the end of a training step, while the gradients are still there."""

    def on_shared_step_end(self, sums: StepSums) -> None:
        """:meth:`on_step_end` of a pruner in a list, where ``sums`` is what the others have made in this step."""
        self.on_step_end()

    def plan(self) -> dict[Hashable, tuple[str, int]]:
        """What :meth:`on_epoch_end` will cut, by a key that all pruners share: (a weight's name, what is kept of it).

        It raises what :meth:`on_epoch_end` would raise; nothing is written.
        """
        return {}

    def on_epoch_end(self) -> None:
        """Called at the end of an epoch."""

    def on_train_end(self) -> None:
        """Called after the last epoch."""

    def update_sparsity(self, epoch: int) -> float:
        """The sparsity of an epoch.

        0 before ``start_epoch``, the target after ``end_epoch``; between them it grows by equal steps, one every
        ``update_frequency`` epochs, the first of them in ``start_epoch`` and the target in ``end_epoch``.

        Example:
            >>> pruner = Pruner(nn.Linear(2, 2), {"start_epoch": 1, "end_epoch": 2, "target_sparsity": 0.8})
            >>> [pruner.update_sparsity(epoch) for epoch in range(4)]
            [0.0, 0.4, 0.8, 0.8]
        """
        if epoch < self.start_epoch:
            return 0.0
        if self.start_epoch == self.end_epoch or epoch > self.end_epoch:
            return self.target_sparsity
        span = self.target_sparsity - self.initial_sparsity
        steps = (epoch - self.start_epoch + 1) // self.freq
        return self.initial_sparsity + span * steps * self.freq / (self.end_epoch - self.start_epoch + 1)


class PrunerList(Sequence[Pruner]):
    """Several pruners run as one: each hook calls them in their order, and all are checked before one writes.

    Args:
        pruners: the pruners.

    Example:
        >>> pruners = PrunerList.from_config(model, "heads_and_neurons.yaml")  # doctest: +SKIP
        >>> pruners.on_epoch_begin(0)  # doctest: +SKIP
    """

    def __init__(self, pruners: Sequence[Pruner]) -> None:
        self._pruners = list(pruners)

    @classmethod
    def from_config(cls, model: Any, config: Mapping[str, Any] | str | PathLike[str]) -> PrunerList:
        """The pruners of a configuration: ``pruners`` is a list of local ones, the other keys are the global one.

        Args:
            model: as in :class:`Pruner`.
            config: mapping or YAML file; each local configuration may name its class in ``prune_type``, by default
                ``gradient_sensitivity``.

        Raises:
            ValueError: there are no pruners, a ``prune_type`` is unknown, or as in :class:`Pruner`.
        """
        items = read_yaml(config) if isinstance(config, (str, PathLike)) else dict(config)
        locals_ = items.pop("pruners", None)
        if not isinstance(locals_, Sequence) or not locals_:
            raise ValueError(f"config needs 'pruners', a list of at least one; got {locals_!r}")
        return cls([_pruner_class(local)(model, local, items) for local in locals_])

    def __getitem__(self, index: Any) -> Any:
        return self._pruners[index]

    def __len__(self) -> int:
        return len(self._pruners)

    def __iter__(self) -> Iterator[Pruner]:
        return iter(self._pruners)

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Called before the first epoch."""
        for pruner in self:
            pruner.on_train_begin(dataloader)

    def on_epoch_begin(self, epoch: int) -> None:
        """Called at the beginning of an epoch."""
        for pruner in self:
            pruner.on_epoch_begin(epoch)

    def on_step_begin(self, batch_id: int) -> None:
        """Called at the beginning of a training step."""
        for pruner in self:
            pruner.on_step_begin(batch_id)

    def on_before_optimizer_step(self) -> None:
        """Called between the backward pass and the optimizer's step."""
        for pruner in self:
            pruner.on_before_optimizer_step()

    def on_step_end(self) -> None:
        """Called at the end of a training step, while the gradients are still there."""
        sums: StepSums = {}
        for pruner in self:
            pruner.on_shared_step_end(sums)

    def on_epoch_end(self) -> None:
        """Called at the end of an epoch.

        Raises:
            ValueError: a pruner cannot cut, or two want different targets of the same heads or neurons; nothing is
                written.
        """
        wanted: dict[Hashable, tuple[str, int]] = {}
        for pruner in self:
            for key, (name, target) in pruner.plan().items():
                other, first = wanted.setdefault(key, (name, target))
                if first != target:
                    raise ValueError(f"{name!r} has target {target}, but {other!r}, which is cut with it, has {first}")
        for pruner in self:
            pruner.on_epoch_end()

    def on_train_end(self) -> None:
        """Called after the last epoch."""
        for pruner in self:
            pruner.on_train_end()


def _pruner_class(local_config: Any) -> type[Pruner]:
    name = (
        local_config.get("prune_type")
        if isinstance(local_config, Mapping)
        else getattr(local_config, "prune_type", None)
    )
    if (name or "gradient_sensitivity") not in PRUNERS:
        raise ValueError(f"unknown prune_type {name!r}; known are {', '.join(sorted(PRUNERS))}")
    return PRUNERS[name or "gradient_sensitivity"]
