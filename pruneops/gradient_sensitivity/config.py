"""Settings of a pruner: read from mappings, dataclasses, objects and YAML files, and checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..patterns import Pattern, parse_pattern

METRICS = ("abs_gradient", "weighted_gradient")
ORDERS = ("importance", "original")

#: Keys of Neural Compressor's configuration that its gradient-sensitivity pruner does not read either.
_UNREAD = {
    "end_step",
    "excluded_names",
    "extra_excluded_names",
    "max_sparsity_ratio_per_layer",
    "prune_domain",
    "prune_layer_type",
    "prune_type",
    "sparsity_decay_type",
    "start_step",
    "update_frequency_on_step",
}
_LOCAL = ("names", "parameters")
_PARAMETERS: dict[str, Any] = {
    "target": None,
    "normalize": False,
    "stride": None,
    "transpose": None,
    "importance_inputs": None,
    "importance_metric": None,
    "order": "importance",
    "index": None,
}


@dataclass(frozen=True)
class Settings:
    """The settings of one pruner, after defaults: what a local configuration says, then the global one.

    Attributes:
        names: weights to prune; a ``*`` stands for the layer index. None is every weight.
        parameters: of structured pruning, see :func:`read_parameters`; None prunes weights one by one.
        start_epoch: first epoch that prunes.
        end_epoch: last one.
        initial_sparsity: where the schedule starts.
        target_sparsity: what it reaches in ``end_epoch``; below 1.
        update_frequency: epochs between two steps of the schedule.
        method: ``per_tensor``, or ``per_channel`` for one threshold per row of the weight (of its tiles).
        pattern: ``4x1`` or ``tile_pattern_4x1``: tiles that share one decision.
        ties: ``threshold`` prunes everything up to and including the value at sorted index ``int(n * sparsity)``,
            ``exact`` exactly ``int(n * sparsity)``.
    """

    names: list[str] | None = None
    parameters: dict[str, Any] | None = None
    start_epoch: int = 0
    end_epoch: int = 4
    initial_sparsity: float = 0.0
    target_sparsity: float = 0.97
    update_frequency: float = 1
    method: str = "per_tensor"
    pattern: str = "1x1"
    ties: str = "threshold"


def read_settings(local_config: Any, global_config: Any = None) -> Settings:
    """Settings from a local configuration, with a global one for what it leaves out.

    Args:
        local_config: mapping, dataclass, object with attributes, or path of a YAML file; keys as in
            :class:`Settings`. A value of None is as good as none.
        global_config: the same; it may not hold ``names`` and ``parameters``.

    Raises:
        ValueError: an unknown key, or a value out of range; the message names the key.
        TypeError: a value of the wrong kind.

    Example:
        >>> read_settings({"names": ["fc.weight"]}, {"target_sparsity": 0.8}).target_sparsity
        0.8
    """
    local, shared = _known("local_config", local_config), _known("global_config", global_config)
    for key in _LOCAL:
        if shared.pop(key, None):
            raise ValueError(f"global_config: {key!r} belongs to the local configuration of a pruner")
    settings = Settings(**{**shared, **local})
    _check_schedule(settings)
    _choice("method", settings.method, ("per_tensor", "per_channel"))
    _choice("ties", settings.ties, ("threshold", "exact"))
    parse_tile_pattern(settings.pattern)
    names = _names("names", settings.names)
    parameters = None if settings.parameters is None else read_parameters(settings.parameters)
    return Settings(**{**vars(settings), "names": names, "parameters": parameters})


def read_parameters(parameters: Any) -> dict[str, Any]:
    """Parameters of structured pruning, checked and with defaults.

    - ``target``: heads or neurons to keep.
    - ``importance_metric``: ``abs_gradient`` for heads: abs(gradient of the head mask); ``weighted_gradient``:
      abs(sum over the inputs of the row sums of weight * gradient).
    - ``importance_inputs``: the head mask's name, by default ``head_mask``; or the weights to sum over.
    - ``normalize``: divide the importance of each layer by its 2-norm; by default not.
    - ``stride``: rows of a head (1 for neurons); by default what the layer has.
    - ``transpose``: the heads or neurons lie along the second dimension of the stored weight; by default what
      the layer has.
    - ``order``: kept ones in descending ``importance``, or in their ``original`` order.
    - ``index``: layer in the head mask, where no ``*`` in the name gives it.

    Raises:
        ValueError: a key is unknown or missing, or a value out of range.
        TypeError: a value of the wrong kind.

    Example:
        >>> read_parameters({"target": 8, "importance_metric": "abs_gradient"})["importance_inputs"]
        ['head_mask']
    """
    given = _items("parameters", parameters)
    if unknown := sorted(given.keys() - _PARAMETERS.keys()):
        raise ValueError(f"parameters: unknown key {unknown[0]!r}; known are {', '.join(_PARAMETERS)}")
    values = {**_PARAMETERS, **given}
    _choice("parameters['importance_metric']", values["importance_metric"], METRICS)
    _choice("parameters['order']", values["order"], ORDERS)
    for key, least in (("target", 1), ("stride", 1), ("index", 0)):
        if key == "target" or values[key] is not None:
            _integer(f"parameters[{key!r}]", values[key], least)
    for key in ("normalize", "transpose"):
        if values[key] not in (True, False, None):
            raise TypeError(f"parameters[{key!r}] must be true or false, got {values[key]!r}")
    inputs = _names("parameters['importance_inputs']", values["importance_inputs"])
    if inputs is None:
        if values["importance_metric"] != "abs_gradient":
            raise ValueError("parameters['importance_inputs'] is missing: weighted_gradient sums over these weights")
        inputs = ["head_mask"]
    return {**values, "importance_inputs": inputs}


def parse_tile_pattern(spec: str | Pattern) -> Pattern:
    """A block pattern, spelled ``4x1`` or ``tile_pattern_4x1``.

    Raises:
        ValueError: it is no pattern, or an N:M pattern, which has no tiles.

    Example:
        >>> parse_tile_pattern("tile_pattern_4x1").block
        (4, 1)
    """
    pattern = parse_pattern(spec.removeprefix("tile_pattern_") if isinstance(spec, str) else spec)
    if pattern.nm:
        raise ValueError(f"pattern must be made of tiles, such as '4x1'; got {pattern.spec!r}")
    return pattern


def read_yaml(path: str | PathLike[str]) -> dict[str, Any]:
    """A configuration file: a mapping, bare or under ``pruning: approach: weight_compression:``.

    Neural Compressor's ``!Pruner`` tag is read as a plain mapping.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: the file is no YAML, or holds no mapping.
        OSError: the file cannot be read.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("a YAML configuration needs PyYAML: pip install pyyaml") from error

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!Pruner", lambda loader, node: loader.construct_mapping(node, deep=True))
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    for key in ("pruning", "approach", "weight_compression"):
        if isinstance(found, Mapping) and key in found:
            found = found[key]
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: holds no settings, but {type(found).__name__}")
    return dict(found)


