"""``pruneops score`` and ``pruneops prune --scores``: one pass over a text, every sparsity."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import fails, load, run, run_json
from safetensors.torch import load_file, save_file
from torch import nn

transformers = pytest.importorskip("transformers")

import pruneops  # noqa: E402
from pruneops.calibration import calibrate  # noqa: E402
from pruneops.checkpoint import Checkpoint  # noqa: E402
from pruneops.score_files import SavedScores, save_scores  # noqa: E402
from pruneops.scoring import sample_tokens, score_checkpoint  # noqa: E402

TEXT = " ".join(f"word{i * i % 37}" for i in range(900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 with random weights and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(37)} | {"?": 37}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(path)
    (path.parent / "text.txt").write_text(TEXT)
    return path


def score(folder, output, *options):
    small = ("--samples", "6", "--length", "16", "--batch-size", "2")
    assert run("score", folder, "--data", folder.parent / "text.txt", "--output", output, *small, *options) == 0
    return output


def pieces(folder):
    tokens = torch.tensor([int(word[4:]) for word in TEXT.split()])
    return sample_tokens(tokens, 6, 16)


def test_wanda_scores_are_the_norms_of_the_inputs(folder, tmp_path, capsys):
    file = score(folder, tmp_path / "scores.safetensors")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    norms = calibrate(model, pieces(folder).split(2))
    saved = load_file(file)
    assert {name.removesuffix(".weight") for name in saved} == set(norms)
    assert all(torch.equal(saved[f"{name}.weight"], norm) for name, norm in norms.items())
    assert "8 tensors scored on 96 tokens" in capsys.readouterr().out
    assert file.stat().st_size < 8192


@pytest.mark.parametrize(("pattern", "sparsities"), [("1x1", [0.3, 0.5, 0.9]), ("4x1", [0.5]), ("2:4", [0.5])])
def test_one_pass_serves_every_sparsity(folder, tmp_path, capsys, pattern, sparsities):
    file = score(folder, tmp_path / "scores.safetensors")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    norms = calibrate(model, pieces(folder).split(2))
    for sparsity in sparsities:
        capsys.readouterr()
        document = run_json(
            capsys, "prune", folder, "--scores", file, "--sparsity", sparsity, "--pattern", pattern, "--output",
            tmp_path / f"out{sparsity}",
        )  # fmt: skip
        assert (document["criterion"], document["scope"]) == ("wanda", "row")
        expected = transformers.GPT2LMHeadModel.from_pretrained(folder)
        pruneops.prune(expected, sparsity, criterion="wanda", pattern=pattern, input_norms=norms)
        state = expected.state_dict()
        for name, tensor in load(tmp_path / f"out{sparsity}").items():
            assert torch.equal(tensor, state[name]), name
        assert run("verify", tmp_path / f"out{sparsity}", "--sparsity", sparsity, "--pattern", pattern,
                   "--scope", "row") == 0  # fmt: skip


@pytest.mark.parametrize("criterion", ["snip", "fisher"])
def test_gradients_of_the_loss(folder, tmp_path, criterion):
    file = score(folder, tmp_path / "scores.safetensors", "--criterion", criterion, "--include", "*.mlp.c_fc")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    expected = 0.0
    for batch in pieces(folder).split(2):
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        weight = model.transformer.h[1].mlp.c_fc.weight
        w, g = weight.detach().numpy(), weight.grad.numpy()
        expected = expected + (np.abs(w * g) if criterion == "snip" else g * g)
    saved = load_file(file)
    assert saved.keys() == {f"transformer.h.{i}.mlp.c_fc.weight" for i in range(2)}
    np.testing.assert_array_equal(saved["transformer.h.1.mlp.c_fc.weight"].numpy(), expected)
    output = tmp_path / "out"
    options = ("--scores", file, "--include", "*.mlp.c_fc", "--sparsity", "0.75", "--pattern", "4x1")
    assert run("prune", folder, "--output", output, *options) == 0
    tensors = load(output)
    names = sorted(saved)
    masks = pruneops.select_masks(
        {name: tensors[name].t() for name in names}, sparsity=0.75, pattern="4x1",
        scores={name: saved[name].t() for name in names},
    )  # fmt: skip
    for name in names:
        kept = pruneops.ops.expand_block_mask(masks[name], (4, 1), tensors[name].t().shape)
        assert torch.equal(tensors[name].t() != 0, kept)


def test_a_checkpoint_without_the_prefix_of_the_model(folder, tmp_path):
    """As the first GPT-2 checkpoints are: h.0.attn... instead of transformer.h.0.attn..."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    tensors = {name.removeprefix("transformer."): x for name, x in load(folder).items()}
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    first = load_file(score(folder, tmp_path / "a.safetensors"))
    small = ("--samples", "6", "--length", "16", "--batch-size", "2")
    text = folder.parent / "text.txt"
    assert run("score", bare, "--data", text, "--output", tmp_path / "b.safetensors", *small) == 0
    second = load_file(tmp_path / "b.safetensors")
    assert {f"transformer.{name}" for name in second} == set(first)
    assert all(torch.equal(first[f"transformer.{name}"], norm) for name, norm in second.items())


