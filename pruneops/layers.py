"""Which parameters of a model are pruned, and how they are seen: as out x in weights under their module's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

#: Module names of output heads: a layer with one of them in its dotted name is excluded by default.
HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "head", "heads")

_LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Patterns = str | Sequence[str] | None


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """A parameter to prune.

    Attributes:
        name: name of the first module that holds it.
        parameter: as it is stored.
        transposed: stored in x out, as in GPT-2's ``Conv1D``.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    @cached_property
    def weight(self) -> Tensor:
        """The parameter out x in: a view without its graph, whose ``grad`` is the same view of the gradient."""
        weight = self.as_stored(self.parameter.detach())
        weight.grad = None if self.parameter.grad is None else self.as_stored(self.parameter.grad)
        return weight

    def as_stored(self, x: Tensor) -> Tensor:
        """Between the out x in view and the stored layout; both ways are the same transposition."""
        return x.t() if self.transposed else x


def find_layers(model: nn.Module, include: Patterns = None, exclude: Patterns = None) -> list[PrunableLayer]:
    """The parameters of a model to prune: weights of Linear, Conv1d/2d/3d and of GPT-2's Conv1D.

    A parameter that several modules share is found once, under its first name; a pattern may use any of its names.
    Excluded by default: embeddings and norms (they are none of these types), weights tied to an embedding, and
    output heads: what ``model.get_output_embeddings()`` returns and modules named ``lm_head``, ``embed_out``,
    ``classifier``, ``score``, ``qa_outputs``, ``head`` or ``heads``, with all that is in them.

    Args:
        model: any module.
        include: module names to prune: globs such as ``"encoder.*"``, or regular expressions such as
            ``r"re:layer\\.[0-3]\\."``, found anywhere in the name; one or a sequence. None is all but the default
            excludes; what is named here is pruned even if it is one of those.
        exclude: module names not to prune, in the same form; stronger than ``include``.

    Returns:
        The layers in the order of ``model.named_modules()``.

    Raises:
        ValueError: a pattern matches no layer (no module, for ``exclude``) or is no regular expression, or a weight
            cannot be written in place (parametrized, lazy, on the meta device).
        TypeError: ``model`` is not a module, or a pattern not a string.

    Example:
        >>> [layer.name for layer in find_layers(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))]
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = _candidates(model)
    heads = _protected(model)
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    names = NameFilter(include, exclude, [name for group in found for name in group.names], modules)
    chosen = []
    for group in found:
        protected = id(group.parameter) in heads or any(map(is_head, group.names))
        if names.selects(group.names, by_default=not protected):
            chosen.append(PrunableLayer(group.names[0], _checked(group), group.transposed))
    return chosen


def is_head(name: str) -> bool:
    """Whether a module name is that of an output head, or of a part of one.

    Example:
        >>> is_head("model.lm_head"), is_head("encoder.layer.0")
        (True, False)
    """
    return not set(HEADS).isdisjoint(name.split("."))


class NameFilter:
    """Include and exclude patterns over module names; see :func:`find_layers` for their form.

    Args:
        include: None, or patterns that each match one of ``names``.
        exclude: None, or patterns that each match one of ``names`` or ``others``.
        names: what can be selected.
        others: further names, which ``exclude`` may name too.

    Raises:
        ValueError: a pattern matches nothing, or is no regular expression.
        TypeError: a pattern is not a string.

    Example:
        >>> NameFilter("fc*", None, ["fc1", "out"]).selects(["out"])
        False
    """

    def __init__(self, include: Patterns, exclude: Patterns, names: Collection[str], others: Collection[str] = ()):
        self._include = None if include is None else list(_matchers("include", include, names))
        self._exclude = list(_matchers("exclude", exclude or (), [*names, *others]))

    def selects(self, names: Sequence[str], by_default: bool = True) -> bool:
        """Whether something known under ``names`` is selected; ``by_default`` where no pattern names it."""
        if any(match(name) for match in self._exclude for name in names):
            return False
        return by_default if self._include is None else any(match(name) for match in self._include for name in names)


def _matchers(what: str, patterns: str | Sequence[str], names: Collection[str]) -> Iterator[Callable[[str], bool]]:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{what} must hold strings, got {type(pattern).__name__}")
        match = _matcher(what, pattern)
        if not any(map(match, names)):
            known = ", ".join(sorted(names)[:5]) or "none"
            raise ValueError(f"{what} pattern {pattern!r} matches no layer; the names here begin with: {known}")
        yield match


def _matcher(what: str, pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise ValueError(f"{what} pattern {pattern!r} is not a regular expression: {error}") from error
    return lambda name: expression.search(name) is not None


@dataclass
class _Candidate:
    """A weight and every module name that it is known under."""

    parameter: Tensor | None
    transposed: bool
    names: list[str]


def _candidates(model: nn.Module) -> Iterable[_Candidate]:
    found: dict[int, _Candidate] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        transposed = stores_in_by_out(module)
        if not transposed and not isinstance(module, _LAYER_TYPES):
            continue
        parameter = module._parameters.get("weight")
        key = id(module if parameter is None else parameter)
        found.setdefault(key, _Candidate(parameter, transposed, [])).names.append(name)
    return found.values()


def stores_in_by_out(module: object) -> bool:
    """Whether a module is GPT-2's ``Conv1D``: a linear layer that stores its weight in x out.

    It is known by name, so that transformers need not be installed.
    """
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)


def _protected(model: nn.Module) -> set[int]:
    """Identities of the weights of embeddings and of the output head that the model itself names."""
    modules = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    named_head = getattr(model, "get_output_embeddings", None)
    if callable(named_head):
        modules.append(named_head())
    return {id(module.weight) for module in modules if getattr(module, "weight", None) is not None}


def _checked(group: _Candidate) -> nn.Parameter:
    parameter, name = group.parameter, group.names[0]
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(
            f"the weight of {name!r} is not a parameter of its own (parametrized, or masked by a hook): "
            "make it one, or exclude the layer"
        )
    if isinstance(parameter, UninitializedParameter) or parameter.device == torch.device("meta"):
        raise ValueError(f"the weight of {name!r} has no values yet (lazy, or on the meta device)")
    return parameter