def _known(what: str, config: Any) -> dict[str, Any]:
    """The items of a configuration that are settings; an error for a key that nobody knows."""
    items = _items(what, config)
    if items.pop("pruners", None) and what == "local_config":
        raise ValueError("local_config holds 'pruners': make them with PrunerList.from_config")
    names = [field.name for field in fields(Settings)]
    if unknown := sorted(items.keys() - set(names) - _UNREAD):
        raise ValueError(f"{what}: unknown key {unknown[0]!r}; known are {', '.join(names)}")
    return {key: items[key] for key in names if key in items}


def _items(what: str, config: Any) -> dict[str, Any]:
    """The values that a configuration holds, without those that are None."""
    if config is None:
        return {}
    if isinstance(config, (str, PathLike)):
        config = read_yaml(config)
    elif is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    elif not isinstance(config, Mapping):
        if not hasattr(config, "__dict__"):
            raise TypeError(f"{what} must be a mapping, a dataclass, an object or a path, got {type(config).__name__}")
        config = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    return {key: value for key, value in config.items() if value is not None}


def _check_schedule(settings: Settings) -> None:
    for key in ("start_epoch", "end_epoch"):
        _integer(key, getattr(settings, key), 0)
    for key in ("initial_sparsity", "target_sparsity"):
        value = _number(key, getattr(settings, key))
        if not 0 <= value < 1:
            raise ValueError(f"{key} must be at least 0 and below 1, got {value}")
    if settings.start_epoch > settings.end_epoch:
        raise ValueError(f"start_epoch {settings.start_epoch} is after end_epoch {settings.end_epoch}")
    if settings.initial_sparsity > settings.target_sparsity:
        raise ValueError(
            f"initial_sparsity {settings.initial_sparsity} is above target_sparsity {settings.target_sparsity}"
        )
    if _number("update_frequency", settings.update_frequency) <= 0:
        raise ValueError(f"update_frequency must be above 0, got {settings.update_frequency}")


def _names(key: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{key} must be a list of names, got {value!r}")
    if not names:
        raise ValueError(f"{key} is empty")
    return list(names)


def _choice(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{key} must be a number, got {value!r}")
    return float(value)


def _integer(key: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{key} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}")
