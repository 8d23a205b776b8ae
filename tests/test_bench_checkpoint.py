"""The benchmark of whole checkpoints: its own check accepts what ``pruneops prune`` writes and nothing else."""

import sys

import numpy as np
import pytest
from checkpoints import run

from bench import checkpoint


@pytest.fixture
def folders(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    checkpoint.make_checkpoint(source, gigabytes=0.001)
    return source, target


def prune(source, target, sparsity=0.5, scope="global"):
    assert run("prune", source, "--sparsity", sparsity, "--scope", scope, "--output", target) == 0


def writable(folder, name):
    return checkpoint.stored(folder, "r+")[name]


NAME = "model.layers.3.mlp.up.weight"


def test_what_the_command_writes_is_exact(folders):
    prune(*folders)
    total = 10 * 12 * 64 * 64
    assert checkpoint.check(*folders, 0.5).startswith(f"{total // 2:,} of {total:,} weights pruned")


def test_equal_magnitudes_are_cut_in_their_order(folders):
    source, target = folders
    for i in range(10):
        writable(source, f"model.layers.{i}.attn.q.weight")[:] = np.float32(-0.02).view(np.uint32)
    prune(source, target)
    assert "between two equal magnitudes" in checkpoint.check(*folders, 0.5)
    kept = writable(target, "model.layers.9.attn.q.weight")
    assert not kept.any()
    kept[-1] = np.float32(-0.02).view(np.uint32)
    first = writable(target, "model.layers.0.attn.q.weight")
    first[0] = 0
    with pytest.raises(AssertionError, match="ranks above"):
        checkpoint.check(*folders, 0.5)


def test_each_layer_pruned_alone_is_refused(folders):
    prune(*folders, scope="local")
    with pytest.raises(AssertionError, match="ranks above"):
        checkpoint.check(*folders, 0.5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAME, lambda x: x[x != 0][:1] * 0, "weights are zero"),
        (NAME, lambda x: x[x != 0][:1] ^ 1, "a kept weight has changed"),
        ("model.layers.3.norm.weight", lambda x: x[:1] ^ 1, "is not one to prune"),
    ],
)
def test_one_wrong_weight_is_found(folders, name, change, message):
    source, target = folders
    prune(source, target)
    words = writable(target, name)
    words[np.flatnonzero(words)[0]] = change(words)[0]
    with pytest.raises(AssertionError, match=message):
        checkpoint.check(source, target, 0.5)


def test_memory_of_a_process_is_seen():
    program = "import time; x = bytearray(b'1') * 200_000_000; time.sleep(1)"
    assert 200_000_000 < checkpoint.peak_of([sys.executable, "-c", program]) < 300_000_000
