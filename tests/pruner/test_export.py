"""Export: dense files with zeros, and 2:4 where torch can run it."""

import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn
from training import Model, same_state

import pruneops
from pruneops.export import save_dense, to_semi_structured
from pruneops.verification import verify


def test_a_dense_file_holds_the_zeros(tmp_path):
    model = Model()
    report = pruneops.prune(model, 0.5, pattern="4x1", include=["fc", "mlp"])
    path = tmp_path / "sparse.safetensors"
    save_dense(model, path)
    tensors = load_file(path)
    assert not {"fc.weight", "again.weight"} <= tensors.keys()
    assert torch.equal(tensors["mlp.weight"] != 0, report.masks["mlp"])
    other = Model(seed=1)
    load_model(other, path)
    assert same_state(model, other)
    with pytest.raises(FileExistsError, match="exists already; overwrite=True replaces it"):
        save_dense(model, path)
    save_dense(model, path, overwrite=True)


def test_verify_knows_the_file(tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    pruneops.prune(model, None, pattern="2:4")
    save_dense(model, tmp_path / "sparse.safetensors")
    assert verify(tmp_path / "sparse.safetensors", pattern="2:4", exact=True).ok


def test_no_device_for_sparse_tensor_cores():
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0, got cpu"):
        to_semi_structured(nn.Sequential(nn.Linear(64, 64)))


@pytest.mark.cuda
def test_sparse_tensor_cores():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128)).half().cuda()
    pruneops.prune(model, None, pattern="2:4", include="0")
    x = torch.randn(64, 128, device="cuda", dtype=torch.half)
    expected = model(x)
    assert to_semi_structured(model) == ["0"]
    torch.testing.assert_close(model(x), expected, rtol=1e-2, atol=1e-2)
