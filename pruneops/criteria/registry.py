"""Criteria by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .base import PruningCriterion, setting

CRITERIA: dict[str, type[PruningCriterion]] = {}
#: Names that Neural Compressor 2.3 and later have for criteria of 2.2.
ALIASES = {"block_mask": "snip_momentum_block"}
_Criterion = TypeVar("_Criterion", bound="type[PruningCriterion]")


def register_criterion(name: str) -> Callable[[_Criterion], _Criterion]:
    """Register the decorated class in ``CRITERIA`` under ``name``.

    Args:
        name: the ``criterion_type`` of a configuration; a name that is taken goes to the new class.

    Returns:
        A decorator that returns its class, a subclass of :class:`PruningCriterion`, as it is.

    Example:
        >>> @register_criterion("taylor")
        ... class TaylorCriterion(PruningCriterion):
        ...     def on_before_optimizer_step(self):
        ...         self.update_scores("taylor")
    """

    def register(criterion: _Criterion) -> _Criterion:
        CRITERIA[name] = criterion
        return criterion

    return register


def criterion_class(name: str) -> type[PruningCriterion]:
    """The class registered under ``name``, or under the name of which ``name`` is an alias.

    Raises:
        ValueError: there is none; the message lists the known names.

    Example:
        >>> criterion_class("magnitude")
        <class 'pruneops.criteria.weights.MagnitudeCriterion'>
    """
    if name not in CRITERIA:
        name = ALIASES.get(name, name)
    if name not in CRITERIA:
        raise ValueError(f"unknown criterion {name!r}; known are {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name]


def get_criterion(
    config: Any, modules: Mapping[str, Any], pattern: Any = None, masks: Any = None, *, framework: str = "pytorch"
) -> PruningCriterion:
    """The criterion that ``config`` names; a call as in any version of Neural Compressor's pruning is understood.

    Args:
        config: mapping, dataclass or object; ``criterion_type`` is the criterion's registered name. The other
            settings are those of :class:`PruningCriterion`.
        modules: see :class:`PruningCriterion`.
        pattern: the pattern object that Neural Compressor passes from 2.3 on: the scores are then one per block where
            it reduces scores, as those of its own criteria. A string is the ``framework``, as in 2.2.
        masks: name -> block mask, for the criteria to which it passes them too.
        framework: ``pytorch``.

    Returns:
        A new criterion.

    Raises:
        ValueError: the name is missing or unknown, or as in :class:`PruningCriterion`.

    Example:
        >>> get_criterion({"criterion_type": "magnitude"}, {"fc": nn.Linear(2, 2)})
        <pruneops.criteria.weights.MagnitudeCriterion object at ...>
    """
    criterion = criterion_class(setting(config, "criterion_type", None))
    if masks is None and (pattern is None or isinstance(pattern, str)):
        return criterion(modules, config, pattern or framework)
    from ..integrations.neural_compressor import adapted  # which imports this package

    return adapted(criterion)(modules, config, pattern, *([] if masks is None else [masks]))
