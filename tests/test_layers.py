"""Which parameters are pruned: the default rule of modules and checkpoints, and what cannot be pruned in place."""

import re
import warnings

import pytest
import torch
import torch.distributed as dist
from modules import Conv1D
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.utils import parametrizations

import pruneops
from pruneops.checkpoint import Checkpoint
from pruneops.layers import excluded_by_default, find_layers, unlayered_weights
from pruneops.planning import make_plan


def names(model, **arguments):
    return [layer.name for layer in find_layers(model, **arguments)]


def tree(**children):
    return nn.ModuleDict(children)


class Adapted(nn.Module):
    """A layer with adapters, named as PEFT, torchtune, diffusers and adapters name them."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(8, 8)
        self.lora_A = tree(default=nn.Linear(8, 4))
        self.lora_B = tree(default=nn.Linear(4, 8))
        self.lora_embedding_A = nn.ParameterDict({"default": torch.zeros(4, 8)})
        self.lora_b = nn.Linear(4, 8)
        self.to_q_lora = tree(down=nn.Linear(8, 4))
        self.adapter_up = nn.Linear(4, 8)
        self.vera_B = nn.ParameterDict({"default": torch.zeros(8, 4)})


class Experts(nn.Module):
    """As transformers stacks them; GPT-OSS stores each in x out."""

    def __init__(self, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        generator = torch.Generator().manual_seed(0)
        self.gate_up_proj = nn.Parameter(torch.randn(3, *((8, 16) if is_transposed else (16, 8)), generator=generator))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 16))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 8))


def mixture(is_transposed=False):
    return tree(attn=nn.Linear(8, 8), mlp=tree(gate=Router(), experts=Experts(is_transposed)))


#: Name of a module -> whether its weight is pruned by default.
RULE = {
    "encoder.layer.0.attention.query": True,
    "text_embedder.encoder.layer.0.query": True,
    "layers.0.mlp.gate_proj": True,
    "layers.0.attention.gate": True,
    "layers.0.exploration": True,
    "layers.0.mlp.experts.0.w1": True,
    "embeddings.patch_embeddings.projection": False,
    "patch_embed.proj": False,
    "h.0.wte": False,
    "layers.0.norm_proj": False,
    "lm_head": False,
    "cls.predictions.decoder": False,
    "output": False,
    "layers.0.mlp.gate": False,
    "layers.0.mlp.shared_expert_gate": False,
    "layers.0.router.layer": False,
    "layers.0.q_proj.lora_A.default": False,
    "layers.0.q_proj.lora_embedding_B": False,
    "layers.0.q_proj.lora_b": False,
    "layers.0.hada_w1_a": False,
    "layers.0.adapter_down.0": False,
}


def test_one_rule_for_modules_and_checkpoints(tmp_path):
    model = nn.Module()
    for name in RULE:
        *path, last = name.split(".")
        parent = model
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(last, nn.Linear(4, 4))
    expected = {name for name, pruned in RULE.items() if pruned}
    assert set(names(model)) == expected
    assert set(names(model, include="*")) == set(RULE)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plan = make_plan(Checkpoint(tmp_path / "model.safetensors"), "1x1")
    assert {name.removesuffix(".weight") for name in plan.names} == expected
    reasons = {name.removesuffix(".weight"): reason for name, reason in plan.skipped.items()}
    assert reasons["lm_head"] == reasons["patch_embed.proj"] == "embedding, norm or head"
    assert reasons["layers.0.q_proj.lora_b"] == "adapter"
    assert reasons["layers.0.mlp.gate"] == "router"


def test_adapters_are_pruned_only_where_they_are_named():
    model = Adapted()
    assert names(model) == ["base_layer"]
    assert names(model, include="lora_[AB].*") == ["lora_A.default", "lora_B.default"]
    assert unlayered_weights(model) == {}


def test_a_gate_is_a_router_beside_experts_only():
    assert excluded_by_default("mlp.gate") is None
    assert excluded_by_default("mlp.gate", ["mlp.experts.0.w1"]) == "router"
    assert excluded_by_default("mlp.gate", ["other.experts.0.w1"]) is None
    assert excluded_by_default("gate", ["experts.0.w1"]) == "router"


def test_patch_embeddings_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = transformers.ViTModel(config)
    assert not [name for name in names(model) if "embed" in name]
    assert "embeddings.patch_embeddings.projection" in names(model, include="*")


class TestNames:
    MODEL = tree(tok=nn.Embedding(10, 8), fc=nn.Linear(8, 8), norm=nn.LayerNorm(8), lm_head=nn.Linear(8, 10))

    @pytest.mark.parametrize("pattern", ["fc", "fc.weight", "*.weight", r"re:^fc\.weight$", ["fc.weight", "fc"]])
    def test_with_and_without_weight(self, pattern):
        assert "fc" in names(self.MODEL, include=pattern)
        with pytest.raises(ValueError, match="no layer is left"):
            names(self.MODEL, exclude=pattern)

    def test_a_layer_by_itself(self):
        assert names(nn.Linear(4, 4), include="weight") == names(nn.Linear(4, 4), include="re:^$") == [""]

    def test_embeddings(self):
        assert names(self.MODEL) == ["fc"]
        assert names(self.MODEL, include="tok") == ["tok"]
        assert names(self.MODEL, include="*") == ["fc", "lm_head", "tok"]
        report = pruneops.prune(tree(tok=nn.EmbeddingBag(10, 8)), 0.5, include="tok.weight", pattern="2x1")
        assert (report.total, report.kept) == (80, 40)

    def test_a_tied_embedding_is_known_by_its_layer(self):
        model = tree(tok=nn.Embedding(10, 8), fc=nn.Linear(8, 10))
        model["fc"].weight = model["tok"].weight
        assert names(model, include="tok") == ["fc"]
        with pytest.raises(ValueError, match=r"fc \(embedding, norm or head, excluded by default\)"):
            names(model)

    @pytest.mark.parametrize("what", ["norm", "norm.weight", "fc.bias"])
    def test_what_has_no_matrix(self, what):
        with pytest.raises(ValueError, match=f"'{what}' matches no layer; what it names has no weight .*{what}$"):
            names(self.MODEL, include=what)
        assert names(self.MODEL, exclude=what) == ["fc"]

    def test_of_a_checkpoint(self, tmp_path):
        save_file(self.MODEL.state_dict(), tmp_path / "model.safetensors")
        checkpoint = Checkpoint(tmp_path / "model.safetensors")
        for pattern in ("tok", "tok.weight"):
            assert make_plan(checkpoint, "1x1", include=pattern).names == ["tok.weight"]
            assert make_plan(checkpoint, "1x1", include="*", exclude=pattern).names == ["fc.weight", "lm_head.weight"]
        with pytest.raises(ValueError, match=r"'norm' matches no layer; what it names has no weight .*: norm$"):
            make_plan(checkpoint, "1x1", include="norm")


class TestNothingLeft:
    @pytest.mark.parametrize(
        ("model", "arguments", "cause"),
        [
            (nn.Sequential(nn.ReLU()), {}, "the model has no weight of Linear, Conv1d/2d/3d, Conv1D or an embedding"),
            (tree(lm_head=nn.Linear(4, 4)), {}, "lm_head (embedding, norm or head, excluded by default)"),
            (
                tree(a=nn.Linear(4, 4), b=nn.Linear(4, 4), head=nn.Linear(4, 4)),
                {"include": "a", "exclude": "a"},
                "a, b (not selected by name); head (embedding, norm or head, excluded by default)",
            ),
            (nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), {"exclude": "*"}, "0, 1, 2 and 2 more (not selected"),
        ],
    )
    @pytest.mark.parametrize("call", [find_layers, lambda model, **names: pruneops.prune(model, 0.5, **names)])
    def test_the_cause_is_named(self, model, arguments, cause, call):
        with pytest.raises(ValueError, match=re.escape(f"no layer is left to prune: {cause}")):
            call(model, **arguments)

    def test_a_pattern_that_divides_nothing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(
                ValueError, match=r"'4x1' does not divide 1 layers: 0 \[6, 4\]; no layer is left to prune"
            ):
                pruneops.prune(nn.Sequential(nn.Linear(4, 6)), 0.5, pattern="4x1")

    def test_norms_of_other_layers(self):
        with pytest.raises(ValueError, match="its names begin with other, those of the layers with 0"):
            pruneops.prune(nn.Sequential(nn.Linear(4, 4)), 0.5, criterion="wanda", input_norms={"other": torch.ones(4)})

    def test_an_earlier_rule_took_them(self):
        rules = [{"targets": "0"}, {"targets": "0"}]
        with pytest.raises(ValueError, match="an earlier rule has taken each that this one names"):
            pruneops.Pruner(nn.Sequential(nn.Linear(4, 4)), end_step=1, rules=rules)


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching", "ignore:.*deprecated")
class TestSharded:
    def test_fully_sharded_data_parallel(self, group):
        inner = nn.Sequential(nn.Linear(4, 4))
        sharded = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=True)
        mixed = tree(sharded=sharded, fc=nn.Linear(4, 4))
        for model in (sharded, torch.compile(sharded), mixed):
            with pytest.raises(ValueError, match=r"_fsdp_wrapped_module\.0' lies in FullyShardedDataParallel"):
                pruneops.prune(model, 0.5)
        assert names(mixed, include="fc") == ["fc"]

    def test_a_dtensor(self, group):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        fully_shard(model[1], mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="the weight of '1' is a DTensor"):
            pruneops.prune(model, 0.5)
        assert names(model, exclude="1") == ["0"]

    @pytest.mark.parametrize("shape", [(16,), (0,)])
    def test_a_flat_shard(self, shape):
        model = nn.Sequential(nn.Linear(4, 4))
        model[0].weight = nn.Parameter(torch.ones(shape))
        with pytest.raises(ValueError, match=re.escape(f"the weight of '0' has shape {list(shape)}, no matrix")):
            pruneops.prune(model, 0.5)

    def test_tensor_subclasses(self):
        class Quantized(torch.Tensor):
            pass

        class Named(nn.Parameter):
            pass

        model = nn.Sequential(nn.Linear(4, 4))
        model[0].weight = nn.Parameter(torch.ones(4, 4).as_subclass(Quantized))
        with pytest.raises(ValueError, match="the weight of '0' is a Quantized; sharded, quantized and sparse"):
            pruneops.prune(model, 0.5)
        model[0].weight = Named(torch.ones(4, 4))
        assert pruneops.prune(model, 0.5).kept == 8


class TestUnlayered:
    def test_what_is_listed(self):
        model = tree(fc=nn.Linear(8, 8), rnn=nn.GRU(8, 8), norm=nn.LayerNorm((2, 8)), tok=nn.Embedding(9, 8))
        model.pos_embed = nn.Parameter(torch.ones(1, 9, 8))
        model.codes = nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False)
        model.relative_bias = nn.Parameter(torch.ones(4, 4))
        total = sum(x.numel() for x in model.parameters())
        expected = {f"rnn.weight_{x}h_l0": 192 / total for x in "ih"}
        assert unlayered_weights(model) == pytest.approx(expected)
        with pytest.warns(
            UserWarning, match=f"{384 / total:.0%} of the model's weights .*: rnn.weight_ih_l0"
        ) as caught:
            report = pruneops.prune(model, 0.5)
        assert caught[0].filename == __file__
        assert report.unlayered == report.to_dict()["unlayered"] == pytest.approx(expected)
        text = " ".join(str(report).split())
        assert all(f"rnn.weight_{x}h_l0 {192 / total:.1%}" in text for x in "ih")

    def test_a_small_share_or_a_choice_is_no_warning(self):
        model = tree(fc=nn.Linear(64, 64), bilinear=nn.Bilinear(4, 4, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(pruneops.prune(model, 0.5).unlayered) == ["bilinear.weight"]
            model["bilinear"] = nn.Bilinear(64, 64, 4)
            assert pruneops.prune(model, 0.5, include="fc").kept == 2048
            assert pruneops.prune(model, 0.5, exclude="bilinear.weight").kept == 2048
            model["bilinear"] = parametrizations.orthogonal(nn.Linear(64, 64))
            assert pruneops.prune(model, 0.5, exclude="bilinear").unlayered == {}


class TestStacked:
    def test_attention(self):
        model = nn.TransformerEncoderLayer(8, 2, 16)
        found = ["self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"]
        assert names(model, stacked=True) == found
        report = pruneops.prune(model, 0.5, pattern="4x1", scope="local")
        assert [layer.name for layer in report.layers] == found
        assert report.unlayered == {}
        blocks = model.self_attn.in_proj_weight.detach().unflatten(0, (6, 4)) == 0
        assert (blocks.all(1) == blocks.any(1)).all()
        assert int(blocks.sum()) == 96
        assert torch.equal(report.masks[found[0]], model.self_attn.in_proj_weight != 0)

    def test_attention_with_separate_projections(self):
        model = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
        assert names(model, stacked=True) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]

    @pytest.mark.parametrize("is_transposed", [False, True])
    @pytest.mark.parametrize(("criterion", "pattern"), [("magnitude", "2:4"), ("snip", "4x1"), ("test_abs", "1x1")])
    def test_experts(self, is_transposed, criterion, pattern):
        @pruneops.register_criterion("test_abs")
        class Absolute(pruneops.PruningCriterion):
            def on_before_optimizer_step(self):
                self.update_scores("snip")

        model = mixture(is_transposed)
        experts = model["mlp"]["experts"].gate_up_proj
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        # The same experts as layers of their own, which is how they are counted and pruned.
        apart = tree(attn=nn.Linear(8, 8))
        for i, (weight, grad) in enumerate(zip(experts.detach().clone(), experts.grad, strict=True)):
            apart[f"e{i}"] = Conv1D(16, 8) if is_transposed else nn.Linear(8, 16)
            apart[f"e{i}"].weight = nn.Parameter(weight)
            apart[f"e{i}"].weight.grad = grad
        apart["attn"].load_state_dict(model["attn"].state_dict())
        apart["attn"].weight.grad = model["attn"].weight.grad
        try:
            share = None if ":" in pattern else 0.5
            reports = [pruneops.prune(x, share, criterion=criterion, pattern=pattern) for x in (model, apart)]
        finally:
            del pruneops.CRITERIA["test_abs"]
        assert [x.name for x in reports[0].layers] == ["attn", *(f"mlp.experts.gate_up_proj.{i}" for i in range(3))]
        assert [(x.shape, x.kept) for x in reports[0].layers] == [(x.shape, x.kept) for x in reports[1].layers]
        for i in range(3):
            assert torch.equal(experts[i], apart[f"e{i}"].weight)
            assert torch.equal(reports[0].masks[f"mlp.experts.gate_up_proj.{i}"], experts[i] != 0)

    def test_names_of_experts(self):
        model = mixture()
        assert len(names(model, stacked=True, include="*.gate_up_proj")) == 3
        assert names(model, stacked=True, include="*.gate_up_proj.1") == ["mlp.experts.gate_up_proj.1"]
        with pytest.warns(UserWarning, match="are in parameters of no layer"):
            assert names(model) == ["attn"]
        with pytest.raises(ValueError, match="what it names has no weight that can be pruned here"):
            names(model, include="*.gate_up_proj")

    def test_mixtral(self):
        transformers = pytest.importorskip("transformers", minversion="5")
        config = transformers.MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4,
        )  # fmt: skip
        model = transformers.MixtralForCausalLM(config)
        report = pruneops.prune(model, None, pattern="2:4")
        assert report.unlayered == {}
        assert sum("experts" in layer.name for layer in report.layers) == 8
        assert report.sparsity == 0.5
        assert not [layer.name for layer in report.layers if "gate." in layer.name or "head" in layer.name]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_are_taken_off(wrap):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    report = pruneops.prune(wrap(model), 0.5, include="0")
    assert list(report.masks) == ["0"]
    assert torch.equal(model[0].weight != 0, report.masks["0"])
    norms = pruneops.calibrate(wrap(model), [torch.ones(2, 8)])
    assert list(norms) == ["0", "1"]


def test_experts_that_do_not_say_how_they_are_stored():
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.JetMoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, kv_channels=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = transformers.JetMoeForCausalLM(config)
    report = pruneops.prune(model, None, pattern="2:4")
    assert report.unlayered == {}
    stacks = [x for x in model.parameters() if x.dim() == 3]
    assert stacks
    assert all((x.unflatten(2, (-1, 4)) != 0).sum(3).eq(2).all() for x in stacks)  # each out x in