def test_tensors_that_the_model_keeps_elsewhere(folder, tmp_path, capsys):
    """As the experts of a Mixtral checkpoint, which transformers stacks when it loads them."""
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    expert = "transformer.h.0.experts.3.w2.weight"
    save_file(load(path) | {expert: torch.randn(8, 8)}, path / "model.safetensors", metadata={"format": "pt"})
    file, options = tmp_path / "a.safetensors", ("--samples", "6", "--length", "16")
    assert run("score", path, "--data", folder.parent / "text.txt", "--output", file, *options) == 0
    out = capsys.readouterr().out
    assert f"not scored, the loaded model has no linear layer of the name: {expert}\n" in out
    assert "leave them out with --exclude" in out
    args = ("prune", path, "--scores", file, "--sparsity", "0.5", "--output", tmp_path / "out")
    assert f"has no score for {expert}; exclude it (--exclude)" in fails(capsys, tmp_path, *args)
    assert run(*args, "--exclude", expert) == 0


class Experts(nn.Module):
    """A language model whose token i goes through expert i alone; there is a third that none goes through."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(2, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, input_ids, labels):
        used = sorted({int(token) for token in input_ids.flatten()})
        return SimpleNamespace(loss=sum(self.experts[i](self.embed.weight[i]).square().sum() for i in used))


def test_layers_without_a_gradient(tmp_path):
    model = Experts()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    checkpoint, batches = Checkpoint(tmp_path), [torch.tensor([[0]]), torch.tensor([[1]])]
    names = [f"experts.{i}.weight" for i in range(3)]
    found = score_checkpoint(model, checkpoint, names[:2], batches, "snip")
    first = score_checkpoint(model, checkpoint, names[:1], batches[:1], "snip")
    assert torch.equal(found[names[0]], first[names[0]])
    assert (found[names[1]] > 0).all()
    with pytest.raises(ValueError, match=r"no gradient of the loss reaches experts\.2; exclude"):
        score_checkpoint(model, checkpoint, names, batches, "snip")
    with pytest.raises(ValueError, match=r"reaches experts\.1 and 1 more; exclude"):
        score_checkpoint(model, checkpoint, names[1:], batches[:1], "snip")


def test_samples():
    tokens = torch.arange(100)
    found = sample_tokens(tokens, 50, 7, seed=3)
    assert found.shape == (50, 7)
    assert (found.diff(dim=1) == 1).all()
    assert torch.equal(found, sample_tokens(tokens, 50, 7, seed=3))
    assert not torch.equal(found, sample_tokens(tokens, 50, 7, seed=4))
    assert sample_tokens(tokens, 5000, 99)[:, 0].unique().tolist() == [0, 1]


def test_bad_input(folder, tmp_path, capsys):
    text = folder.parent / "text.txt"
    file = score(folder, tmp_path / "scores.safetensors", "--include", "*.c_fc")
    capsys.readouterr()

    def says(message, *args):
        assert message in fails(capsys, tmp_path, *args)

    out = ("--output", tmp_path / "new")
    says("exists already; --overwrite replaces it", "score", folder, "--data", text, "--output", file)
    short = tmp_path / "short.txt"
    short.write_text("word1 word2")
    says("2 tokens, fewer than one sample of 32", "score", folder, "--data", short, *out)
    says("--length is 33, the model takes at most 32", "score", folder, "--data", text, *out, "--length", "33")
    says("must be a whole number", "score", folder, "--data", text, *out, "--samples", "0")
    says("nothing.txt", "score", folder, "--data", tmp_path / "nothing.txt", *out)
    latin = tmp_path / "latin.txt"
    latin.write_text("über", encoding="latin-1")
    says("latin.txt: is no text in UTF-8", "score", folder, "--data", latin, *out)
    says("has no score for transformer.h.0.attn.c_attn.weight and 5 more; exclude it (--exclude)", "prune", folder,
         "--scores", file, "--sparsity", "0.5", *out)  # fmt: skip
    says("holds no scores", "prune", folder, "--scores", folder / "model.safetensors", "--sparsity", "0.5", *out)
    says("no such file", "prune", folder, "--scores", tmp_path / "none", "--sparsity", "0.5", *out)


def test_scores_of_another_model_are_refused(folder, tmp_path):
    name = "transformer.h.0.mlp.c_fc.weight"
    save_scores(tmp_path / "a.safetensors", "wanda", {name: torch.ones(3)})
    with pytest.raises(ValueError, match=r"has shape \(3,\), expected \(16,\)"):
        SavedScores(tmp_path / "a.safetensors").ranking(Checkpoint(folder), [name])
    with pytest.raises(FileExistsError):
        save_scores(tmp_path / "a.safetensors", "wanda", {})
    save_scores(tmp_path / "a.safetensors", "snip", {name: torch.ones(16, 64)}, overwrite=True)
    (score,) = SavedScores(tmp_path / "a.safetensors").ranking(Checkpoint(folder), [name])["scores"].values()
    assert score.shape == (64, 16)


def test_json(folder, tmp_path, capsys):
    score(folder, tmp_path / "scores.safetensors", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["tensors"] == 8
    assert document["left_out"] == []
