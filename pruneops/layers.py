"""Which parameters of a model are pruned, and how they are seen: as out x in weights under their module's name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ._checks import listed

#: Module names of output heads: a layer with one of them in its dotted name is excluded by default.
HEADS = ("lm_head", "embed_out", "classifier", "score", "qa_outputs", "head", "heads")

_LAYER_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EMBEDDING_TYPES = (nn.Embedding, nn.EmbeddingBag)
_EMBEDDINGS = {"relative_attention_bias", "shared", "wpe", "wte"}
_ROUTERS = {"gate", "shared_expert_gate"}
#: Stacked experts that do not say whether each is stored in x out.
_OTHER_EXPERTS = {"Llama4TextExperts": True, "JetMoeParallelExperts": False}
#: The names under which PEFT, diffusers, torchtune and adapters put the matrices that they add to a model.
_ADAPTER = re.compile(
    r"(^|_)(lora|adalora|dora|vera|randlora|vblora|loha|hada|lokr|ia3|b?oft|fourierft|adaption)(_|$)|^adapter_(down|up)"
)
_PROTECTED = "embedding, norm or head"
_UNSELECTED = "not selected by name"
#: Above this share of a model's weights, those that are no layer are worth a warning.
_LARGE_SHARE = 0.1
Patterns = str | Sequence[str] | None
Stacked = bool | Literal["experts"]


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """A matrix to prune: a parameter, or one of the matrices that a parameter stacks.

    Attributes:
        name: name of the first module that holds it as its ``weight``; else of the parameter, and of the matrix in it.
        parameter: as it is stored.
        transposed: stored in x out, as in GPT-2's ``Conv1D``.
        index: which matrix of a parameter that stacks them; None for a whole parameter.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False
    index: int | None = None

    @cached_property
    def weight(self) -> Tensor:
        """The matrix out x in: a view without its graph, whose ``grad`` is the same view of the gradient."""
        weight = self._matrix(self.parameter.detach())
        weight.grad = None if self.parameter.grad is None else self._matrix(self.parameter.grad)
        return weight

    def as_stored(self, x: Tensor) -> Tensor:
        """Between the out x in view and the stored layout; both ways are the same transposition."""
        return x.t() if self.transposed else x

    def part(self, x: Tensor) -> Tensor:
        """This layer's part of a tensor that has the parameter's shape, as it is stored."""
        return _part(x, self.index)

    def _matrix(self, x: Tensor) -> Tensor:
        return self.as_stored(self.part(x))


class HeldMatrix:
    """What a criterion scores of a parameter that is no module's ``weight``: all of it, or a matrix that it stacks.

    Args:
        module: what holds the parameter.
        key: its name there.
        layer: which matrix.
    """

    def __init__(self, module: nn.Module, key: str, layer: PrunableLayer) -> None:
        self._module, self._key = module, key
        # Not the layer, which would hold a parameter that has been replaced.
        self._index, self.transposed = layer.index, layer.transposed

    @property
    def weight(self) -> Tensor:
        """The matrix as it is stored, of the parameter that the module holds now, with its gradient."""
        parameter = self._module._parameters[self._key]
        assert parameter is not None
        weight = _part(parameter.detach(), self._index).requires_grad_(parameter.requires_grad)
        weight.grad = None if parameter.grad is None else _part(parameter.grad, self._index)
        return weight


def _part(x: Tensor, index: int | None) -> Tensor:
    return x if index is None else x[index]


