"""Safetensors checkpoints: read through a memory map, written tensor by tensor."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

#: The dtypes that can be scored, by their safetensors names.
FLOATING = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

#: Of the directories in which output is staged.
WORK_PREFIX = ".pruneops-"

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_BOOKKEEPING = {".cache", ".git"}  # of the hub and of git, which keep further copies of the weights
_WEIGHT_SUFFIXES = {".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"}
# The architectures whose blocks are built from transformers' Conv1D, which stores its weight in x out.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
_CONV1D_MODULES = {"c_attn", "c_fc", "c_proj", "q_attn"}
# How configurations call the number of experts of a layer, but for those that every token goes to.
_EXPERT_COUNTS = {
    "moe_num_experts", "n_experts", "n_routed_experts", "num_experts", "num_experts_per_layer", "num_local_experts",
    "num_moe_experts", "num_routed_experts",
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that is missing, corrupt or of a kind that cannot be read."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor: dtype by its safetensors name, shape, and bytes [start, end)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it is of any floating-point dtype, also of one that cannot be scored, such as float8."""
        return self.dtype.startswith(("F", "BF"))


class Shard:
    """One memory-mapped ``.safetensors`` file.

    Attributes:
        path: the file.
        metadata: the strings that the header carries, such as ``{"format": "pt"}``.
        tensors: name -> :class:`TensorInfo`, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        try:
            self._mapped = safe_open(path, framework="pt")  # refuses headers and sizes that do not fit
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from error
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        found = {name: _tensor_info(entry, 8 + size) for name, entry in header.items()}
        self.tensors = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))

    def tensor(self, name: str) -> Tensor:
        """The tensor as a view of the map, without a copy; writing to it would not reach the file."""
        tensor = self._mapped.get_tensor(name)
        # The format does not align its data; the kernels read whole elements.
        return tensor if tensor.data_ptr() % tensor.element_size() == 0 else tensor.clone()

    def write(self, path: Path, replacement: Callable[[str], Tensor | None]) -> None:
        """Write a copy whose header and layout are this file's, byte for byte.

        Args:
            path: the file to write.
            replacement: called with each name in the order of the file; a tensor of the same shape and dtype to
                write instead, or None to copy the old bytes.

        Raises:
            ValueError: a replacement has another shape or dtype.
            OSError: the file cannot be written.
        """
        with (
            self.path.open("rb") as source,
            path.open("wb") as target,
            mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as old,
        ):
            first = next(iter(self.tensors.values()), None)
            target.write(old[: first.start if first else len(old)])
            for name, info in self.tensors.items():
                new = replacement(name)
                with memoryview(old) as view, view[info.start : info.end] as data:
                    target.write(data if new is None else _data(name, new, info))


def _tensor_info(entry: Mapping[str, Any], offset: int) -> TensorInfo:
    start, end = entry["data_offsets"]
    return TensorInfo(entry["dtype"], tuple(entry["shape"]), offset + start, offset + end)


def _data(name: str, tensor: Tensor, info: TensorInfo) -> memoryview:
    """The bytes of a tensor that stands in for the one of ``info``."""
    if tensor.dtype != FLOATING.get(info.dtype) or tuple(tensor.shape) != info.shape:
        raise ValueError(f"{name!r} must stay {info.dtype} {list(info.shape)}, got {tensor.dtype} {list(tensor.shape)}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class Checkpoint:
    """A ``.safetensors`` file, or a Hugging Face model directory with one or many shards.

    Nothing is read but the headers until a tensor is asked for.

    Attributes:
        path: the file or directory.
        shards: its memory-mapped files.
        config: the content of ``config.json`` in the directory or beside the file; empty where there is none.
        tensors: name -> :class:`TensorInfo`, over all shards.

    Raises:
        CheckpointError: it is missing, corrupt, or holds no safetensors; or the directory holds one model twice, in
            shards with an index and in ``model.safetensors``.

    Example:
        >>> checkpoint = Checkpoint("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> checkpoint.tensors["encoder.layer.0.output.dense.weight"].shape  # doctest: +SKIP
        (384, 1536)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files, index = _find_files(self.path)
        self.shards = [Shard(file) for file in files]
        self._home = {name: shard for shard in self.shards for name in shard.tensors}
        self.tensors = {name: info for shard in self.shards for name, info in shard.tensors.items()}
        self._check_names(index)
        self.config = _read_json(self.folder / "config.json") if (self.folder / "config.json").is_file() else {}
        self._uses_conv1d = not _CONV1D_MODELS.isdisjoint(_model_types(self.config))
        self._expert_counts = set(_expert_counts(self.config))

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def _check_names(self, index: Mapping[str, str]) -> None:
        if len(self.tensors) < sum(len(shard.tensors) for shard in self.shards):
            twice = next(name for shard in self.shards for name in shard.tensors if self._home[name] is not shard)
            raise CheckpointError(f"{self.path}: tensor {twice!r} is in more than one shard")
        for name, file in index.items():
            if name not in self._home or self._home[name].path.name != file:
                raise CheckpointError(f"{self.path / file}: lacks tensor {name!r}, which {_INDEX} places there")

    def tensor(self, name: str) -> Tensor:
        """The stored tensor as a view of the memory map."""
        return self._home[name].tensor(name)

    def stored_in_by_out(self, name: str) -> bool:
        """Whether the weight is that of a ``Conv1D`` (GPT-2), the transpose of a linear layer's."""
        is_matrix_weight = name.endswith(".weight") and len(self.tensors[name].shape) == 2
        return self._uses_conv1d and is_matrix_weight and name.split(".")[-2] in _CONV1D_MODULES

    def stacks_experts(self, name: str) -> bool:
        """Whether the tensor holds one matrix for each expert, of which neither name nor shape says the orientation.

        It has 3 dimensions, and ``expert`` in its name or as many matrices as ``config.json`` says that there are
        experts (Granite's ``block_sparse_moe.input_linear.weight``). The weight of a Conv1d has 3 dimensions too, and
        may have as many outputs by chance: it is known by ``conv`` in one of the last two parts of its module's name.
        """
        shape = self.tensors[name].shape
        module = name.lower().removesuffix(".weight").split(".")
        if len(shape) != 3 or any("conv" in part for part in module[-2:]):
            return False
        return shape[0] in self._expert_counts or any("expert" in part for part in module)

    def oriented(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the stored shape of ``name``, seen as out x in; a view."""
        return tensor.t() if self.stored_in_by_out(name) else tensor

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """Shape of the weight as out x in."""
        shape = self.tensors[name].shape
        return shape[::-1] if self.stored_in_by_out(name) else shape

    def share(self, names: Iterable[str]) -> float:
        """Share of the entries of all tensors that these hold."""
        total = sum(info.numel for info in self.tensors.values())
        return sum(self.tensors[name].numel for name in names) / max(total, 1)

    def write(self, path: Path, replacement: Callable[[str], Tensor | None]) -> None:
        """Write a copy of the whole checkpoint, shard by shard; the other files of a directory come along.

        Args:
            path: the new file or directory, which must not exist.
            replacement: as in :meth:`Shard.write`.

        Raises:
            ValueError: as in :meth:`Shard.write`.
            OSError: a file cannot be read or written.
        """
        if not self.path.is_dir():
            self.shards[0].write(path, replacement)
            return
        path.mkdir()
        for file in self.side_files():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.path / file, path / file)
        for shard in self.shards:
            shard.write(path / shard.path.name, replacement)

    def output_files(self) -> list[Path] | None:
        """What :meth:`write` makes, relative to the new directory; None for a single file."""
        if not self.path.is_dir():
            return None
        return [Path(shard.path.name) for shard in self.shards] + self.side_files()

    def side_files(self) -> list[Path]:
        """The directory's other files, relative to it; links are followed, bookkeeping and staged output left out."""
        if not self.path.is_dir():
            return []
        shards = {shard.path for shard in self.shards}
        return sorted(file.relative_to(self.path) for file in _files(self.path) if file not in shards)

    def other_weights(self) -> list[str]:
        """The side files that may hold weights of their own, by their suffix."""
        return [str(file) for file in self.side_files() if file.suffix in _WEIGHT_SUFFIXES]


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if not entry.is_dir():
            yield entry
        elif entry.name not in _BOOKKEEPING and not entry.name.startswith(WORK_PREFIX):
            yield from _files(entry)


def _find_files(path: Path) -> tuple[list[Path], Mapping[str, str]]:
    """The shards of a checkpoint, and the index that says which tensor is in which (empty for one file)."""
    if not path.is_dir():
        return [path], {}
    if (path / _INDEX).is_file():
        index = _read_index(path / _INDEX)
        files = sorted(set(index.values()))
        if (path / _SINGLE).is_file() and _SINGLE not in files:
            # As save_pretrained leaves it behind; from_pretrained loads only the single file.
            raise CheckpointError(
                f"{path}: holds the shards of {_INDEX} and also {_SINGLE}, which is what transformers loads; "
                "delete the file, or the index with its shards, whichever is out of date"
            )
        return [path / file for file in files], index
    if (path / _SINGLE).is_file():
        return [path / _SINGLE], {}
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(f"{path}: has neither {_INDEX} nor {_SINGLE}, but {len(found)} .safetensors files")
    return found, {}


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = _read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{path}: has no weight_map")
    for file in index.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path}: {file!r} is not the name of a file in this directory")
    return index


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration, and those nested in it, such as ``text_config``."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _configs(value)


def _model_types(config: Mapping[str, Any]) -> set[str]:
    """Every ``model_type`` of a configuration and of the configurations nested in it."""
    return {kind for part in _configs(config) if isinstance(kind := part.get("model_type"), str)}


def _expert_counts(config: Mapping[str, Any]) -> Iterator[int]:
    """Every number of experts that a configuration or one nested in it declares; some declare one for each layer."""
    for part in _configs(config):
        for value in map(part.get, _EXPERT_COUNTS & part.keys()):
            yield from (count for count in (value if isinstance(value, list) else [value]) if type(count) is int)
