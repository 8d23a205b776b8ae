"""Recipes: which layers are pruned, by what and how far, from keyword arguments, mappings or a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

from .layers import Patterns
from .patterns import Pattern, parse_pattern
from .schedules import Schedule
from .selection import check_limits

DEFAULT_SPARSITY = 0.8

#: What recipes of other libraries call these settings.
_ALIASES = {"targets": "include", "ignore": "exclude"}


@dataclass(frozen=True)
class Rule:
    """One group of layers and how it is pruned; the group has one sparsity budget of its own.

    Attributes:
        include: globs or ``re:`` expressions of module names, see :func:`pruneops.layers.find_layers`; None is all
            but the default excludes. In a recipe also ``targets``.
        exclude: the same of modules to leave alone. In a recipe also ``ignore``.
        criterion: a registered criterion; see :mod:`pruneops.criteria`.
        criterion_config: its other settings: ``criterion_reduce_type``, ``low_memory_usage``, ``alpha`` and ``beta``
            of those with momentum, and what a criterion of one's own names in ``known_settings``.
        pattern: see :func:`pruneops.parse_pattern`.
        sparsity: share to prune; None is what an N:M pattern gives, and 0.8 for the others.
        scope: ``global`` (over the group), ``local`` or ``row``.
        schedule: ``linear``, ``cubic``, ``cosine``, ``exponential`` or ``one_shot``.
        start_step, end_step, frequency, initial_sparsity: see :class:`pruneops.schedules.Schedule`.
        min_sparsity: lowest final sparsity of each layer, with scope ``global``.
        max_sparsity: highest sparsity of each layer, with scope ``global``.

    Example:
        >>> Rule(include="*.mlp.*", pattern="2:4", end_step=1000).pattern
        '2:4'
    """

    include: Patterns = None
    exclude: Patterns = None
    criterion: str = "snip_momentum"
    criterion_config: Mapping[str, Any] | None = None
    pattern: str | Pattern = "4x1"
    sparsity: float | None = None
    scope: str = "global"
    schedule: str = "cubic"
    start_step: int = 0
    end_step: int | None = None
    frequency: int | None = None
    initial_sparsity: float = 0.0
    min_sparsity: float | None = None
    max_sparsity: float | None = None

    def plan(self, shapes: Mapping[str, Sequence[int]]) -> Schedule:
        """The schedule for layers of these shapes (out x in).

        Raises:
            ValueError, TypeError: a setting is missing or out of range, or the limits cannot be met.
        """
        if self.end_step is None:
            raise ValueError("end_step is missing: the optimizer step after which the sparsity is reached")
        for name in ("sparsity", "initial_sparsity", "min_sparsity", "max_sparsity"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Real):
                # YAML reads 8e-1 as text: the value says what the type alone does not.
                raise TypeError(f"{name} must be a number, got {value!r}")
        is_nm = parse_pattern(self.pattern).nm is not None
        sparsity = DEFAULT_SPARSITY if self.sparsity is None and not is_nm else self.sparsity
        reach = check_limits(
            shapes, sparsity=sparsity, pattern=self.pattern, scope=self.scope,
            min_sparsity=self.min_sparsity, max_sparsity=self.max_sparsity,
        )  # fmt: skip
        return Schedule(self.schedule, reach, self.start_step, self.end_step, self.frequency, self.initial_sparsity)


def make_rules(settings: Mapping[str, Any], rules: Sequence[Mapping[str, Any]] | None = None) -> list[Rule]:
    """The rules of a run.

    Args:
        settings: the fields of :class:`Rule`; what a rule does not say itself.
        rules: fields of :class:`Rule` each; None is one rule with ``settings``.

    Returns:
        The rules, at least one.

    Raises:
        ValueError: a setting is unknown, or there is no rule.
        TypeError: a rule is not a mapping.

    Example:
        >>> [rule.sparsity for rule in make_rules({"sparsity": 0.5}, [{"targets": "fc*"}, {"sparsity": 0.9}])]
        [0.5, 0.9]
    """
    common = _named(settings, "settings")
    if rules is None:
        return [Rule(**common)]
    if isinstance(rules, (str, Mapping)) or not rules:
        raise ValueError(f"rules must be a sequence of at least one mapping, got {rules!r}")
    return [_rule(common, _named(rule, f"rules[{i}]")) for i, rule in enumerate(rules)]


def _rule(common: dict[str, Any], own: dict[str, Any]) -> Rule:
    # A sparsity that was meant for other patterns is none for an N:M pattern, which gives its own.
    gives_sparsity = "pattern" in own and parse_pattern(own["pattern"]).nm is not None
    return Rule(**common | ({"sparsity": None} if gives_sparsity else {}) | own)


def _named(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise TypeError(f"{where} must map names to settings, got {type(settings).__name__}")
    known = {item.name for item in fields(Rule)}
    if odd := [key for key in settings if _ALIASES.get(key, key) not in known]:
        raise ValueError(f"{where} has an unknown setting {odd[0]!r}; known are {', '.join(sorted(known))}")
    return renamed(settings, where)


def renamed(settings: Mapping[str, Any], where: str = "the recipe") -> dict[str, Any]:
    """Settings under this library's names: ``targets`` is ``include``, ``ignore`` is ``exclude``.

    Raises:
        ValueError: a setting is there under both names; the message begins with ``where``.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = _ALIASES.get(key, key)
        if name in found:
            raise ValueError(f"{where} says {name!r} twice: {key!r} is another name of it")
        found[name] = value
    return found


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe: settings of :class:`pruneops.Pruner` at the top level, with ``rules`` for groups of layers.

    Args:
        path: the file, such as::

            criterion: snip_momentum
            sparsity: 0.8
            end_step: 1000
            ignore: ["*.pooler.*"]
            rules:
              - targets: "*.attention.*"
                pattern: 2:4
              - pattern: 4x1

    Returns:
        The settings, for :meth:`pruneops.Pruner.from_recipe`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML, or holds no mapping.
        ImportError: PyYAML is missing.

    Example:
        >>> read_recipe("recipe.yaml")  # doctest: +SKIP
        {'criterion': 'snip_momentum', 'sparsity': 0.8, 'end_step': 1000}
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("recipes in YAML need PyYAML: pip install pyyaml") from error

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes an unquoted 2:4 for a number to the base 60; here it stays text."""

    text = ("tag:yaml.org,2002:str", re.compile(r"[0-9]+:[0-9]+$"))
    old: dict[Any, Any] = yaml.SafeLoader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = old | {digit: [text, *old[digit]] for digit in "0123456789"}
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: must hold a mapping, got {type(recipe).__name__}")
    return recipe