def find_layers(
    model: nn.Module, include: Patterns = None, exclude: Patterns = None, *, stacked: Stacked = False
) -> list[PrunableLayer]:
    """The parameters of a model to prune: weights of Linear, Conv1d/2d/3d, of GPT-2's Conv1D and of embeddings.

    A parameter that several modules share is found once, under its first name; a pattern may use any of its names.
    Excluded by default is what :func:`excluded_by_default` knows by its name (embeddings, norms, output heads,
    adapters, routers), all of type Embedding or EmbeddingBag, weights tied to one, and what
    ``model.get_output_embeddings()`` returns. A weight with one dimension, such as a norm's, is never found.

    Args:
        model: any module.
        include: module names to prune, with or without ``.weight``: globs such as ``"encoder.*"``, or regular
            expressions such as ``r"re:layer\\.[0-3]\\."``, found anywhere in the name; one or a sequence. None is all
            but the default excludes, and warns where much of the model is no layer; what is named here is pruned even
            if it is excluded by default.
        exclude: names not to prune, in the same form; stronger than ``include``.
        stacked: also parameters that hold several matrices: each expert of those that transformers stacks, named
            ``<module>.gate_up_proj.<expert>``, or all of them by ``<module>.gate_up_proj``, and but for ``"experts"``
            the projections of ``nn.MultiheadAttention``, named ``<module>.in_proj_weight``.

    Returns:
        The layers in the order of ``model.named_modules()``, embeddings after all others.

    Raises:
        ValueError: nothing is left, which the message explains; a pattern matches no layer (no module, for
            ``exclude``) or is no regular expression; or a weight cannot be pruned in place: it is parametrized, lazy,
            on the meta device, sharded, or a tensor subclass.
        TypeError: ``model`` is not a module, or a pattern not a string.

    Example:
        >>> [layer.name for layer in find_layers(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))]
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = _candidates(model, stacked)
    modules = _module_names(model)
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names = NameFilter(include, exclude, [name for group in found for name in group.names], [*modules, *parameters])
    protected = _protected(model)
    reasons, chosen = {}, []
    for group in found:
        default = _PROTECTED if id(group.parameter) in protected else _first_reason(group.names, modules)
        if reason := names.why_not(group.names, default):
            reasons[group.names[0]] = reason
        else:
            chosen.append(group)
    if not chosen:
        raise ValueError(f"no layer is left to prune: {_causes(reasons)}")
    layers = [PrunableLayer(group.names[0], _checked(group), group.transposed, group.index) for group in chosen]
    if include is None:
        shares = unlayered_weights(model, stacked=stacked)
        _warn_of({name: share for name, share in shares.items() if names.why_not([name]) is None})
    return layers


def unlayered_weights(model: nn.Module, *, stacked: Stacked = False) -> dict[str, float]:
    """The weights that :func:`find_layers` never finds, whatever the patterns.

    Args:
        model: any module.
        stacked: as in :func:`find_layers`.

    Returns:
        Name -> its share of the entries of all parameters: of each floating-point parameter with two or more
        dimensions that is neither a layer's (parametrized or not), nor a bias, nor excluded by default.

    Example:
        >>> unlayered_weights(nn.Sequential(nn.Bilinear(4, 4, 4, bias=False), nn.Linear(8, 8, bias=False)))
        {'0.weight': 0.5}
    """
    found = _candidates(model, stacked)
    known = {id(group.parameter) for group in found}
    parametrized = tuple(
        f"{name}.".removeprefix(".") for group in found if group.parameter is None for name in group.names
    )
    modules = _module_names(model)
    parameters = {name: x for name, x in model.named_parameters() if not isinstance(x, UninitializedParameter)}
    total = sum(x.numel() for x in parameters.values())
    return {
        name: x.numel() / total
        for name, x in parameters.items()
        if x.is_floating_point()
        and x.dim() > 1
        and id(x) not in known
        and not name.startswith(parametrized)
        and not _is_known_by_name(name, modules)
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and of data parallelism."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def is_head(name: str) -> bool:
    """Whether a module name is that of an output head, or of a part of one.

    Example:
        >>> is_head("model.lm_head"), is_head("encoder.layer.0")
        (True, False)
    """
    parts = name.split(".")
    return not set(HEADS).isdisjoint(parts) or name == "output" or name.endswith("cls.predictions.decoder")


def excluded_by_default(module: str, names: Collection[str] = ()) -> str | None:
    """Why the name of a module says that its weight is not pruned unless it is asked for; None where it is pruned.

    An embedding has ``embed`` in one of the last three parts of its dotted name, or ends in ``wte``, ``wpe``,
    ``shared`` or ``relative_attention_bias``; a norm has ``norm`` in its last part or starts it with ``ln``; a head
    is what :func:`is_head` says. An adapter, whose matrices are small and may be zeros for a start, has a part such
    as ``lora_A``, ``vera_B``, ``hada_w1_a`` or ``adapter_down``. A router has ``router`` in its name, or is a
    ``gate`` or ``shared_expert_gate`` beside ``experts``.

    Args:
        module: its dotted name.
        names: the names of the modules or tensors around it.

    Example:
        >>> [excluded_by_default(name) for name in ("model.embed_tokens", "h.0.ln_1", "q.lora_A.default", "mlp.c_fc")]
        ['embedding, norm or head', 'embedding, norm or head', 'adapter', None]
    """
    *path, last = parts = module.lower().split(".")
    if any("embed" in part for part in parts[-3:]) or last in _EMBEDDINGS:
        return _PROTECTED
    if "norm" in last or last.startswith("ln") or is_head(module):
        return _PROTECTED
    if any(map(_ADAPTER.search, parts)):
        return "adapter"
    experts = ".".join([*path, "experts"])
    beside_experts = last in _ROUTERS and any(name.lower().startswith(experts) for name in names)
    return "router" if beside_experts or "router" in module.lower() else None


class NameFilter:
    """Include and exclude patterns over module names, with or without ``.weight``; see :func:`find_layers`.

    Args:
        include: None, or patterns that each match one of ``names``.
        exclude: None, or patterns that each match one of ``names`` or ``others``.
        names: what can be selected.
        others: further names, which ``exclude`` may name too.

    Raises:
        ValueError: a pattern matches nothing, or is no regular expression.
        TypeError: a pattern is not a string.

    Example:
        >>> names = NameFilter("fc*", None, ["fc1", "out"])
        >>> names.why_not(["fc1"]), names.why_not(["out"])
        (None, 'not selected by name')
    """

    def __init__(self, include: Patterns, exclude: Patterns, names: Collection[str], others: Collection[str] = ()):
        self._include = None if include is None else _Patterns("include", include, names, others)
        self._exclude = _Patterns("exclude", exclude or (), names, others)

    def why_not(self, names: Sequence[str], default: str | None = None) -> str | None:
        """Why something known under ``names`` is not selected, or None.

        ``default`` is why it is not selected where no pattern names it.
        """
        selected = default is None if self._include is None else self._include.match(names)
        if selected and not self._exclude.match(names):
            return None
        return default or _UNSELECTED


class _Patterns:
    """Patterns that each match a name. Those that are a name are looked up, since there may be thousands."""

    def __init__(self, what: str, patterns: str | Sequence[str], names: Collection[str], others: Collection[str]):
        self._exact: set[str] = set()
        self._matchers: list[Callable[[str], bool]] = []
        known, elsewhere = ({form for name in x for form in _forms(name)} for x in (names, others))
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"{what} must hold strings, got {type(pattern).__name__}")
            if pattern in known or (pattern in elsewhere and what == "exclude"):
                self._exact.add(pattern)
                continue
            match = _matcher(what, pattern)
            also = [*filter(match, others)]
            if not any(map(match, names)) and not (also and what == "exclude"):
                why = f"the names here begin with: {', '.join(sorted(names)[:5]) or 'none'}"
                if also:
                    why = f"what it names has no weight that can be pruned here: {listed(also, 3)}"
                raise ValueError(f"{what} pattern {pattern!r} matches no layer; {why}")
            self._matchers.append(match)

    def match(self, names: Iterable[str]) -> bool:
        """Whether a pattern matches one of the names."""
        return any(
            not self._exact.isdisjoint(_forms(name)) or any(match(name) for match in self._matchers) for name in names
        )


def _matcher(what: str, pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: any(fnmatchcase(form, pattern) for form in _forms(name))
    try:
        expression = re.compile(pattern[3:])
    except re.error as error:
        raise ValueError(f"{what} pattern {pattern!r} is not a regular expression: {error}") from error
    return lambda name: any(expression.search(form) for form in _forms(name))


def _forms(module: str) -> tuple[str, str]:
    return module, f"{module}.weight".removeprefix(".")


def _first_reason(names: Iterable[str], modules: Collection[str]) -> str | None:
    return next((reason for name in names if (reason := excluded_by_default(name, modules))), None)


def _is_known_by_name(parameter: str, modules: Collection[str]) -> bool:
    """Whether the name of a parameter says that it is a bias, or excluded by default."""
    is_bias = "bias" in parameter.split(".")[-1]
    return is_bias or excluded_by_default(parameter.removesuffix(".weight"), modules) is not None


def _causes(reasons: Mapping[str, str]) -> str:
    """Why each layer of a model is not pruned."""
    if not reasons:
        return "the model has no weight of Linear, Conv1d/2d/3d, Conv1D or an embedding"
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name or "the model itself")
    return "; ".join(
        f"{listed(names, 3)} ({reason if reason == _UNSELECTED else f'{reason}, excluded by default'})"
        for reason, names in by_reason.items()
    )


def _warn_of(unlayered: Mapping[str, float]) -> None:
    share = sum(unlayered.values())
    if share > _LARGE_SHARE:
        largest = sorted(unlayered, key=lambda name: -unlayered[name])
        warnings.warn(
            f"{share:.0%} of the model's weights are in parameters of no layer and stay as they are: "
            f"{listed(largest, 3)}",
            UserWarning,
            stacklevel=4,
        )


@dataclass
class _Candidate:
    """A matrix and every name that it is known under."""

    parameter: Tensor | None
    transposed: bool = False
    index: int | None = None
    in_fsdp: bool = False
    names: list[str] = field(default_factory=list)


def _candidates(model: nn.Module, stacked: Stacked) -> Collection[_Candidate]:
    found: dict[tuple[int, int | None], _Candidate] = {}
    in_fsdp = {id(part) for module in model.modules() if _is_fsdp(module) for part in module.modules()}
    # A weight that is tied to an embedding is known by the name of its layer first.
    for of_module in (_of_layer, _of_embedding):
        for name, module in model.named_modules(remove_duplicate=False):
            for own, candidate in of_module(module, stacked):
                parameter = candidate.parameter
                key = id(module if parameter is None else parameter), candidate.index
                candidate.in_fsdp = id(module) in in_fsdp
                found.setdefault(key, candidate).names += [f"{name}{x}".removeprefix(".") for x in own]
    return found.values()


def _of_layer(module: nn.Module, stacked: Stacked) -> Iterator[tuple[tuple[str, ...], _Candidate]]:
    """What to prune of a module that is no embedding, with what its names add to the module's."""
    transposed = stores_in_by_out(module)
    if transposed or isinstance(module, _LAYER_TYPES):
        yield ("",), _Candidate(module._parameters.get("weight"), transposed)
    elif stacked is True and isinstance(module, nn.MultiheadAttention):
        for key, parameter in module._parameters.items():
            if key.endswith("proj_weight") and parameter is not None:
                yield (f".{key}",), _Candidate(parameter)
    elif stacked and (turned := _stores_experts_in_by_out(module)) is not None:
        for key, parameter in module._parameters.items():
            for i in range(len(parameter) if parameter is not None and parameter.dim() == 3 else 0):
                yield (f".{key}.{i}", f".{key}"), _Candidate(parameter, turned, i)


