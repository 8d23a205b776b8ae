"""Which weights of a transformer belong together: the heads of an attention, the neurons of a feed-forward block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers import stores_in_by_out


@dataclass(frozen=True, eq=False)
class Slice:
    """A parameter of a group and where its heads or neurons lie.

    Attributes:
        module: holds the parameter.
        key: the parameter's name in the module, ``weight`` or ``bias``.
        name: its full name.
        dim: dimension of the heads or neurons, in the stored layout.
        parts: equal parts stacked along ``dim`` that each hold all of them, as query, key and value in GPT-2.
    """

    module: nn.Module
    key: str
    name: str
    dim: int
    parts: int = 1

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        return getattr(self.module, self.key)


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters that are cut together.

    Attributes:
        name: the module that holds them all.
        kind: ``heads``, ``neurons``, or ``rows`` of a layer whose place in the model is not known.
        slices: all of its parameters.
        units: what is cut as one: a head with its keys and values (with grouped-query attention the query heads that
            share them), or a neuron.
        instances: heads or neurons; a multiple of ``units``.
        stride: rows of an instance.
        holder: the attention module, which keeps the head counts.
    """

    name: str
    kind: str
    slices: tuple[Slice, ...]
    units: int
    instances: int
    stride: int
    holder: nn.Module | None = None

    @property
    def per_unit(self) -> int:
        """Query heads that share one key and value; 1 elsewhere."""
        return self.instances // max(self.units, 1)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells this group from all others in the model."""
        return (self.kind, self.slices[0].name, self.slices[0].dim)

    def slice_of(self, name: str) -> Slice:
        """The parameter of that full name."""
        return next(x for x in self.slices if x.name == name)

    @property
    def output(self) -> Slice:
        """The weight that reads the heads or neurons."""
        return self.slices[-1]

    @property
    def output_weight(self) -> Tensor:
        """Its values, out x in."""
        weight = self.output.parameter.detach()
        return weight if self.output.dim == 1 else weight.t()

    @property
    def output_gradient(self) -> Tensor | None:
        """Its gradient, out x in."""
        grad = self.output.parameter.grad
        return grad if grad is None or self.output.dim == 1 else grad.t()


@dataclass(frozen=True)
class _Layout:
    """Names of the layers of a group, relative to the module that holds them."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    parts: int = 1
    holder: str = ""


_LAYOUTS = (
    _Layout("heads", ("self.query", "self.key", "self.value"), "output.dense", holder="self"),  # BERT, RoBERTa
    _Layout("heads", ("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen, ViT
    _Layout("heads", ("q_proj", "k_proj", "v_proj"), "out_proj"),  # OPT, BART, CLIP, GPT-J
    _Layout("heads", ("q_proj", "k_proj", "v_proj"), "dense"),  # Phi
    _Layout("heads", ("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT in transformers 4
    _Layout("heads", ("c_attn",), "c_proj", parts=3),  # GPT-2
    _Layout("neurons", ("intermediate.dense",), "output.dense"),  # BERT, RoBERTa
    _Layout("neurons", ("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen
    _Layout("neurons", ("gate_up_proj",), "down_proj", parts=2),  # Phi-3
    _Layout("neurons", ("w1", "w3"), "w2"),  # experts by themselves
    _Layout("neurons", ("fc1",), "fc2"),  # OPT, BART, CLIP, ViT, Phi
    _Layout("neurons", ("fc_in",), "fc_out"),  # GPT-J, CodeGen
    _Layout("neurons", ("dense_h_to_4h",), "dense_4h_to_h"),  # Falcon, BLOOM, GPT-NeoX
    _Layout("neurons", ("wi",), "wo"),  # T5
    _Layout("neurons", ("wi_0", "wi_1"), "wo"),  # T5 1.1, Flan-T5
    _Layout("neurons", ("ffn",), "ffn_output"),  # ALBERT
    _Layout("neurons", ("lin1",), "lin2"),  # DistilBERT
    _Layout("neurons", ("c_fc",), "c_proj"),  # GPT-2
)
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size")
_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_WIDTHS = ("all_head_size", "split_size")


def find_groups(model: nn.Module) -> list[Group]:
    """The attention heads and feed-forward neurons of a model, by the names that transformers gives their layers.

    Args:
        model: any module; what has other names is not found.

    Returns:
        The groups in the order of ``model.named_modules()``.

    Example:
        >>> block = nn.ModuleDict({"fc1": nn.Linear(4, 16), "fc2": nn.Linear(16, 4)})
        >>> [(group.kind, group.units) for group in find_groups(block)]
        [('neurons', 16)]
    """
    found = (_match(name, module, layout) for name, module in model.named_modules() for layout in _LAYOUTS)
    return [group for group in found if group is not None]


def find_group(model: nn.Module, name: str) -> Group | None:
    """The group of the parameter of that full name, or None where it is part of none that is known."""
    path = name.rpartition(".")[0]
    while True:
        module = model.get_submodule(path)
        for layout in _LAYOUTS:
            group = _match(path, module, layout)
            if group is not None and any(x.name == name for x in group.slices):
                return group
        if not path:
            return None
        path = path.rpartition(".")[0]


def rows_of(model: nn.Module, name: str, transpose: bool, stride: int) -> Group:
    """A group of one layer: the rows (``transpose``: columns) of the named parameter, and the bias that goes with them.

    Raises:
        ValueError: ``stride`` does not divide them, or they are part of an attention that shares keys and values.
    """
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    # An attention that reuses the keys and values of another has none of its own, and is no group of heads.
    attention = path.rpartition(".")[0]
    check_unshared(model.get_submodule(attention), attention, name)
    parameter = getattr(module, key)
    dim = 1 if transpose and parameter.dim() > 1 else 0
    slices: tuple[Slice, ...] = (Slice(module, key, name, dim),)
    if is_linear(module) and (key == "bias" or dim == _output_dim(module)):
        slices = tuple(_slices(path, module, _output_dim(module)))
    size = parameter.shape[dim]
    if size % stride:
        raise ValueError(f"{name!r}: stride {stride} does not divide its {size} rows along dimension {dim}")
    return Group(path, "rows", slices, size // stride, size // stride, stride)


def is_linear(module: object) -> bool:
    """Whether a module is a Linear layer or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear) or stores_in_by_out(module)


