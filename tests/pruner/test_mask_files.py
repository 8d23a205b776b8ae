"""Masks on disk: what is loaded is what was saved, at one bit per entry."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from training import Model, train

import pruneops
from pruneops.mask_files import load_masks, save_masks
from pruneops.pruner import Pruner


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (3, 5), (2, 3, 4, 5), (0, 4)])
def test_round_trip(shape, tmp_path):
    mask = torch.rand(shape) < 0.5
    save_masks({"a.b": mask, "t": mask.transpose(0, -1) if mask.dim() else mask}, tmp_path / "m.safetensors")
    loaded = load_masks(tmp_path / "m.safetensors")
    assert torch.equal(loaded["a.b"], mask)
    assert loaded["a.b"].dtype == torch.bool
    assert torch.equal(loaded["t"], mask.transpose(0, -1) if mask.dim() else mask)


def test_the_file_holds_packed_bits(tmp_path):
    mask = torch.rand(13, 11) < 0.5
    save_masks({"fc": mask}, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("fc"), np.packbits(mask.numpy(), bitorder="little"))


def test_masks_of_a_report_and_of_a_pruner(tmp_path):
    model = Model()
    report = pruneops.prune(model, 0.5, pattern="4x1")
    save_masks(report.masks, tmp_path / "a.safetensors")
    loaded = load_masks(tmp_path / "a.safetensors")
    assert loaded.keys() == set(report.masks)
    assert all(torch.equal((model.get_submodule(name).weight != 0), mask) for name, mask in loaded.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.6, end_step=2)
    train(model, optimizer, 2)
    save_masks(pruner.masks, tmp_path / "b.safetensors")
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in load_masks(tmp_path / "b.safetensors").items())


def test_a_file_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "new" / "model.safetensors"
    save_masks({"a": torch.ones(2) > 0}, target)
    before = target.read_bytes()
    with pytest.raises(FileExistsError, match="exists already; overwrite=True replaces it"):
        save_masks({"b": torch.ones(2) > 0}, target)
    assert target.read_bytes() == before
    save_masks({"b": torch.ones(2) > 0}, target, overwrite=True)
    assert load_masks(target).keys() == {"b"}
    with pytest.raises(FileExistsError, match="is no file"):
        save_masks({"b": torch.ones(2) > 0}, tmp_path / "new", overwrite=True)
    with pytest.raises(OSError, match="Not a directory"):
        save_masks({"b": torch.ones(2) > 0}, target / "x")


def test_bad_input(tmp_path):
    target = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match=r"masks\['b'\] must be a bool tensor, got torch.float32"):
        save_masks({"a": torch.ones(2) > 0, "b": torch.ones(2)}, target)
    assert not target.exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_masks(target)
    target.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        load_masks(target)
    save_file(nn.Linear(2, 2).state_dict(), target)
    with pytest.raises(ValueError, match=r"holds no masks"):
        load_masks(target)
    save_file({"a": torch.zeros(3, dtype=torch.uint8)}, target, {"format": "pruneops-masks", "shapes": '{"a": [4]}'})
    with pytest.raises(ValueError, match=r"mask 'a' does not fit its shape \[4\]"):
        load_masks(target)
