"""What the examples compare: each choice prunes exactly half, and the table shows mean and deviation of the seeds."""

import importlib
import re
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

transformers = pytest.importorskip("transformers")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    """A module of the examples by name; they are scripts beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module


@pytest.fixture
def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def weights(model):
    return [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in name]


def test_every_choice_prunes_half(example, language_model):
    baselines = example("baselines")
    tokens = torch.randint(2, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    total = sum(w.numel() for w in weights(language_model))
    for choice in baselines.CHOICES:
        found = weights(baselines.pruned(language_model, choice, tokens.split(2)))
        assert sum(int((w == 0).sum()) for w in found) == total // 2
        if choice.scope == "row":
            assert all(((w == 0).sum(1) == w.shape[1] // 2).all() for w in found)
        if choice.pattern == "2:4":
            assert all(((w.unflatten(1, (-1, 4)) == 0).sum(2) == 2).all() for w in found)
    assert not any((w == 0).any() for w in weights(language_model))


def test_only_what_draws_is_measured_with_every_seed(example, language_model, monkeypatch):
    smollm2 = example("wanda_smollm2")
    monkeypatch.setattr(smollm2, "LENGTH", 8)
    tokens = torch.randint(2, 40, (400,), generator=torch.Generator().manual_seed(2))
    whole, found = smollm2.measure(language_model, tokens, windows=4, seeds=2)
    assert list(found) == list(example("baselines").CHOICES)
    for choice, values in found.items():
        assert len(values) == (2 if choice.criterion in ("random", "wanda") else 1)
        assert len(set(values)) == len(values)
        assert all(value > 1 and value != whole for value in values)


def test_the_table(example):
    baselines = example("baselines")
    first, second = baselines.CHOICES[0], baselines.CHOICES[-1]
    lines = baselines.table([2.0], {first: [1000.0, 3000.0, 2000.4], second: [3.14159]}).splitlines()
    assert len(lines) == 5
    assert lines[2].split(" | ")[3:] == ["2", "none drawn |"]
    values = [1000.0, 3000.0, 2000.4]
    shown = f"{mean(values):,.0f} ± {stdev(values):,.0f}"
    assert lines[3] == f"| 1x1 | random | a row | {shown} | 1,000 / 3,000 / 2,000 |"
    assert lines[4] == "| 2:4 | wanda | 4 weights | 3.142 | none drawn |"


def test_what_is_published_is_written_and_printed(example, tmp_path, capsys):
    path = tmp_path / "new" / "table.md"
    example("baselines").publish("| a |", path, "a note", time.perf_counter())
    assert path.read_text() == "| a |\n"
    assert re.fullmatch(r"\| a \|\n\na note; \d+ s, \d+ s of the processor\n", capsys.readouterr().out)


def test_the_options_of_all_examples(example):
    assert vars(example("baselines").parser(None).parse_args(["--seeds", "5"])) == {"seeds": 5, "out": Path("out")}
