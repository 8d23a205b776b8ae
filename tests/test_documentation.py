"""What the pages for users show runs as it is written; a new snippet without a test here is an error at import."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from checkpoints import load, run
from torch import nn

import pruneops
from pruneops.gradient_sensitivity import find_groups

ROOT = Path(__file__).parents[1]


def snippets(page, language="python"):
    """The code blocks of a page in a language, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    return [text for kind, text in blocks if kind == language]


ONE_SHOT, README_THREE_LINES, OPERATORS, CRITERION = snippets("README.md")
THREE_LINES, RULES, RESUME, TRAINER, ACCELERATE, WANDA = snippets("docs/training.md")
(RECIPE,) = snippets("docs/training.md", "yaml")
SCORE, VERIFY = snippets("docs/training.md", "")
HEADS, LOAD, ELEMENTWISE = snippets("docs/gradient_sensitivity.md")


@pytest.fixture(autouse=True)
def _reader(tmp_path, monkeypatch, threads):
    """Snippets write to where the reader is; the models are too small for threads."""
    monkeypatch.chdir(tmp_path)
    threads(1)


def follow(snippet, between=None, **names):
    """Run a snippet; ``between(names)`` is what the reader does at a line that begins with ``...``."""
    code = re.sub(r"^\.\.\.", "_between(globals()),", snippet, flags=re.M)
    names["_between"] = between
    exec(compile(code, "snippet", "exec"), names)
    return names


