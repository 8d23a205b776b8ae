"""One-shot pruning of modules: which layers, exact counts, layouts, reports, and errors that change nothing."""

import gc
import json
import re
import warnings
import weakref

import numpy as np
import pytest
import torch
from modules import Conv1D
from torch import nn
from torch.nn.utils import parametrizations

from pruneops import CRITERIA, PruningCriterion, prune, register_criterion
from pruneops.layers import find_layers


class Model(nn.Module):
    """A bit of everything: linear, conv, Conv1D, an embedding tied to the head, a norm, a shared parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(4, 8, 3)
        self.block = nn.ModuleDict({"attn": nn.Linear(8, 16), "mlp": Conv1D(8, 16), "norm": nn.LayerNorm(8)})
        self.again = nn.Linear(8, 16)
        self.again.weight = self.block["attn"].weight
        self.odd = nn.Linear(8, 6)
        self.lm_head = nn.Linear(8, 10, bias=False)
        self.lm_head.weight = self.embed.weight


PRUNED = ["conv", "block.attn", "block.mlp", "odd"]


@pytest.fixture
def model():
    return Model()


def with_gradients(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def state(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def out_by_in(name, x):
    return x.t() if name == "block.mlp" else x


def weights(model):
    return {name: model.get_submodule(name).weight for name in PRUNED}


def lowest(values, count):
    """Keep-mask of flat NumPy scores without the ``count`` lowest, later ones first among equals."""
    keep = np.ones(values.size, dtype=bool)
    keep[np.lexsort((-np.arange(values.size), values))[:count]] = False
    return keep


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "snip", "snip_momentum"])
def test_global_element(model, criterion):
    with_gradients(model)
    before = state(model)
    values = {
        "magnitude": lambda w: w.abs(),
        "gradient": lambda w: w.grad.abs(),
    }.get(criterion, lambda w: (w * w.grad).abs())
    flat = np.concatenate([out_by_in(n, values(w).detach()).reshape(-1).numpy() for n, w in weights(model).items()])
    kept = np.split(lowest(flat, int(0.6 * flat.size)), np.cumsum([w.numel() for w in weights(model).values()])[:-1])
    report = prune(model, 0.6, criterion=criterion)
    for (name, weight), expected in zip(weights(model).items(), kept, strict=True):
        mask = report.masks[name]
        assert mask.shape == weight.shape
        np.testing.assert_array_equal(out_by_in(name, mask).reshape(-1).numpy(), expected)
        assert torch.equal(weight, torch.where(mask, before[f"{name}.weight"], 0.0))
    assert (report.total, report.total - report.kept) == (flat.size, int(0.6 * flat.size))
    untouched = [n for n in before if n.removesuffix(".weight") not in PRUNED and n != "again.weight"]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)


@pytest.mark.parametrize("scope", ["local", "row"])
def test_local_and_row(model, scope):
    report = prune(model, 0.5, scope=scope)
    for layer in report.layers:
        assert layer.total - layer.kept == layer.total // 2
        rows = out_by_in(layer.name, report.masks[layer.name]).flatten(1).sum(1)
        assert scope == "local" or (rows == rows[0]).all()


@pytest.mark.parametrize(
    ("pattern", "block"), [("4x1", (4, 1)), ("2x2", (2, 2)), ("channelx1", None), ("1xchannel", (1, None))]
)
@pytest.mark.parametrize("criterion", ["magnitude", "snip", "snip_momentum_block", "retrain_free"])
@pytest.mark.filterwarnings("ignore:prune. pattern")
def test_blocks_lie_along_output_and_input_channels(model, criterion, pattern, block):
    with_gradients(model)
    report = prune(model, 0.5, pattern=pattern, criterion=criterion)
    units = 0
    for layer in report.layers:
        mask = out_by_in(layer.name, report.masks[layer.name])
        matrix = (mask.movedim(1, -1) if mask.dim() > 2 else mask).reshape(mask.shape[0], -1)
        n, m = block or (None, 1)
        n, m = n or matrix.shape[0], m or matrix.shape[1]
        grid = matrix.reshape(matrix.shape[0] // n, n, matrix.shape[1] // m, m)
        assert (grid.all(3).all(1) == grid.any(3).any(1)).all()
        assert report.masks.units[layer.name].shape == grid.shape[::2]
        assert layer.kept == int(mask.sum())
        units += int((~report.masks.units[layer.name]).sum())
    assert units == sum(mask.numel() for mask in report.masks.units.values()) // 2
    assert report.skipped == (("odd",) if pattern == "4x1" else ())


@pytest.mark.parametrize("sparsity", [None, 0.5])
@pytest.mark.parametrize("criterion", ["magnitude", "snip"])
def test_nm_groups_along_input_channels(model, sparsity, criterion):
    report = prune(with_gradients(model), sparsity, pattern="2:4", criterion=criterion)
    assert [layer.name for layer in report.layers] == PRUNED
    for layer in report.layers:
        mask = out_by_in(layer.name, report.masks[layer.name])
        groups = (mask.movedim(1, -1) if mask.dim() > 2 else mask).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()


def test_bounds(model):
    with torch.no_grad():
        model.conv.weight.mul_(1e-3)
    report = prune(model, 0.5, min_sparsity=0.2, max_sparsity=0.7)
    sparsity = {layer.name: layer.sparsity for layer in report.layers}
    assert sparsity["conv"] == pytest.approx(0.7, abs=1 / 288)
    assert all(0.2 <= value <= 0.7 for value in sparsity.values())
    assert report.total - report.kept == report.total // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(model, dtype):
    model.to(dtype)
    report = prune(model, 0.5)
    assert report.total - report.kept == report.total // 2
    assert sum(int((weight == 0).sum()) for weight in weights(model).values()) == report.total // 2


def test_ties_and_already_pruned_weights(model):
    for weight in weights(model).values():
        weight.data.fill_(0.5)
    assert prune(model, 0.25).sparsity == 0.25
    assert prune(model, 0.5).sparsity == 0.5
    again = state(model)
    assert prune(model, 0.5).sparsity == 0.5
    assert unchanged(model, again)


def test_nan_is_pruned_and_becomes_zero():
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[float("nan"), 1.0, -2.0, -0.1]])
    prune(layer, 0.5)
    assert torch.equal(layer.weight, torch.tensor([[0.0, 1.0, -2.0, 0.0]]))
    assert not torch.signbit(layer.weight[0, 0] + layer.weight[0, 3])


def test_transformers_conv1d():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layer = nn.Sequential(conv1d(8, 12))
    before = layer[0].weight.detach().clone()
    mask = prune(layer, 0.5, pattern="4x1").masks["0"]
    assert mask.shape == (12, 8)
    assert (mask.reshape(12, 2, 4).all(2) == mask.reshape(12, 2, 4).any(2)).all()
    assert torch.equal(layer[0].weight, torch.where(mask, before, 0.0))


@pytest.mark.filterwarnings("ignore")
def test_gpt2_and_bert():
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small))
    names = [layer.name for layer in find_layers(gpt2)]
    assert names == [f"transformer.h.0.{x}" for x in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, intermediate_size=32))
    names = [layer.name for layer in find_layers(bert)]
    assert "cls.predictions.decoder" not in names
    assert len(names) == 7
    assert prune(bert, 0.5, pattern="2:4").sparsity == 0.5


class TestLayers:
    @staticmethod
    def names(model, **patterns):
        return [layer.name for layer in find_layers(model, **patterns)]

    def test_default(self, model):
        assert self.names(model) == PRUNED

    @pytest.mark.parametrize(
        ("include", "expected"),
        [
            ("block.*", ["block.attn", "block.mlp"]),
            (["conv", "odd"], ["conv", "odd"]),
            (r"re:\.(attn|mlp)$", ["block.attn", "block.mlp"]),
            ("lm_head", ["lm_head"]),
            ("again", ["block.attn"]),
            ("*", [*PRUNED, "lm_head"]),
        ],
    )
    def test_include(self, model, include, expected):
        assert self.names(model, include=include) == expected

    def test_exclude(self, model):
        assert self.names(model, exclude=["re:^block", "block.norm"]) == ["conv", "odd"]
        assert self.names(model, exclude="again") == ["conv", "block.mlp", "odd"]
        assert self.names(model, include="*", exclude="conv") == [*PRUNED[1:], "lm_head"]

    @pytest.mark.parametrize("what", ["include", "exclude"])
    @pytest.mark.parametrize("pattern", ["enocder.*", "re:enocder"])
    def test_a_pattern_that_matches_nothing(self, model, what, pattern):
        with pytest.raises(
            ValueError, match=f"{what} pattern {pattern!r} matches no layer.*block.attn".replace("*", ".*", 1)
        ):
            self.names(model, **{what: pattern})

    def test_a_bad_expression(self, model):
        with pytest.raises(ValueError, match=r"include pattern 're:\(' is not a regular expression"):
            self.names(model, include="re:(")
        with pytest.raises(TypeError, match="include must hold strings, got int"):
            self.names(model, include=[3])

    @pytest.mark.parametrize("head", ["lm_head", "classifier", "score", "qa_outputs"])
    def test_heads_by_name(self, head):
        model = nn.ModuleDict({"fc": nn.Linear(4, 4), head: nn.Sequential(nn.Linear(4, 4))})
        assert self.names(model) == ["fc"]
        assert self.names(model, include=f"{head}.0") == [f"{head}.0"]

    def test_the_head_that_the_model_names(self, model):
        model.get_output_embeddings = lambda: model.odd
        assert self.names(model) == PRUNED[:-1]

    def test_a_module_registered_twice(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": shared, "b": shared})
        assert self.names(model) == ["a"]
        assert self.names(model, include="b") == ["a"]
        assert self.names(model, include="a", exclude=["re:^$"]) == ["a"]

    def test_a_layer_by_itself(self):
        report = prune(nn.Linear(4, 4), 0.5)
        assert (report.layers[0].name, report.kept) == ("", 8)

    def test_weights_that_cannot_be_written(self):
        model = nn.ModuleDict({"plain": nn.Linear(4, 4), "made": parametrizations.weight_norm(nn.Linear(4, 4))})
        with pytest.raises(ValueError, match="'made' is not a parameter of its own"):
            self.names(model)
        assert self.names(model, exclude="made") == ["plain"]
        for layer in (nn.LazyLinear(4), nn.Linear(4, 4, device="meta")):
            with pytest.raises(ValueError, match="has no values yet"):
                self.names(nn.Sequential(layer))

    def test_not_a_module(self):
        with pytest.raises(TypeError, match=r"torch\.nn\.Module, got dict"):
            prune({}, 0.5)


class TestReport:
    def test_counts_table_and_json(self, model):
        report = prune(model, 0.5)
        data = json.loads(report.to_json())
        assert data == json.loads(report.to_json(indent=None)) == report.to_dict()
        assert (data["criterion"], data["pattern"], data["scope"]) == ("magnitude", "1x1", "global")
        assert data["total"] == sum(layer["total"] for layer in data["layers"]) == 288 + 128 + 128 + 48
        assert data["kept"] == data["total"] // 2
        assert data["sparsity"] == 0.5
        assert list(data["seconds"]) == ["score", "select", "apply"]
        assert data["layers"][2] | {"kept": 0, "sparsity": 0} == {
            "name": "block.mlp", "shape": [16, 8], "total": 128, "kept": 0, "sparsity": 0,
        }  # fmt: skip
        text = str(report)
        for word in ("block.mlp", "16 x 8", "592", "296", "50.00%", "total of 4 layers"):
            assert word in text

    def test_masks_are_a_mapping(self, model):
        masks = prune(model, 0.5, pattern="4x1", include=["conv", "block.mlp"]).masks
        assert list(masks) == ["conv", "block.mlp"]
        assert len(masks) == 2
        assert all(mask.dtype == torch.bool for mask in masks.values())
        assert masks["block.mlp"].shape == (16, 8)
        assert masks.units["block.mlp"].shape == (2, 16)
        with pytest.raises(KeyError):
            masks["odd"]

    def test_gradients_are_not_kept_alive(self, model):
        gradient = weakref.ref(with_gradients(model).conv.weight.grad)
        report = prune(model, 0.5, criterion="snip")
        model.zero_grad(set_to_none=True)
        gc.collect()
        assert report.masks["conv"].any()
        assert gradient() is None


class TestIndivisible:
    def test_skip_warns_once_and_lists_them(self, model):
        model.other = nn.Linear(8, 7)
        before = state(model)
        with pytest.warns(UserWarning, match=re.escape("odd [6, 8], other [7, 8]; they are skipped")) as caught:
            report = prune(model, 0.5, pattern="4x1")
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert report.skipped == ("odd", "other")
        assert torch.equal(model.odd.weight, before["odd.weight"])
        assert "skipped 2 that" in " ".join(str(report).split())

    def test_error(self, model):
        before = state(model)
        with pytest.raises(ValueError, match=re.escape("pattern '4x1' does not divide 1 layers: odd [6, 8]")):
            prune(model, 0.5, pattern="4x1", on_indivisible="error")
        assert unchanged(model, before)

    def test_excluded_layers_do_not_count(self, model):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert prune(model, 0.5, pattern="4x1", exclude="odd", on_indivisible="error").skipped == ()


class TestCriteria:
    def test_a_registered_criterion_takes_one_step(self, model):
        @register_criterion("test_weakest_first")
        class Weakest(PruningCriterion):
            def on_before_optimizer_step(self):
                self.scores = {key: -module.weight.abs() for key, module in self.modules.items()}

        try:
            largest = max(float(weight.detach().abs().max()) for weight in weights(model).values())
            report = prune(model, 0.01, criterion="test_weakest_first")
            assert report.kept == report.total - int(0.01 * report.total)
            assert max(float(weight.detach().abs().max()) for weight in weights(model).values()) < largest
            assert prune(model, 0.5, criterion="test_weakest_first", pattern="4x1", exclude="odd").sparsity == 0.5
        finally:
            del CRITERIA["test_weakest_first"]

    def test_a_derived_class_is_not_mistaken_for_its_base(self, model):
        @register_criterion("test_derived")
        class Derived(CRITERIA["magnitude"]):
            def on_step_begin(self):
                self.scores = {key: torch.zeros(m.weight.shape) for key, m in self.modules.items()}
                self.scores["odd"] -= 1

        try:
            report = prune(model, 48 / 592, criterion="test_derived")
            assert [layer.kept for layer in report.layers] == [288, 128, 128, 0]
        finally:
            del CRITERIA["test_derived"]

    def test_a_registered_criterion_is_made_as_everywhere(self, model):
        @register_criterion("test_wants_framework")
        class Wants(CRITERIA["magnitude"]):
            def __init__(self, modules, config, framework):
                super().__init__(modules, config, framework)

        try:
            assert prune(model, 0.5, criterion="test_wants_framework").sparsity == 0.5
        finally:
            del CRITERIA["test_wants_framework"]

    @pytest.mark.parametrize("criterion", ["gradient", "snip", "snip_momentum"])
    def test_missing_gradient_names_the_parameter(self, model, criterion):
        with_gradients(model)
        before = state(model)
        model.block["mlp"].weight.grad = None
        with pytest.raises(ValueError, match=r"the weight of 'block\.mlp' has none: run a backward pass"):
            prune(model, 0.5, criterion=criterion)
        model.block["mlp"].weight.requires_grad_(False)
        with pytest.raises(ValueError, match=r"the weight of 'block\.mlp' has none: it is frozen"):
            prune(model, 0.5, criterion=criterion)
        assert unchanged(model, before)

    @pytest.mark.parametrize("criterion", ["snip_momentum_block", "retrain_free"])
    def test_block_criteria_need_blocks(self, model, criterion):
        with pytest.raises(ValueError, match=f"'{criterion}' scores blocks, but pattern '2:4' has none"):
            prune(with_gradients(model), 0.5, criterion=criterion, pattern="2:4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0"),
        ({"sparsity": -0.5}, "sparsity must be at least 0 and below 1, got -0.5"),
        ({"sparsity": None}, "needs a sparsity"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "'2:4' gives sparsity 0.5, got sparsity=0.6"),
        ({"pattern": "4y1"}, "pattern must be"),
        ({"scope": "layer"}, "scope must be one of global, local, row, got 'layer'"),
        ({"criterion": "l1"}, "unknown criterion 'l1'"),
        ({"min_sparsity": 0.6}, "outside of min_sparsity=0.6"),
        ({"max_sparsity": 0.4}, "outside of min_sparsity=None, max_sparsity=0.4"),
        ({"on_indivisible": "ignore"}, "on_indivisible must be 'skip' or 'error', got 'ignore'"),
        ({"include": "nothing"}, "include pattern 'nothing' matches no layer"),
        ({"input_norms": {}}, "criterion 'magnitude' does not read input_norms; criterion='wanda' does"),
        ({"criterion": "snip", "input_norms": {"odd": torch.ones(8)}}, "criterion 'snip' does not read input_norms"),
    ],
)
def test_bad_arguments_change_nothing(model, arguments, message):
    before = state(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        prune(model, **{"sparsity": 0.5} | arguments)
    assert unchanged(model, before)


def test_autograd_sees_the_write(model):
    x = torch.randn(2, 8, requires_grad=True)
    loss = model.odd(x).square().sum()
    prune(model, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_pruned_model_trains_on(model):
    prune(model, 0.5)
    model.odd(torch.randn(2, 8)).sum().backward()
    assert model.odd.weight.requires_grad
    assert model.odd.weight.grad.shape == model.odd.weight.shape
