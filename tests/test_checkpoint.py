"""Checkpoint files: what is read, what is written, and that output appears whole or not at all."""

import errno
import json
import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tree
from safetensors.torch import load_file, save_file

from pruneops.checkpoint import Checkpoint, CheckpointError, Shard
from pruneops.staging import staged


def raw_file(path, entries, metadata=None):
    """Write the format by hand: entries are (name, dtype name, shape, bytes), laid out in this order."""
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, dtype, shape, data in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in entries))


def sharded(folder, shards, **index):
    """A Hugging Face directory of the given {file name: tensors}."""
    folder.mkdir()
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **index}))
    return folder


def test_tensors_are_views_of_the_map(tmp_path):
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "a.safetensors")
    shard = Shard(tmp_path / "a.safetensors")
    first, second = shard.tensor("w"), shard.tensor("w")
    assert first.data_ptr() == second.data_ptr()
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_misaligned_tensors_are_read_and_written(tmp_path):
    values = np.arange(4, dtype="<f4")
    raw_file(tmp_path / "a.safetensors", [("flag", "U8", [1], b"\7"), ("w", "F32", [2, 2], values.tobytes())])
    shard = Shard(tmp_path / "a.safetensors")
    tensor = shard.tensor("w")
    assert tensor.data_ptr() % 4 == 0
    shard.write(tmp_path / "b.safetensors", lambda name: tensor + 1 if name == "w" else None)
    again = load_file(tmp_path / "b.safetensors")
    assert again["w"].flatten().tolist() == [1, 2, 3, 4]
    assert again["flag"].tolist() == [7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_write_without_replacement_is_byte_identical(tmp_path, dtype):
    tensors = {"b.weight": torch.randn(3, 5).to(dtype), "a": torch.ones(()), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", "note": "ünicode"})
    Shard(tmp_path / "a.safetensors").write(tmp_path / "b.safetensors", lambda name: None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_unknown_dtypes_and_header_order_survive(tmp_path):
    entries = [("z", "F8_E4M3", [3], b"abc"), ("a", "I64", [1], b"12345678"), ("m", "F4", [2], b"x")]
    raw_file(tmp_path / "a.safetensors", entries, {"format": "pt"})
    shard = Shard(tmp_path / "a.safetensors")
    assert list(shard.tensors) == ["z", "a", "m"]
    assert shard.metadata == {"format": "pt"}
    shard.write(tmp_path / "b.safetensors", lambda name: None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_replacements_are_written_in_place_of_the_old(tmp_path):
    tensors = {"w": torch.randn(4, 6, dtype=torch.float32).bfloat16(), "v": torch.randn(3)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    new = torch.randn(6, 4).bfloat16().t()
    Shard(tmp_path / "a.safetensors").write(tmp_path / "b.safetensors", {"w": new}.get)
    again = load_file(tmp_path / "b.safetensors")
    assert torch.equal(again["w"], new)
    assert torch.equal(again["v"], tensors["v"])


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float16)])
def test_replacement_of_another_shape_or_dtype_is_refused(tmp_path, wrong):
    save_file({"w": torch.zeros(3, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'w' must stay F32 \[3, 2\]"):
        Shard(tmp_path / "a.safetensors").write(tmp_path / "b.safetensors", lambda name: wrong)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, struct.pack("<Q", 2) + b"[]"])
def test_corrupt_file(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a valid safetensors file"):
        Checkpoint(tmp_path / "bad.safetensors")


def test_truncated_file(tmp_path):
    save_file({"w": torch.zeros(10)}, tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", (tmp_path / "a.safetensors").stat().st_size - 1)
    with pytest.raises(CheckpointError, match="not a valid"):
        Checkpoint(tmp_path / "a.safetensors")


def test_missing_paths(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"but 0 \.safetensors files"):
        Checkpoint(tmp_path)


def test_directory_with_shards(tmp_path):
    shards = {
        "model-00001-of-00002.safetensors": {"a": torch.ones(2)},
        "model-00002-of-00002.safetensors": {"b": torch.zeros(3)},
    }
    checkpoint = Checkpoint(sharded(tmp_path / "m", shards))
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.tensor("b").tolist() == [0, 0, 0]


def test_missing_shard(tmp_path):
    folder = sharded(tmp_path / "m", {"x.safetensors": {"a": torch.ones(2)}, "y.safetensors": {"b": torch.zeros(3)}})
    (folder / "y.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"y\.safetensors: no such file"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "not the name of a file in this directory"),
        ('{"weight_map": {"other": "x.safetensors"}}', "lacks tensor 'other'"),
    ],
)
def test_bad_index(tmp_path, index, message):
    folder = sharded(tmp_path / "m", {"x.safetensors": {"a": torch.ones(2)}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


def test_tensor_in_two_shards(tmp_path):
    folder = sharded(tmp_path / "m", {"x.safetensors": {"a": torch.ones(2)}, "y.safetensors": {"a": torch.ones(2)}})
    weight_map = {"a": "x.safetensors", "b": "y.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="'a' is in more than one shard"):
        Checkpoint(folder)


def test_one_model_twice_is_refused(tmp_path):
    """As save_pretrained leaves it where it is called with another size of shards; from_pretrained loads the file."""
    folder = sharded(tmp_path / "m", {"x.safetensors": {"a": torch.ones(2)}, "y.safetensors": {"b": torch.ones(3)}})
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds the shards of .*index\.json and also model\.safetensors, .* delete"
    ):
        Checkpoint(folder)
    assert Checkpoint(folder / "model.safetensors").tensor("a").tolist() == [0, 0]
    (folder / "model.safetensors").unlink()
    assert Checkpoint(folder).tensor("a").tolist() == [1, 1]


def test_an_index_of_the_single_file(tmp_path):
    folder = sharded(tmp_path / "m", {"model.safetensors": {"a": torch.ones(2)}})
    assert list(Checkpoint(folder).tensors) == ["a"]


@pytest.mark.parametrize("config", [{"model_type": "gpt2"}, {"decoder": {"model_type": "gpt2"}}])
def test_conv1d_weights_are_seen_out_by_in(tmp_path, config):
    names = ("h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "lm_head.weight")
    tensors = {names[0]: torch.randn(4, 12), names[1]: torch.randn(12), names[2]: torch.randn(9, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    assert [checkpoint.stored_in_by_out(name) for name in names] == [True, False, False]
    assert checkpoint.weight_shape(names[0]) == (12, 4)
    assert torch.equal(checkpoint.oriented(names[0], checkpoint.tensor(names[0])), tensors[names[0]].t())


def test_the_same_names_elsewhere_are_linear(tmp_path):
    save_file({"h.0.mlp.c_fc.weight": torch.randn(4, 12)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_bigcode"}')
    assert not Checkpoint(tmp_path).stored_in_by_out("h.0.mlp.c_fc.weight")


STACKS = {
    "h.0.block_sparse_moe.input_linear.weight": (4, 6, 8), "h.0.mlp.experts.gate_up_proj": (3, 6, 8),
    "h.0.shared_expert.w1.weight": (3, 6, 8), "conv_encoder.moe.output_linear.weight": (4, 6, 8),
}  # fmt: skip
NO_STACKS = {
    "h.0.router.weight": (4, 8), "h.0.experts.0.w1.weight": (4, 8), "h.0.mamba.conv1d.weight": (4, 1, 3),
    "vocoder.convs1.0.weight": (4, 6, 3), "patch.weight": (4, 6, 3, 3), "mixer.weight": (5, 6, 3),
    "experts.0.conv.weight": (4, 6, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"num_local_experts": 4}, {"num_experts": 4}, {"n_routed_experts": 4}, {"moe_num_experts": [4, 2]},
        {"num_experts_per_layer": [2, 4, 4]}, {"text_config": {"ffn_config": {"moe_num_experts": 4}}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_stacks_of_experts_are_known_by_their_number_or_name(tmp_path, config):
    """The other numbers of a configuration that speak of experts count none of them."""
    config = {"num_experts_per_tok": 5, "n_shared_experts": 5, "num_hidden_layers": 5} | config
    shapes = STACKS | NO_STACKS
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    assert {name for name in shapes if checkpoint.stacks_experts(name)} == set(STACKS)


@pytest.mark.parametrize("count", [None, "4", True, 4.0, {"a": 4}, ["4"]])
def test_what_is_no_number_of_experts_is_ignored(tmp_path, count):
    save_file({"a.weight": torch.zeros(4, 6, 8), "b.weight": torch.zeros(1, 6, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_experts": count}))
    checkpoint = Checkpoint(tmp_path)
    assert not any(checkpoint.stacks_experts(name) for name in checkpoint.tensors)


def test_side_files_are_copied_and_bookkeeping_is_not(tmp_path):
    folder = sharded(tmp_path / "m", {"x.safetensors": {"a": torch.ones(2)}})
    for file in (
        "config.json",
        "1_Pooling/config.json",
        ".git/lfs/objects/ab",
        ".cache/huggingface/x.lock",
        ".gitattributes",
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    (tmp_path / "blob").write_text("vocabulary")
    (folder / "vocab.txt").symlink_to(tmp_path / "blob")
    Checkpoint(folder).write(tmp_path / "out", lambda name: None)
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    copied = [".gitattributes", "1_Pooling/config.json", "config.json", "model.safetensors.index.json", "vocab.txt"]
    assert found == [*copied, "x.safetensors"]
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocabulary"


class Interrupt(BaseException):
    pass


def files(kind, name):
    """What the kind of output is announced to hold."""
    return [Path(name)] if kind == "directory" else None


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_staged_output_appears_at_the_end(tmp_path, kind):
    target = tmp_path / "new" / "deep" / "target"
    with staged(target, files=files(kind, "x")) as path:
        if kind == "directory":
            path.mkdir()
        (path if kind == "file" else path / "x").write_text("content")
        assert not target.exists()
    assert (target if kind == "file" else target / "x").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def put_old(target, kind):
    """Something at ``target``: nothing, a file, or a directory with a file."""
    if kind == "directory":
        target.mkdir()
        (target / "x").write_text("old")
    elif kind == "file":
        target.write_text("old")


def write_and_fail(target, error, kind):
    with staged(target, overwrite=True, files=files(kind, "x")) as path:
        if kind == "directory":
            path.mkdir()
        (path / "x" if kind == "directory" else path).write_text("half")
        raise error


@pytest.mark.parametrize("error", [Interrupt(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_failed_block_leaves_everything_as_it_was(tmp_path, error, is_new, kind):
    target = tmp_path / ("new/target" if is_new else "target")
    put_old(target, "nothing" if is_new else kind)
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        write_and_fail(target, error, kind)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("old", ["nothing", "same"])
@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("name", ["target", "replaced"])
def test_overwrite_replaces_the_whole(tmp_path, old, kind, name):
    target = tmp_path / name
    put_old(target, kind if old == "same" else old)
    with staged(target, overwrite=True, files=[Path("x"), Path("y")] if kind == "directory" else None) as path:
        if kind == "directory":
            path.mkdir()
        (path / "y" if kind == "directory" else path).write_text("new")
    assert tree(tmp_path) == ({name: None, f"{name}/y": b"new"} if kind == "directory" else {name: b"new"})


def holding(target, *names):
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_the_output_would_not_replace_is_never_removed(tmp_path, overwrite):
    target = tmp_path / "target"
    holding(target, "x", "sub/y", "sub/mine", ".git/HEAD", "notes.md", "zoo")
    (target / "link").symlink_to(tmp_path)
    before = tree(tmp_path)
    with (
        pytest.raises(FileExistsError, match=r"\(link, notes\.md, zoo and 2 more\)"),
        staged(target, overwrite=overwrite, files=[Path("x"), Path("sub/y")]),
    ):
        pytest.fail("refused before anything is written")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_file_does_not_replace_a_directory_nor_the_other_way_round(tmp_path, kind):
    target = tmp_path / "target"
    put_old(target, "directory" if kind == "file" else "file")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=f"is no {kind}"), staged(target, overwrite=True, files=files(kind, "x")):
        pytest.fail("refused before anything is written")
    assert tree(tmp_path) == before


def test_an_empty_directory_is_filled(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with staged(target, files=[Path("x")]) as path:
        holding(path, "x")
    assert tree(tmp_path) == {"target": None, "target/x": b"mine"}


def stage_and_disturb(target, late):
    with staged(target, overwrite=True, files=[Path("sub/x")]) as path:
        holding(path, "sub/x")
        holding(target, late)


def test_what_comes_while_the_output_is_written_is_not_removed(tmp_path):
    beside, inside = tmp_path / "beside", tmp_path / "inside"
    beside.mkdir()
    stage_and_disturb(beside, "late")
    assert tree(beside) == {"late": b"mine", "sub": None, "sub/x": b"mine"}
    inside.mkdir()
    with pytest.raises(FileExistsError, match=r"\(sub/late\)"):
        stage_and_disturb(inside, "sub/late")
    assert tree(inside) == {"sub": None, "sub/late": b"mine"}


def write_late(target):
    with staged(target) as path:
        path.write_text("mine")
        target.write_text("theirs")


def test_existing_output_is_refused_even_when_it_comes_late(tmp_path):
    target = tmp_path / "target"
    with pytest.raises(FileExistsError, match="exists already; overwrite=True replaces it"):
        write_late(target)
    assert tree(tmp_path) == {"target": b"theirs"}


def fail_renames(monkeypatch, first, last):
    """Interrupt the moves of this range, counted from 1."""
    rename, calls = os.rename, []

    def fail(source, destination):
        calls.append(source)
        if first <= len(calls) <= last:
            raise Interrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)


def replace_two(target):
    with staged(target, overwrite=True, files=[Path("sub/x"), Path("y")]) as path:
        holding(path, "sub/x", "y")


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_failed_swap_brings_the_old_content_back(tmp_path, monkeypatch, first):
    (tmp_path / "target" / "sub").mkdir(parents=True)
    for name in ("sub/x", "y"):
        (tmp_path / "target" / name).write_text("old")
    before = tree(tmp_path)
    fail_renames(monkeypatch, first, first)
    with pytest.raises(Interrupt):
        replace_two(tmp_path / "target")
    assert tree(tmp_path) == before


def test_old_content_that_cannot_come_back_is_kept(tmp_path, monkeypatch):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "y").write_text("old")
    fail_renames(monkeypatch, 2, 9)
    with pytest.raises(Interrupt):
        replace_two(tmp_path / "target")
    assert "old" in [path.read_text() for path in tmp_path.rglob("y")]


def test_the_directory_stays_the_same(tmp_path, monkeypatch):
    """It may be the one that the user is in, or a mount point."""
    (tmp_path / "target").mkdir()
    monkeypatch.chdir(tmp_path / "target")
    for overwrite in (False, True):
        with staged(".", overwrite=overwrite, files=[Path("x")]) as path:
            holding(path, "x")
        assert os.listdir(".") == ["x"]


def test_an_error_of_safetensors_names_the_output(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught, staged(tmp_path / "target") as path:
            save_file({"a": torch.ones(4096)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "target")
    assert tree(tmp_path) == {}


def test_full_disk_names_the_output(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, staged(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "target")
