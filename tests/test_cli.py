"""The command line: what it writes and what it prints."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import ENVIRONMENT, LAYERS, fails, hugging_face, load, model, run, run_json, split, tree
from safetensors import safe_open
from safetensors.torch import save_file

import pruneops
from pruneops.cli import main
from pruneops.patterns import parse_pattern

PNG = b"\x89PNG\r\n\x1a\n"


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


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_a_sharded_gpt2_is_pruned_as_the_loaded_model_is(tmp_path, monkeypatch, pattern):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    expected = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
    expected.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").is_file()
    args = ("--sparsity", 0.5, "--pattern", pattern, "--output", tmp_path / "out")
    assert run("prune", tmp_path / "in", *args) == 0
    pruneops.prune(expected, 0.5, pattern=pattern, scope="global")
    found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert (found["transformer.h.0.mlp.c_fc.weight"] == 0).any()


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
    units = [int(np.prod(shape)) // 2 for shape in LAYERS.values()]
    # A copy of the largest tensor, its mask, and scores; where all layers are selected together also all masks.
    together = 4 * sum(units) + sum(-(-n // 8) for n in units) if scope == "global" else 4 * max(units)
    assert dry["memory_bytes"] == 2 * max(units) * 4 + max(units) + together


def test_dry_run_needs_no_output(single, capsys):
    assert run("prune", single, "--sparsity", 0.5, "--dry-run") == 0
    assert "memory needed" in capsys.readouterr().out


def test_overwrite(folder, tmp_path, capsys):
    run_json(capsys, "prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out")
    error = fails(capsys, tmp_path, "prune", folder, "--sparsity", 0.2, "--output", tmp_path / "out")
    assert "out: exists already; --overwrite replaces it" in error
    assert run("prune", folder, "--sparsity", 0.2, "--output", tmp_path / "out", "--overwrite") == 0
    assert_pruned(load(tmp_path / "out"), model(), numpy_global(model(), list(LAYERS), 0.2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "out"]


def test_an_empty_output_is_filled(folder, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out") == 0
    assert tree(tmp_path / "out").keys() == tree(folder).keys()


@pytest.mark.parametrize("source", ["single", "folder"])
def test_in_place_with_overwrite(request, tmp_path, source):
    path = request.getfixturevalue(source)
    assert run("prune", path, "--sparsity", 0.5, "--output", path, "--overwrite") == 0
    assert_pruned(load(path), model(), numpy_global(model(), list(LAYERS), 0.5))
    assert list(tmp_path.iterdir()) == [path]


def test_in_place_from_inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("prune", ".", "--sparsity", 0.5, "--output", ".", "--overwrite") == 0
    assert_pruned(load(folder), model(), numpy_global(model(), list(LAYERS), 0.5))
    assert sorted(os.listdir(".")) == ["config.json", "model.safetensors", "vocab"]


def test_the_module_runs(single, tmp_path):
    args = ["prune", single, "--sparsity", "0.5", "--output", tmp_path / "b.safetensors", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pruneops", *args],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sparsity"] == 0.5


def test_tables(folder, tmp_path, capsys):
    assert run("prune", folder, "--sparsity", 0.5, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "layer.10.up.weight" in out
    assert "asked 50.00 %, reached 50.00 %: 1,408 of 2,816 weights pruned" in out
    share = 100 * 320 / sum(tensor.numel() for tensor in model().values())
    assert f"left alone, embedding, norm or head, {share:.2f} % of all weights: embed_tokens.weight, lm_head.wei" in out
    assert run("inspect", tmp_path / "out") == 0
    assert "layer.10.up.weight" in capsys.readouterr().out


def test_every_tensor_that_is_left_alone_is_named(tmp_path, capsys):
    """Experts and projections in one tensor, position embeddings, and weights in a dtype that is not pruned."""
    odd = {
        "mlp.experts.gate_up_proj": torch.randn(2, 8, 16), "mlp.experts.down_proj": torch.randn(2, 8, 8),
        "attn.in_proj_weight": torch.randn(24, 8), "pos_embed": torch.randn(1, 9, 8),
        "f8.w1": torch.randn(8, 8).to(torch.float8_e4m3fn),
    }  # fmt: skip
    others = {"q_proj.weight": torch.randn(8, 8), "q_proj.bias": torch.randn(8), "ids": torch.zeros(1, 4).int()}
    save_file(odd | others, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    assert run_json(capsys, "prune", tmp_path / "a.safetensors", "--pattern", "2:4", "--output", target)[
        "skipped"
    ].keys() == set(odd)  # fmt: skip
    shares = 0.0
    for command in (("prune", tmp_path / "a.safetensors", "--dry-run"), ("verify", target)):
        assert run(*command, "--pattern", "2:4") == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left alone, ")]
        assert any("attn.in_proj_weight" in line for line in notes)
        shares = sum(float(line.split(" % of all weights")[0].split()[-1]) for line in notes)
        total = sum(tensor.numel() for tensor in (odd | others).values())
        assert shares == pytest.approx(100 * sum(tensor.numel() for tensor in odd.values()) / total, abs=0.02)
    assert run_json(capsys, "verify", target, "--pattern", "2:4")["skipped"].keys() == set(odd)


def granite():
    """Tensors of a Granite with 4 experts in each stack; half of each is zero, in whole rows of each expert."""
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "l.0.moe.input_linear.weight": (4, 8, 16), "l.0.moe.output_linear.weight": (4, 16, 8),
        "l.0.mlp.experts.gate_up_proj": (4, 8, 16), "l.0.mamba.conv1d.weight": (4, 8, 4), "l.0.q_proj.weight": (8, 8),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    for name in STACKS:
        tensors[name][:, ::2] = 0
    return tensors


STACKS = ("l.0.moe.input_linear.weight", "l.0.moe.output_linear.weight", "l.0.mlp.experts.gate_up_proj")
MOE = {"model_type": "granitemoehybrid", "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize("config", [MOE, {"model_type": "some_vlm", "text_config": MOE}])
@pytest.mark.parametrize("pattern", ["1x1", "2:4", "4x1", "1xchannel"])
def test_stacked_experts_are_left_alone(tmp_path, capsys, pattern, config):
    """Their bytes stay; the Conv1d beside them, which has as many outputs as there are experts, is pruned."""
    dense = granite()
    source = hugging_face(tmp_path / "in", [dense], config)
    args = ("prune", source, "--pattern", pattern, *(() if ":" in pattern else ("--sparsity", 0.5)))
    document = run_json(capsys, *args, "--scope", "local", "--output", tmp_path / "out")
    assert document["skipped"] == dict.fromkeys(STACKS, "stacked experts")
    found = load(tmp_path / "out")
    for name in dense:
        assert torch.equal(found[name], dense[name]) == (name in STACKS), name
    # Outputs first, then inputs, then the kernel: what a group, a block and a row are of each.
    units = {
        "1x1": lambda x: x.reshape(-1, 1, 1), "2:4": lambda x: x.movedim(1, -1).reshape(-1, 4, 1),
        "4x1": lambda x: x.movedim(1, -1).reshape(len(x) // 4, 4, -1).movedim(1, -1).reshape(-1, 4),
        "1xchannel": lambda x: x.flatten(1),
    }[pattern]  # fmt: skip
    for name in ("l.0.mamba.conv1d.weight", "l.0.q_proj.weight"):
        zero = units(found[name]) == 0
        if ":" in pattern:
            assert (zero.sum(1) == 2).all()
        else:
            zero = zero.flatten(1)
            assert (zero.all(1) == zero.any(1)).all()
            assert int(zero.all(1).sum()) == len(zero) // 2


def test_stacked_experts_are_named_with_their_share(tmp_path, capsys):
    source = hugging_face(tmp_path / "in", [granite()], MOE)
    share = 100 * 1536 / (1536 + 128 + 64)
    line = f"left alone, stacked experts, {share:.2f} % of all weights: {', '.join(STACKS)}"
    for command in ("prune", "verify"):
        run(command, source, "--pattern", "2:4", *(["--dry-run"] if command == "prune" else []))
        assert line in capsys.readouterr().out.splitlines()


def test_stacked_experts_are_left_alone_even_if_they_are_named(tmp_path, capsys):
    dense = granite()
    source = hugging_face(tmp_path / "in", [dense], MOE)
    args = ("prune", source, "--sparsity", 0.5, "--output", tmp_path / "out", "--include", STACKS[0])
    assert "nothing to prune (not selected by name, stacked experts)" in fails(capsys, tmp_path, *args)
    document = run_json(capsys, *args, "--include", "*.q_proj")
    assert [layer["name"] for layer in document["layers"]] == ["l.0.q_proj.weight"]
    assert document["skipped"][STACKS[0]] == "stacked experts"
    found = load(tmp_path / "out")
    assert all(torch.equal(found[name], dense[name]) for name in STACKS)


def test_inspect_claims_no_structure_of_stacked_experts(tmp_path, capsys):
    """The same tensors of a model without experts are weights of convolutions, whose structure is shown."""
    dense = {f"w.{i}.weight": granite()[name] for i, name in enumerate(STACKS)}
    for config, stacked in ((MOE, True), ({"model_type": "llama"}, False)):
        source = hugging_face(tmp_path / str(stacked), [dense | {"conv.weight": granite()[STACKS[0]]}], config)
        found = {layer["name"]: layer for layer in run_json(capsys, "inspect", source)["layers"]}
        for name in dense:
            layer = found[name]
            assert (layer["sparsity"], layer["shape"]) == (0.5, list(dense[name].shape))
            assert layer["stacked_experts"] == stacked
            assert (layer["nm"] == [] and layer["block"] is None) == stacked
        assert not found["conv.weight"]["stacked_experts"]
        assert found["conv.weight"]["nm"]
        assert run("inspect", source) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if "w." in line]
        assert [", stacked experts as stored" in row for row in rows] == [stacked] * 3


def test_a_granite_of_transformers_keeps_its_experts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    config = transformers.GraniteMoeConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.GraniteMoeForCausalLM(config).save_pretrained(tmp_path / "in")
    capsys.readouterr()
    document = run_json(capsys, "prune", tmp_path / "in", "--pattern", "2:4", "--output", tmp_path / "out")
    dense, pruned = load(tmp_path / "in"), load(tmp_path / "out")
    stacks = {name for name, tensor in dense.items() if tensor.dim() == 3}
    assert len(stacks) == 4
    assert {name for name, why in document["skipped"].items() if why == "stacked experts"} == stacks
    attention = {name for name in dense if "self_attn" in name}
    assert {name for name in dense if not torch.equal(dense[name], pruned[name])} == attention
    assert all(((pruned[name].reshape(-1, 4) == 0).sum(1) == 2).all() for name in attention)


def test_names_are_printed_as_they_are(tmp_path, capsys):
    save_file({"a[bold].:smile:.weight": torch.randn(4, 4)}, tmp_path / "[red]x.safetensors")
    assert run("inspect", tmp_path / "[red]x.safetensors") == 0
    out = capsys.readouterr().out
    assert "a[bold].:smile:.weight" in out
    assert "[red]x.safetensors" in out


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


@pytest.mark.parametrize(
    "source",
    [
        "from pruneops import PruningCriterion, register_criterion\n"
        "@register_criterion('smallest')\n"
        "class Smallest(PruningCriterion):\n"
        "    def on_step_begin(self):\n"
        "        self.scores = {name: -module.weight.abs() for name, module in self.modules.items()}\n",
        "from pruneops import criterion_from_metric\n"
        "criterion_from_metric('smallest', metric='magnitude', beta=-1.0)\n",
    ],
    ids=["class", "metric"],
)
def test_a_criterion_of_the_users_own(source, single, tmp_path, monkeypatch):
    (tmp_path / "my_criteria.py").write_text(source)
    monkeypatch.delitem(sys.modules, "my_criteria", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    target = tmp_path / "pruned.safetensors"
    how = ("--sparsity", "0.5", "--criterion", "smallest", "--import", "my_criteria", "--scope", "local")
    assert run("prune", single, *how, "--output", target) == 0
    dense, pruned = model(), load(target)
    for name in LAYERS:
        kept = pruned[name] != 0
        assert int(kept.sum()) == kept.numel() // 2
        assert dense[name].abs()[kept].max() <= dense[name].abs()[~kept].min()
