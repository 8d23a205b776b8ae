"""``pruneops verify``: true claims hold, and one weight too many or too few is found."""

import json

import pytest
import torch
from checkpoints import LAYERS, fails, hugging_face, model, run, split
from safetensors.torch import load_file, save_file

from pruneops.verification import verify


@pytest.fixture
def dense(tmp_path):
    return hugging_face(tmp_path / "dense", split(model(), 2))


def pruned(dense, tmp_path, *options):
    output = tmp_path / "pruned"
    assert run("prune", dense, "--output", output, *options) == 0
    return output


CLAIMS = [
    ("--sparsity", "0.5"),
    ("--sparsity", "0.7", "--scope", "local"),
    ("--sparsity", "0.3", "--scope", "row"),
    ("--sparsity", "0.61", "--pattern", "4x1"),
    ("--sparsity", "0.5", "--pattern", "channelx1"),
    ("--pattern", "2:4"),
    ("--pattern", "1:8"),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=" ".join)
@pytest.mark.parametrize("exact", [False, True])
def test_what_prune_writes_is_what_it_says(dense, tmp_path, claim, exact, capsys):
    output = pruned(dense, tmp_path, *claim)
    capsys.readouterr()
    assert run("verify", output, *claim, *(["--exact"] if exact else [])) == 0
    assert "verified: sparsity" in capsys.readouterr().out


@pytest.mark.parametrize("claim", CLAIMS, ids=" ".join)
def test_one_weight_more_is_found(dense, tmp_path, claim, capsys):
    """One zero becomes a weight again: in the first tensor, where the count or the group is then broken."""
    output = pruned(dense, tmp_path, *claim)
    files = sorted(output.glob("*.safetensors"))
    tensors = load_file(files[0])
    name = next(name for name in tensors if name in LAYERS and bool((tensors[name] == 0).any()))
    weight = tensors[name]
    weight.view(-1)[int((weight.view(-1) == 0).nonzero()[0])] = 1e-30
    save_file(tensors, files[0], metadata={"format": "pt"})
    capsys.readouterr()
    assert run("verify", output, *claim) == 1
    out = capsys.readouterr().out
    assert "NOT TRUE" in out
    assert run("verify", output, *claim, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"]
    assert len(document["problems"]) == 1


def test_one_zero_more_is_found_only_when_asked(dense, tmp_path):
    output = pruned(dense, tmp_path, "--sparsity", "0.5")
    found = verify(output, 0.5, exact=True)
    assert found.ok
    assert found.pruned == int(0.5 * found.units)
    file = sorted(output.glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = next(name for name in tensors if name in LAYERS)
    tensors[name].view(-1)[int(tensors[name].view(-1).nonzero()[0])] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    assert verify(output, 0.5).ok
    assert "1 more than" in verify(output, 0.5, exact=True).problems[0]


def test_other_weight_files_are_named(dense, tmp_path, capsys):
    output = pruned(dense, tmp_path, "--sparsity", "0.5")
    (output / "pytorch_model.bin").write_bytes(b"dense")
    (output / "onnx").mkdir()
    (output / "onnx" / "model.onnx").write_bytes(b"dense")
    capsys.readouterr()
    assert run("verify", output, "--sparsity", "0.5") == 0
    out = capsys.readouterr().out
    assert "not checked, may hold dense weights: onnx/model.onnx" in out
    assert "not checked, may hold dense weights: pytorch_model.bin" in out
    assert verify(output, 0.5).to_dict()["unchecked"] == ["onnx/model.onnx", "pytorch_model.bin"]
    assert verify(sorted(output.glob("*.safetensors"))[0], 0.5).unchecked == ()


def test_a_dense_model_is_not_sparse(dense):
    assert not verify(dense, 0.01).ok
    assert verify(dense, 0.0).ok
    assert not verify(dense, pattern="2:4").ok


def test_scattered_zeros_are_no_blocks(dense, tmp_path):
    output = pruned(dense, tmp_path, "--sparsity", "0.8")
    assert verify(output, 0.8).ok
    assert not verify(output, 0.8, "4x1").ok


def test_a_number_that_is_none_is_not_zero(tmp_path):
    weight = torch.zeros(8, 8)
    weight[0, 0] = torch.nan
    save_file({"layer.weight": weight}, tmp_path / "a.safetensors")
    assert verify(tmp_path / "a.safetensors", pattern="4x1", sparsity=0.5).pruned == 15
    assert verify(tmp_path / "a.safetensors", sparsity=0.5).pruned == 63


def test_conv1d_groups_lie_along_the_inputs(tmp_path):
    """A GPT-2 checkpoint stores in x out: its 2:4 groups are columns."""
    weight = torch.randn(8, 4)
    weight.view(2, 4, 4)[:, 2:] = 0
    folder = hugging_face(tmp_path / "gpt2", [{"h.0.attn.c_attn.weight": weight}], {"model_type": "gpt2"})
    assert verify(folder, pattern="2:4").ok
    folder = hugging_face(tmp_path / "other", [{"h.0.attn.c_attn.weight": weight}], {"model_type": "llama"})
    assert verify(folder, pattern="2:4").tensors[0].broken == 4


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", None), ("4x1", 0.5), ("1xchannel", 0.5)])
def test_stacked_experts_are_no_convolution(tmp_path, pattern, sparsity, capsys):
    """As a Conv1d's, the stack has 2:4, and whole blocks and rows; as matrices, each with inputs last, it has not."""
    stack, linear = torch.randn(4, 8, 8), torch.randn(8, 8)
    stack.view(4, 2, 4, 8)[:, :, 2:] = 0
    if sparsity:
        stack[:, ::2] = stack[::2] = linear[:4] = 0
    else:
        linear.view(8, 2, 4)[..., 2:] = 0
    tensors = {"l.moe.input_linear.weight": stack, "l.q_proj.weight": linear}
    folder = hugging_face(tmp_path / "moe", [tensors], {"num_local_experts": 4})
    found = verify(folder, sparsity, pattern, exact=True)
    assert found.ok
    assert [x.name for x in found.tensors] == ["l.q_proj.weight"]
    assert found.skipped == {"l.moe.input_linear.weight": "stacked experts"}
    with pytest.raises(ValueError, match=r"nothing to prune \(not selected by name, stacked experts\)"):
        verify(folder, sparsity, pattern, include="*input_linear")
    claim = ("--pattern", pattern, *(("--sparsity", sparsity) if sparsity else ()))
    assert run("verify", folder, *claim) == 0
    assert "left alone, stacked experts, 80.00 % of all weights" in capsys.readouterr().out


def test_names(dense, tmp_path):
    output = pruned(dense, tmp_path, "--sparsity", "0.9", "--include", "layer.1.*", "--scope", "local")
    assert verify(output, 0.9, include="layer.1.*", scope="local").ok
    assert [x.name for x in verify(output, 0.9, include="layer.1.*").tensors] == [
        "layer.1.down.weight", "layer.1.up.weight",
    ]  # fmt: skip
    assert not verify(output, 0.9).ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1"], "at least 0 and below 1"),
        ([], "pattern '1x1' needs a sparsity"),
        (["--pattern", "4y1"], "pattern must be"),
        (["--pattern", "2:4", "--sparsity", "0.6"], "gives sparsity 0.5"),
    ],
)
def test_bad_input(dense, options, message, capsys):
    assert message in fails(capsys, dense, "verify", dense, *options)


def test_no_checkpoint(tmp_path, capsys):
    missing = tmp_path / "none.safetensors"
    assert "no such file" in fails(capsys, tmp_path, "verify", missing, "--sparsity", "0.5")