def _stores_experts_in_by_out(module: nn.Module) -> bool | None:
    """Whether experts that transformers stacks are each stored in x out, as most of them say; None for what is none."""
    turned = getattr(module, "is_transposed", None)
    return turned if isinstance(turned, bool) else _OTHER_EXPERTS.get(type(module).__name__)


def _of_embedding(module: nn.Module, stacked: Stacked) -> Iterator[tuple[tuple[str, ...], _Candidate]]:
    if isinstance(module, _EMBEDDING_TYPES):
        yield ("",), _Candidate(module._parameters.get("weight"))


def _is_fsdp(module: nn.Module) -> bool:
    return any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__)


def stores_in_by_out(module: object) -> bool:
    """Whether a weight is stored in x out: that of GPT-2's ``Conv1D``, a linear layer, or of experts that are.

    ``Conv1D`` is known by name, so that transformers need not be installed.
    """
    if isinstance(module, HeldMatrix):
        return module.transposed
    return hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__)


def _module_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules(remove_duplicate=False)]


def _protected(model: nn.Module) -> set[int]:
    """Identities of the weights of embeddings and of the output head that the model itself names."""
    modules = [module for module in model.modules() if isinstance(module, _EMBEDDING_TYPES)]
    named_head = getattr(model, "get_output_embeddings", None)
    if callable(named_head):
        modules.append(named_head())
    return {id(module.weight) for module in modules if getattr(module, "weight", None) is not None}


def _checked(group: _Candidate) -> nn.Parameter:
    parameter, name = group.parameter, group.names[0]
    if group.in_fsdp:
        raise ValueError(f"{name!r} lies in FullyShardedDataParallel, which shards it: prune the model before that")
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(
            f"the weight of {name!r} is not a parameter of its own (parametrized, or masked by a hook): "
            "make it one, or exclude the layer"
        )
    if isinstance(parameter, UninitializedParameter) or parameter.device == torch.device("meta"):
        raise ValueError(f"the weight of {name!r} has no values yet (lazy, or on the meta device)")
    if (kind := type(parameter.data)) is not Tensor:
        raise ValueError(
            f"the weight of {name!r} is a {kind.__name__}; sharded, quantized and sparse weights are not supported"
        )
    if parameter.dim() < 2:
        raise ValueError(f"the weight of {name!r} has shape {list(parameter.shape)}, no matrix: is it sharded?")
    return parameter