class Layer(nn.Module):
    """Named as the layers of a transformer are."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return x + self.mlp(x + self.attention(x))


def small(seed=0):
    """640 prunable weights, and an optimizer of them."""
    torch.manual_seed(seed)
    model = nn.Sequential(Layer(), Layer())
    model.add_module("pooler", nn.Tanh())
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}


def weights(model, kind=""):
    return [m.weight for name, m in model.named_modules() if kind in name and isinstance(m, nn.Linear)]


def train(names, steps):
    """A loop that knows nothing of pruning."""
    data = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        (names["model"](data) - data.flip(0)).square().mean().backward()
        names["optimizer"].step()
        names["optimizer"].zero_grad()


def zero_blocks(tensors):
    """How many blocks of 4 x 1 are zero altogether."""
    return sum(int((x.detach().unflatten(0, (-1, 4)) == 0).all(1).sum()) for x in tensors)


def test_prune_a_model(capsys):
    names = follow(ONE_SHOT, **small())
    assert zero_blocks(weights(names["model"])) == int(0.5 * 192)
    printed = capsys.readouterr().out
    assert all(layer.name in printed for layer in names["report"].layers)


@pytest.mark.parametrize("snippet", [README_THREE_LINES, THREE_LINES], ids=["readme", "page"])
def test_three_lines(snippet):
    names = follow(snippet, lambda names: train(names, 1000), **small())
    assert zero_blocks(weights(names["model"])) == int(0.8 * 192)
    assert names["report"].kept == 4 * (192 - int(0.8 * 192))
    train(names, 1)
    assert zero_blocks(weights(names["model"])) < int(0.8 * 192)


def test_operators():
    generator = torch.Generator().manual_seed(0)
    values, grads = ([torch.randn(shape, generator=generator) for shape in ((8, 16), (5,))] for _ in range(2))
    expected = [(w * g).abs() for w, g in zip(values, grads, strict=True)]
    names = follow(OPERATORS, scores=[torch.zeros_like(w) for w in values], weights=values, grads=grads)
    assert all(torch.equal(a, b) for a, b in zip(names["scores"], expected, strict=True))
    assert sum(int((w == 0).sum()) for w in values) == int(0.8 * 133)


def test_criterion():
    model = small()["model"]
    modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = follow(CRITERION, pruneops=pruneops, modules=modules, loss=model(torch.ones(1, 8)).sum())
    for name, m in modules.items():
        assert torch.equal(names["criterion"].scores[name], (m.weight * m.weight.grad).abs())


def test_rules_and_the_same_as_a_file():
    by_rules = follow(RULES, Pruner=pruneops.Pruner, **small())
    Path("recipe.yaml").write_text(RECIPE)
    by_recipe = small()
    by_recipe["pruner"] = pruneops.Pruner.from_recipe(by_recipe["model"], by_recipe["optimizer"], "recipe.yaml")
    for names in (by_rules, by_recipe):
        train(names, 1000)
        names["pruner"].detach()
        groups_of_four = [(w.unflatten(1, (-1, 4)) == 0).sum(2) for w in weights(names["model"], "attention")]
        assert all((zeros == 2).all() for zeros in groups_of_four)
        assert zero_blocks(weights(names["model"], "mlp")) == int(0.9 * 128)
        assert all(zero_blocks([w]) <= 0.98 * w.numel() / 4 for w in weights(names["model"], "mlp"))
    assert all(map(torch.equal, by_rules["model"].parameters(), by_recipe["model"].parameters()))


def test_stop_and_resume():
    def start():
        names = small()
        return names | {"pruner": pruneops.Pruner(**names, pattern="4x1", end_step=20)}

    whole, names = start(), start()
    train(whole, 30)
    train(names, 7)

    def restart(inside):
        saved = names["model"].state_dict(), names["optimizer"].state_dict()
        inside.update(start())
        inside["model"].load_state_dict(saved[0])
        inside["optimizer"].load_state_dict(saved[1])

    resumed = follow(RESUME, restart, **names)
    assert resumed["model"] is not names["model"]
    train(resumed, 23)
    assert all(map(torch.equal, whole["model"].parameters(), resumed["model"].parameters()))
    pruneops.save_masks(resumed["pruner"].masks, "masks.safetensors")
    masks = pruneops.load_masks("masks.safetensors")
    assert all(torch.equal(mask, masks[name]) for name, mask in whole["pruner"].masks.items())


def test_trainer():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32)  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    arguments = transformers.TrainingArguments("run", max_steps=10, save_steps=5, use_cpu=True, report_to=[],
                                               per_device_train_batch_size=4, disable_tqdm=True)  # fmt: skip
    data = [{"input_ids": torch.tensor([i, 3, 4]), "labels": i % 2} for i in range(40)]
    names = follow(TRAINER, model=model, arguments=arguments, data=data)
    report = names["callback"].report
    assert report.total - report.kept == 4 * int(0.8 * (report.total // 4))
    assert Path("run/checkpoint-5/pruner.safetensors").is_file()


def test_accelerate(monkeypatch):
    state = pytest.importorskip("accelerate").state
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    state.AcceleratorState._reset_state(True)
    names = follow(ACCELERATE, data=torch.utils.data.DataLoader(torch.ones(4, 8)), **small())
    train(names, 1000)
    names["accelerator"].save_state("state")
    names["pruner"].detach()
    assert zero_blocks(weights(names["model"])) == int(0.8 * 192)
    state.AcceleratorState._reset_state(True)


def language_model(path=None):
    """A GPT-2 with random weights, saved with a tokenizer of whole words where a path is given."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2))
    if path:
        model.save_pretrained(path)
        words = Tokenizer(models.WordLevel({f"word{i}": i for i in range(37)} | {"?": 37}, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(path)
    return model


def test_wanda():
    model = language_model()
    batches = list(torch.randint(40, (4, 2, 12), generator=torch.Generator().manual_seed(1)))
    report = follow(WANDA, model=model, token_batches=batches)["report"]
    for mask in report.masks.values():  # GPT-2 stores weights in x out
        assert ((~mask).sum(0) == int(0.6 * mask.shape[0])).all()


def test_command_line(capsys):
    language_model("MODEL")
    Path("text.txt").write_text(" ".join(f"word{i * i % 37}" for i in range(3000)))
    for line in SCORE.splitlines():
        assert run(*shlex.split(line)[1:]) == 0
    capsys.readouterr()
    command, verdict = VERIFY.splitlines()
    assert run(*shlex.split(command.removeprefix("$ pruneops"))) == 0
    assert capsys.readouterr().out.splitlines()[-1] == verdict
    assert run("verify", "MODEL-2-4", "--pattern", "2:4") == 0
    assert run("verify", "MODEL", "--sparsity", "0.5", "--scope", "row") == 1
    assert all(torch.isfinite(tensor).all() for tensor in load(Path("MODEL-50")).values())


def test_heads_and_neurons():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=96, num_hidden_layers=2, num_attention_heads=12,
                                     intermediate_size=700)  # fmt: skip
    model = transformers.BertModel(config).eval()
    tokens = list(torch.randint(50, (3, 2, 7), generator=torch.Generator().manual_seed(1)))

    def loss_of(model, batch):
        return model(batch).last_hidden_state.square().mean()

    follow(HEADS, model=model, batches=tokens, loss_of=loss_of)
    assert sorted((group.kind, group.instances) for group in find_groups(model)) == [
        ("heads", 8), ("heads", 8), ("neurons", 600), ("neurons", 600),
    ]  # fmt: skip
    loaded = follow(LOAD, model=model)["model"].eval()
    assert loaded is not model
    assert torch.equal(loaded(tokens[0]).last_hidden_state, model(tokens[0]).last_hidden_state)


def test_weights_one_by_one():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=40)  # fmt: skip
    model = transformers.BertModel(config)
    pruner = follow(ELEMENTWISE, model=model)["pruner"]
    shares = []
    for epoch in range(5):
        pruner.on_epoch_begin(epoch)
        pruner.on_step_begin(0)
        weight = model.encoder.layer[0].output.dense.weight
        shares.append(zero_blocks([weight]) / 160)
        model.zero_grad()
        model(torch.arange(14)[None]).last_hidden_state.square().sum().backward()
        pruner.on_step_end()
        pruner.on_epoch_end()
    assert shares[0] == 0
    assert all(a <= b for a, b in pairwise(shares))
    assert shares[-1] == pytest.approx(0.8, abs=0.02)
