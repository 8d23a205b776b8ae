"""Small checkpoints, and the command line run on them."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import pruneops
from pruneops.cli import main

LAYERS = {f"layer.{i}.{name}.weight": shape for i in range(11) for name, shape in (("up", (8, 16)), ("down", (16, 8)))}

#: For subprocesses: the package under test, without the warning where it is not compiled.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pruneops.__file__).parents[1]), "PYTHONWARNINGS": "ignore"}


def model(dtype=torch.float32, seed=0):
    """Tensors of a small model: prunable layers, and an embedding, norms, biases and a head that are not."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"embed_tokens.weight": (20, 8), **LAYERS, "norm.weight": (8,), "lm_head.weight": (20, 8)}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in LAYERS.items()}
    return {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}


def one_file(path):
    save_file(model(), path, metadata={"format": "pt"})
    return path


def hugging_face(path, parts, config=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (path / "vocab").mkdir()
    (path / "vocab" / "words.txt").write_text("some words")
    if len(parts) == 1:
        save_file(parts[0], path / "model.safetensors", metadata={"format": "pt"})
        return path
    files = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        save_file(part, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def split(tensors, count):
    """The tensors dealt out to ``count`` shards, so that no shard is a run of layers."""
    names = sorted(tensors)
    return [{name: tensors[name] for name in names[i::count]} for i in range(count)]


def load(path):
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def tree(path):
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def run(*args):
    return main([str(arg) for arg in args])


def run_json(capsys, *args):
    assert run(*args, "--json") == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, root, *args, code=2):
    """The one line that a refused command leaves on stderr, with the tree under ``root`` as it was."""
    before = tree(root)
    assert run(*args) == code
    out, err = capsys.readouterr()
    assert tree(root) == before
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("pruneops: ")
    return err