def uncovered(group: Group) -> str | None:
    """Name of a parameter beside the known ones that has one entry per head or per row of the heads, or None."""
    if group.holder is None:
        return None
    counts = {n * size for n in (group.instances, group.units) for size in (1, group.stride)} - {group.stride}
    known = {id(parameter) for x in group.slices for parameter in x.module.parameters()}
    for name, parameter in group.holder.named_parameters():
        if id(parameter) not in known and not counts.isdisjoint(parameter.shape):
            return name
    return None


def check_unshared(attention: nn.Module, path: str, name: str) -> None:
    """Whether the heads of an attention can be cut without those of other layers.

    Raises:
        ValueError: its keys and values are shared; the message has the weight's ``name`` and the attention's ``path``.
    """
    if _shares_keys_and_values(attention):
        raise ValueError(
            f"{name!r}: the heads of {path!r} cannot be cut, because its keys and values are shared with other layers"
        )


def _shares_keys_and_values(attention: nn.Module) -> bool:
    """Whether an attention reuses the keys and values of another, or another its own; by the names of Gemma3n."""
    reuses = getattr(attention, "is_kv_shared_layer", None)
    config: Any = getattr(attention, "config", None)
    layers = getattr(config, "num_kv_shared_layers", None)
    if reuses or layers == 0:  # with 0 transformers 4 marks a layer too, which nobody reads
        return bool(reuses)
    stores = getattr(attention, "store_full_length_kv", None)
    if stores is None and reuses is not None and layers is not None:
        # The first versions mark only who reuses: it reads the last layer of its type that has keys of its own.
        own = config.layer_types[attention.layer_idx : config.num_hidden_layers - layers]
        return own[0] not in own[1:]
    return bool(stores)


def update_counts(group: Group, units: int) -> None:
    """Tell the attention module of a group how many heads it has left."""
    if group.holder is None:
        return
    heads = units * group.per_unit
    values = dict.fromkeys(_HEAD_COUNTS, heads) | dict.fromkeys(_KEY_VALUE_COUNTS, units)
    for key, value in (values | dict.fromkeys(_WIDTHS, heads * group.stride)).items():
        if isinstance(getattr(group.holder, key, None), int):
            setattr(group.holder, key, value)


def _match(name: str, module: nn.Module, layout: _Layout) -> Group | None:
    paths = [*layout.inputs, layout.output]
    layers = [layer for path in paths if (layer := _child(module, path)) is not None and is_linear(layer)]
    if len(layers) < len(paths):
        return None
    slices: list[Slice] = []
    for path, layer in zip(paths[:-1], layers[:-1], strict=True):
        slices += _slices(_join(name, path), layer, _output_dim(layer), layout.parts)
    output = layers[-1]
    last = Slice(output, "weight", _join(name, f"{layout.output}.weight"), 1 - _output_dim(output))
    width = last.parameter.shape[last.dim]
    widths = [layer.get_parameter("weight").shape[_output_dim(layer)] // layout.parts for layer in layers[:-1]]
    holder, stride = None, 1
    if layout.kind == "heads":
        holder = _child(module, layout.holder) or module
        stride = _head_size(holder, width)
    narrow = min(widths)
    if not narrow or stride == 0 or max(widths) != width or any(x % stride or width % x for x in widths):
        return None
    return Group(name, layout.kind, (*slices, last), narrow // stride, width // stride, stride, holder)


def _slices(name: str, layer: nn.Module, dim: int, parts: int = 1) -> Iterator[Slice]:
    """A layer's weight along ``dim``, and its bias, which has an entry for each output."""
    yield Slice(layer, "weight", _join(name, "weight"), dim, parts)
    if getattr(layer, "bias", None) is not None:
        yield Slice(layer, "bias", _join(name, "bias"), 0, parts)


def _head_size(holder: nn.Module, width: int) -> int:
    """Rows of a head, by what the attention module keeps; 0 where it keeps neither their size nor their count."""
    for key in _HEAD_SIZES:
        if isinstance(size := getattr(holder, key, None), int):
            return size
    for key in _HEAD_COUNTS:
        if isinstance(count := getattr(holder, key, None), int):
            return width // count
    return 0


def _output_dim(layer: nn.Module) -> int:
    return 1 if stores_in_by_out(layer) else 0


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for key in path.split(".") if path else ():
        module = module._modules.get(key)  # type: ignore[assignment]
        if module is None:
            return None
    return module


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
