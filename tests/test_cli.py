"""The command line: what it writes, what it prints, and that errors leave everything as it was."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pruneops
from pruneops.checkpoint import Shard
from pruneops.cli import main
from pruneops.patterns import parse_pattern

LAYERS = {f"layer.{i}.{name}.weight": shape for i in range(11) for name, shape in (("up", (8, 16)), ("down", (16, 8)))}
PNG = b"\x89PNG\r\n\x1a\n"


def model(dtype=torch.float32, seed=0):
    """Tensors of a small model: prunable layers, and an embedding, norms, biases and a head that are not."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"embed_tokens.weight": (20, 8), **LAYERS, "norm.weight": (8,), "lm_head.weight": (20, 8)}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in LAYERS.items()}
    return {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def single(tmp_path):
    """One file."""
    path = tmp_path / "dense.safetensors"
    save_file(model(), path, metadata={"format": "pt"})
    return path


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face directory with one file."""
    return hugging_face(tmp_path / "hf", [model()])


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


def numpy_global(tensors, names, sparsity):
    """The oracle of global magnitude: name -> pruned array, ties to the later entry of the later name."""
    scores = np.concatenate([np.abs(tensors[name].double().numpy()).ravel() for name in names])
    pruned = np.argsort(scores[::-1], kind="stable")[: int(sparsity * scores.size)]
    keep = np.ones(scores.size, bool)
    keep[scores.size - 1 - pruned] = False
    parts = np.split(keep, np.cumsum([tensors[name].numel() for name in names])[:-1])
    arrays = {name: tensors[name].double().numpy() for name in names}
    return {name: arrays[name] * part.reshape(arrays[name].shape) for name, part in zip(names, parts, strict=True)}


def assert_pruned(found, dense, expected):
    assert found.keys() == dense.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dense[name].dtype
        if name in expected:
            np.testing.assert_array_equal(tensor.double().numpy(), expected[name], err_msg=name)
        else:
            assert torch.equal(tensor, dense[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_global_magnitude_matches_numpy(tmp_path, capsys, dtype):
    dense = model(dtype)
    save_file(dense, tmp_path / "a.safetensors")
    document = run_json(
        capsys, "prune", tmp_path / "a.safetensors", "--sparsity", 0.6, "--output", tmp_path / "b.safetensors"
    )
    assert_pruned(load(tmp_path / "b.safetensors"), dense, numpy_global(dense, list(LAYERS), 0.6))
    total = sum(np.prod(shape) for shape in LAYERS.values())
    assert document["total"] - document["kept"] == int(0.6 * total)
    assert [layer["name"] for layer in document["layers"]] == sorted(LAYERS, key=lambda n: (int(n.split(".")[1]), n))


def test_ties_do_not_depend_on_the_shards(tmp_path):
    dense = {name: tensor.round() for name, tensor in model().items()}
    outputs = []
    for count in (1, 2, 5):
        source = hugging_face(tmp_path / f"in{count}", split(dense, count))
        assert run("prune", source, "--sparsity", 0.5, "--output", tmp_path / f"out{count}") == 0
        outputs.append(load(tmp_path / f"out{count}"))
    names = sorted(LAYERS, key=lambda name: (int(name.split(".")[1]), name))
    for found in outputs:
        assert_pruned(found, dense, numpy_global(dense, names, 0.5))


@pytest.mark.parametrize("scope", ["local", "row"])
def test_scopes(single, tmp_path, scope):
    assert run("prune", single, "--sparsity", 0.25, "--scope", scope, "--output", tmp_path / "b.safetensors") == 0
    for name, tensor in load(tmp_path / "b.safetensors").items():
        if name in LAYERS:
            zeros = (tensor == 0).sum(1)
            assert zeros.sum() == tensor.numel() // 4
            assert scope == "local" or (zeros == tensor.shape[1] // 4).all()


@pytest.mark.parametrize(("pattern", "found"), [("4x1", "4x1"), ("1xchannel", "1xchannel"), ("2x4", "2x4")])
def test_block_patterns_are_found_again(folder, tmp_path, capsys, pattern, found):
    document = run_json(capsys, "prune", folder, "--sparsity", 0.5, "--pattern", pattern, "--output", tmp_path / "out")
    layers = run_json(capsys, "inspect", tmp_path / "out")["layers"]
    blocks = {layer["name"]: layer["block"] for layer in layers}
    assert sum(blocks[name] == found for name in LAYERS) > len(LAYERS) / 2
    zeros = sum(layer["zeros"] for layer in layers if layer["name"] in LAYERS)
    assert document["total"] - document["kept"] == zeros
    blocks_pruned = [
        layer["zeros"] * np.prod(parse_pattern(pattern).grid(layer["shape"])) // layer["numel"] for layer in layers
    ]
    all_blocks = sum(np.prod(parse_pattern(pattern).grid(shape)) for shape in LAYERS.values())
    assert sum(blocks_pruned) == all_blocks // 2


def test_nm_needs_no_sparsity_and_is_found_again(folder, tmp_path, capsys):
    document = run_json(capsys, "prune", folder, "--pattern", "2:4", "--output", tmp_path / "out")
    assert document["sparsity_asked"] == document["sparsity"] == 0.5
    layers = {layer["name"]: layer for layer in run_json(capsys, "inspect", tmp_path / "out")["layers"]}
    for name in LAYERS:
        assert layers[name]["nm"] == ["2:4"]
        assert layers[name]["sparsity"] == 0.5
    assert layers["lm_head.weight"]["nm"] == []


def test_conv1d_is_pruned_through_its_transpose(tmp_path):
    weight, head = torch.randn(8, 6), torch.randn(10, 8)
    source = hugging_face(
        tmp_path / "in", [{"h.0.mlp.c_fc.weight": weight, "wte.weight": head}], {"model_type": "gpt2"}
    )
    assert run("prune", source, "--pattern", "2:4", "--output", tmp_path / "out") == 0
    found = load(tmp_path / "out")
    assert ((found["h.0.mlp.c_fc.weight"] != 0).reshape(2, 4, 6).sum(1) == 2).all()
    assert torch.equal(found["wte.weight"], head)


def test_limits_of_each_tensor(single, tmp_path, capsys):
    limits = ("--min-sparsity", 0.45, "--max-sparsity", 0.55)
    document = run_json(capsys, "prune", single, "--sparsity", 0.5, *limits, "--output", tmp_path / "b.safetensors")
    assert document["sparsity"] == 0.5
    assert all(0.45 <= layer["sparsity"] <= 0.55 for layer in document["layers"])


def test_directory_keeps_metadata_and_side_files(folder, tmp_path):
    assert run("prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out") == 0
    before, after = tree(folder), tree(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_zero_sparsity_is_a_byte_identical_copy(folder, tmp_path):
    assert run("prune", folder, "--sparsity", 0, "--output", tmp_path / "out") == 0
    assert tree(folder) == tree(tmp_path / "out")


def test_file_into_a_directory(single, tmp_path):
    for _ in range(2):
        assert run("prune", single, "--sparsity", 0.5, "--output", tmp_path / "new" / "out", "--overwrite") == 0
    assert list(tree(tmp_path / "new")) == ["out", "out/dense.safetensors"]


def test_include_and_exclude(folder, tmp_path, capsys):
    names = ("--include", "layer.1.*", "--include", "lm_head", "--exclude", r"re:down\.weight$")
    document = run_json(capsys, "prune", folder, "--sparsity", 0.5, *names, "--output", tmp_path / "out")
    assert [layer["name"] for layer in document["layers"]] == ["layer.1.up.weight", "lm_head.weight"]
    assert document["skipped"]["layer.2.up.weight"] == "not selected by name"
    assert document["skipped"]["embed_tokens.weight"] == "embedding, norm or head"


def test_other_dtypes_are_left_alone_and_listed(tmp_path, capsys):
    quantized = {"q.weight": torch.randint(-9, 9, (8, 8), dtype=torch.int8)}
    quantized["f.weight"] = torch.randn(8, 8).to(torch.float8_e4m3fn)
    save_file({**quantized, "w.weight": torch.randn(8, 8)}, tmp_path / "a.safetensors")
    document = run_json(
        capsys, "prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--output", tmp_path / "b.safetensors"
    )
    assert document["skipped"] == {"f.weight": "dtype F8_E4M3", "q.weight": "dtype I8"}
    found = load(tmp_path / "b.safetensors")
    assert all(torch.equal(found[name].view(torch.uint8), quantized[name].view(torch.uint8)) for name in quantized)


def test_indivisible_tensors_are_skipped_or_refused(tmp_path, capsys):
    save_file({"a.weight": torch.randn(8, 8), "odd.weight": torch.randn(6, 8)}, tmp_path / "a.safetensors")
    args = (
        "prune",
        tmp_path / "a.safetensors",
        "--sparsity",
        0.5,
        "--pattern",
        "4x1",
        "--output",
        tmp_path / "b.safetensors",
    )
    error = fails(capsys, tmp_path, *args, "--on-indivisible", "error")
    assert "'odd.weight' has shape [6, 8], which pattern '4x1' does not divide" in error
    assert run_json(capsys, *args)["skipped"] == {"odd.weight": "4x1 does not divide it"}


def test_other_weight_files_are_named(folder, tmp_path, capsys):
    (folder / "pytorch_model.bin").write_bytes(b"dense")
    assert run("prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out") == 0
    assert "copied as it is, with dense weights: pytorch_model.bin" in capsys.readouterr().out


@pytest.mark.parametrize("scope", ["global", "local"])
def test_dry_run_tells_what_the_run_does_and_writes_nothing(folder, tmp_path, capsys, scope):
    args = (
        "prune",
        folder,
        "--sparsity",
        0.5,
        "--pattern",
        "2x1",
        "--scope",
        scope,
        "--output",
        tmp_path / "new" / "out",
    )
    before = tree(tmp_path)
    dry = run_json(capsys, *args, "--dry-run")
    assert tree(tmp_path) == before
    real = run_json(capsys, *args)
    assert dry["layers"] == real["layers"]
    assert dry["disk_bytes"] == sum(p.stat().st_size for p in (tmp_path / "new" / "out").rglob("*") if p.is_file())
    units = sum(np.prod(shape) for shape in LAYERS.values()) // 2 if scope == "global" else 64
    assert dry["memory_bytes"] == 5 * units + 128 * 4


def test_dry_run_needs_no_output(single, capsys):
    assert run("prune", single, "--sparsity", 0.5, "--dry-run") == 0
    assert "memory needed" in capsys.readouterr().out


def test_overwrite(folder, tmp_path, capsys):
    run_json(capsys, "prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out")
    (tmp_path / "out" / "stale").write_text("old")
    assert "--overwrite" in fails(capsys, tmp_path, "prune", folder, "--sparsity", 0.2, "--output", tmp_path / "out")
    assert run("prune", folder, "--sparsity", 0.2, "--output", tmp_path / "out", "--overwrite") == 0
    assert not (tmp_path / "out" / "stale").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out"]


@pytest.mark.parametrize("source", ["single", "folder"])
def test_in_place_with_overwrite(request, tmp_path, source):
    path = request.getfixturevalue(source)
    assert run("prune", path, "--sparsity", 0.5, "--output", path, "--overwrite") == 0
    assert_pruned(load(path), model(), numpy_global(model(), list(LAYERS), 0.5))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--sparsity", 1), "--sparsity: must be a number, at least 0 and below 1, got '1'"),
        (("--sparsity", -0.1), "--sparsity: must be a number, at least 0 and below 1, got '-0.1'"),
        (("--sparsity", "nan"), "at least 0 and below 1"),
        (("--sparsity", "half"), "at least 0 and below 1"),
        ((), "needs a sparsity"),
        (("--sparsity", 0.5, "--pattern", "4y1"), "pattern must be '1x1'"),
        (("--sparsity", 0.5, "--pattern", "5:4"), "N must be at most M"),
        (("--sparsity", 0.3, "--pattern", "2:4"), "gives sparsity 0.5"),
        (("--sparsity", 0.5, "--pattern", "7x7"), "nothing to prune (7x7 does not divide it"),
        (("--sparsity", 0.5, "--scope", "nowhere"), "--scope"),
        (("--sparsity", 0.5, "--criterion", "snip"), "--criterion"),
        (("--sparsity", 0.5, "--include", "nothing.*"), "'nothing.*' matches no layer"),
        (("--sparsity", 0.5, "--exclude", "re:("), "is not a regular expression"),
        (("--sparsity", 0.5, "--exclude", "layer.*"), "nothing to prune"),
        (("--sparsity", 0.5, "--max-sparsity", 0.4), "max_sparsity"),
        (("--sparsity", 0.5, "--unknown"), "unrecognized arguments: --unknown"),
    ],
)
def test_bad_arguments(folder, tmp_path, capsys, args, message):
    assert message in fails(capsys, tmp_path, "prune", folder, *args, "--output", tmp_path / "new" / "out")


def test_bad_commands(tmp_path, capsys):
    assert "required: COMMAND" in fails(capsys, tmp_path)
    assert "invalid choice: 'fry'" in fails(capsys, tmp_path, "fry")


def test_output_is_required(single, tmp_path, capsys):
    assert "--output is missing" in fails(capsys, tmp_path, "prune", single, "--sparsity", 0.5)


@pytest.mark.parametrize("command", [("prune", "--sparsity", "0.5", "--output", "out"), ("inspect",)])
def test_bad_checkpoints(folder, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 50)
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.ones(3)}, tmp_path / "vector.safetensors")
    os.truncate(folder / "model.safetensors", 3000)
    for path, message in {
        "bad.safetensors": "not a valid safetensors file",
        "empty": "0 .safetensors files",
        "missing": "no such file",
        "hf": "model.safetensors: not a valid safetensors file",
        "vector.safetensors": "two",
    }.items():
        assert message in fails(capsys, tmp_path, *command, path)


def test_outputs_that_would_do_harm(folder, single, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("keep me")
    for source, output, message in [
        (folder, folder / "inside", "lie one inside the other"),
        (folder, tmp_path, "lie one inside the other"),
        (folder, tmp_path / "notes", "is no model directory"),
        (folder, single, "is a directory, not a file"),
        (folder, tmp_path / "notes" / "diary.txt", "is no model directory"),
        (folder, tmp_path / "notes" / "diary.txt" / "x", "Not a directory"),
        (single, folder / "model.safetensors" / "x.safetensors", "Not a directory"),
    ]:
        args = ("prune", source, "--sparsity", 0.5, "--output", output, "--overwrite")
        assert message in fails(capsys, tmp_path, *args)


def crash_on_second(monkeypatch, error):
    """Let the second shard, or the second half of a file, fail to be written."""
    write, calls = Shard.write, []

    def failing(self, path, replacement):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half a file")
            raise error
        write(self, path, replacement)

    monkeypatch.setattr(Shard, "write", failing)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_failure_between_shards_leaves_no_litter(tmp_path, capsys, monkeypatch, error, code, message, old):
    source = hugging_face(tmp_path / "in", split(model(), 3))
    if old:
        assert run("prune", source, "--sparsity", 0.1, "--output", tmp_path / "out") == 0
        capsys.readouterr()
    crash_on_second(monkeypatch, error)
    args = ("prune", source, "--sparsity", 0.5, "--output", tmp_path / "out", "--overwrite")
    assert message in fails(capsys, tmp_path, *args, code=code)


def test_a_full_disk(single):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left"):
        Shard(single).write(type(single)("/dev/full"), lambda name: None)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_no_litter(single, tmp_path, sent, code):
    script = f"""
import sys, time
from pruneops.checkpoint import Shard
from pruneops.cli import main
from pruneops.patterns import parse_pattern
def slow(self, path, replacement):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
Shard.write = slow
sys.exit(main(["prune", {str(single)!r}, "--sparsity", "0.5", "--output", {str(tmp_path / "new/out")!r}]))
"""
    before = tree(tmp_path)
    root = os.path.dirname(os.path.dirname(pruneops.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        process.send_signal(sent)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


def test_the_module_runs(single, tmp_path):
    root = os.path.dirname(os.path.dirname(pruneops.__file__))
    args = ["prune", single, "--sparsity", "0.5", "--output", tmp_path / "b.safetensors", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pruneops", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sparsity"] == 0.5


def test_tables(folder, tmp_path, capsys):
    assert run("prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "layer.10.up.weight" in out
    assert "asked 50.00 %, reached 50.00 %: 1,408 of 2,816 weights pruned" in out
    assert "left alone, embedding, norm or head: embed_tokens.weight and 1 more" in out
    assert run("inspect", tmp_path / "out") == 0
    assert "layer.10.up.weight" in capsys.readouterr().out


def test_names_are_printed_as_they_are(tmp_path, capsys):
    save_file({"a[bold].:smile:.weight": torch.randn(4, 4)}, tmp_path / "[red]x.safetensors")
    assert run("inspect", tmp_path / "[red]x.safetensors") == 0
    out = capsys.readouterr().out
    assert "a[bold].:smile:.weight" in out
    assert "[red]x.safetensors" in out


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(single, form):
    root = os.path.dirname(os.path.dirname(pruneops.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "pruneops", "inspect", str(single), *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == b""


def test_many_layers_are_summed_up(tmp_path, capsys):
    save_file({f"h.{i}.fc1.weight": torch.randn(2, 2) for i in range(60)}, tmp_path / "a.safetensors")
    assert run("prune", tmp_path / "a.safetensors", "--sparsity", 0.5, "--output", tmp_path / "b.safetensors") == 0
    assert "h.*.fc1.weight  (60 tensors)" in capsys.readouterr().out


def test_inspect_totals(single, capsys):
    document = run_json(capsys, "inspect", single)
    dense = {name: tensor for name, tensor in model().items() if tensor.dim() > 1}
    assert {layer["name"] for layer in document["layers"]} == set(dense)
    assert document["total"] == {"numel": sum(x.numel() for x in dense.values()), "zeros": 0, "sparsity": 0.0}
    assert sum(document["magnitude_histogram"]["counts"]) == document["total"]["numel"]


def test_picture(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run("inspect", folder, "--picture", tmp_path / "new" / "p.png") == 0
    capsys.readouterr()
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(PNG)
    assert "--overwrite" in fails(capsys, tmp_path, "inspect", folder, "--picture", tmp_path / "new" / "p.png")
    assert run("inspect", folder, "--picture", tmp_path / "new" / "p.png", "--overwrite") == 0


def test_picture_without_matplotlib(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "pruneops.picture", raising=False)
    monkeypatch.delattr(pruneops, "picture", raising=False)
    error = fails(capsys, tmp_path, "inspect", folder, "--picture", tmp_path / "p.png")
    assert "pip install 'pruneops[plot]'" in error


def test_info(capsys):
    facts = run_json(capsys, "info")
    assert facts == {"pruneops": pruneops.__version__, **pruneops.backend_info()}
    assert run("info") == 0
    assert torch.__version__ in capsys.readouterr().out


def test_help_and_version(capsys):
    for args in (["--help"], ["prune", "--help"], ["inspect", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
        assert "pruneops" in capsys.readouterr().out
