"""The command line refuses bad input with one line, and a run that fails leaves everything as it was."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from checkpoints import ENVIRONMENT, fails, hugging_face, model, run, split, tree
from safetensors.torch import save_file

import pruneops
from pruneops.checkpoint import Shard


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
        (("--sparsity", 0.5, "--criterion", "snip"), "criterion 'snip' reads gradients"),
        (("--sparsity", 0.5, "--criterion", "mine"), "unknown criterion 'mine'"),
        (("--sparsity", 0.5, "--import", "no_such_module"), "--import no_such_module"),
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
    (tmp_path / "x.safetensors").mkdir()
    for source, output, message in [
        (folder, folder / "inside", "lie one inside the other"),
        (folder, tmp_path, "lie one inside the other"),
        (folder, tmp_path / "notes", "notes: holds what the output would not replace (diary.txt); choose another"),
        (folder, single, "is a directory, not a file"),
        (folder, tmp_path / "notes" / "diary.txt", "exists and is no directory"),
        (single, tmp_path / "x.safetensors", "exists and is no file"),
        (folder, tmp_path / "notes" / "diary.txt" / "x", "Not a directory"),
        (single, folder / "model.safetensors" / "x.safetensors", "Not a directory"),
    ]:
        args = ("prune", source, "--sparsity", 0.5, "--output", output, "--overwrite")
        assert message in fails(capsys, tmp_path, *args)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("place", ["elsewhere", "source", "earlier"])
def test_files_of_others_in_the_output_are_kept(folder, tmp_path, capsys, place, overwrite):
    output = {"elsewhere": tmp_path / "mine", "source": folder, "earlier": tmp_path / "out"}[place]
    assert run("prune", folder, "--sparsity", 0.1, "--output", tmp_path / "out") == 0
    capsys.readouterr()
    for file in (
        ".git/HEAD",
        ".cache/huggingface/x",
        *(["notes.md", "checkpoint-5/optimizer.pt"] * (place != "source")),
    ):
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        (output / file).write_text("mine")
    error = fails(capsys, tmp_path, "prune", folder, "--sparsity", 0.5, "--output", output, *overwrite)
    assert "holds what the output would not replace (" in error
    assert ("notes.md, .git/HEAD" if place != "source" else ".git/HEAD, .cache/huggingface/x") in error


def test_a_directory_is_no_picture_or_scores(folder, tmp_path, capsys):
    for args in (("inspect", folder, "--picture"), ("score", folder, "--data", folder / "config.json", "--output")):
        assert "exists and is no file" in fails(capsys, tmp_path, *args, folder / "vocab", "--overwrite")


@pytest.mark.parametrize("command", [("prune", "--sparsity", "0.5", "--output", "out"), ("inspect",), ("verify",)])
def test_one_model_twice(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    folder = hugging_face(tmp_path / "m", split(model(), 2))
    save_file(model(), folder / "model.safetensors")
    error = fails(capsys, tmp_path, *command, folder, *(["--sparsity", "0.5"] if command == ("verify",) else []))
    assert "and also model.safetensors, which is what transformers loads; delete" in error


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
import signal, sys, time
from pruneops.checkpoint import Shard
from pruneops.cli import main
# As in a terminal: what was started in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
def slow(self, path, replacement):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
Shard.write = slow
sys.exit(main(["prune", {str(single)!r}, "--sparsity", "0.5", "--output", {str(tmp_path / "new/out")!r}]))
"""
    before = tree(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        process.send_signal(sent)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(single, form):
    command = [sys.executable, "-m", "pruneops", "inspect", str(single), *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == b""


def test_picture_without_matplotlib(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "pruneops.picture", raising=False)
    monkeypatch.delattr(pruneops, "picture", raising=False)
    error = fails(capsys, tmp_path, "inspect", folder, "--picture", tmp_path / "p.png")
    assert "pip install 'pruneops[plot]'" in error


def test_warnings_are_lines(monkeypatch, capsys):
    def warn(args):
        warnings.warn("two lines\nof it", UserWarning, stacklevel=1)

    monkeypatch.setattr("pruneops.cli.info.run", warn)
    before = warnings.showwarning
    assert run("info") == 0
    assert capsys.readouterr().err == "pruneops: warning: two lines of it\n"
    assert warnings.showwarning is before
