"""What goes into experts that one parameter stacks: norms, Wanda and scores on disk, against NumPy."""

import numpy as np
import pytest
import torch
from published import batches, published_masks, run_under
from safetensors.torch import load_file
from torch import nn

import pruneops
from pruneops.blockwise import wanda
from pruneops.calibration import calibrate
from pruneops.checkpoint import Checkpoint
from pruneops.score_files import SavedScores, save_scores
from pruneops.scoring import score_checkpoint

transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}


def mixtral(layers=1):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, intermediate_size=32, num_hidden_layers=layers, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def gpt_oss(layers=1):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **SIZES, intermediate_size=32, num_hidden_layers=layers, num_local_experts=4, num_experts_per_tok=2, head_dim=8
    )
    return transformers.GptOssForCausalLM(config)


def silu(x):
    return x / (1 + np.exp(-x))


def mixtral_gate(experts, expert, x):
    gate, up = np.split(x @ experts["gate_up_proj"][expert].T, 2, axis=1)
    return silu(gate) * up


def gpt_oss_gate(experts, expert, x):
    """Clamped, of neighbouring columns, as in the model's description."""
    both = x @ experts["gate_up_proj"][expert] + experts["gate_up_proj_bias"][expert]
    gate, up = np.minimum(both[:, ::2], 7), np.clip(both[:, 1::2], -7, 7)
    return (up + 1) * gate / (1 + np.exp(-1.702 * gate))


MODELS = {"mixtral": (mixtral, mixtral_gate), "gpt_oss": (gpt_oss, gpt_oss_gate)}


class Routed:
    """The tokens that each block's experts get, and which of them go to which."""

    def __init__(self, model):
        self.calls = {}
        self.modules = {name: x for name, x in model.named_modules() if name.endswith(".experts")}
        self.handles = [x.register_forward_pre_hook(self.hook(name)) for name, x in self.modules.items()]

    def hook(self, name):
        def note(module, args):
            x, chosen = (args[i].detach().numpy() for i in range(2))
            self.calls.setdefault(name, []).append((x.reshape(-1, x.shape[-1]).astype(float), chosen))

        return note

    def norms(self, gate):
        found = {}
        for name, calls in self.calls.items():
            weights = {key: x.detach().double().numpy() for key, x in self.modules[name].named_parameters()}
            for expert in range(4):
                x = np.concatenate([tokens[(chosen == expert).any(1)] for tokens, chosen in calls])
                inputs = {"gate_up_proj": x, "down_proj": gate(weights, expert, x)}
                for key, rows in inputs.items():
                    found[f"{name}.{key}.{expert}"] = np.sqrt((rows**2).sum(0))
        return found


def routed_norms(model, gate):
    routed = Routed(model)
    run_under(routed.handles, model)
    return routed.norms(gate)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_norms_of_the_tokens_that_each_expert_gets(name, implementation):
    make, gate = MODELS[name]
    model = make(layers=2).eval()
    expected = routed_norms(model, gate)
    model.set_experts_implementation(implementation)
    norms = calibrate(model, batches())
    assert {name for name in norms if "experts" in name} == expected.keys()
    assert len(expected) == 16
    for layer, norm in expected.items():
        np.testing.assert_allclose(norms[layer].numpy(), norm, rtol=1e-4, atol=1e-7)
    assert model.config._experts_implementation == implementation


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("pattern", "nm"), [("1x1", None), ("2:4", (2, 4))])
def test_wanda_goes_block_by_block(name, pattern, nm):
    """The second block's experts are ranked by what they get of the first one's, already pruned."""
    make, gate = MODELS[name]
    model = make(layers=2)
    report = wanda(model, batches(), 0.5, pattern=pattern)
    assert report.unlayered == {}
    partly = make(layers=2).eval()
    for block in range(2):
        norms = {layer: x for layer, x in routed_norms(partly, gate).items() if f"layers.{block}." in layer}
        assert len(norms) == 8
        for layer, norm in norms.items():
            path, index = layer.rsplit(".", 1)
            stored = partly.get_parameter(path).detach()[int(index)]
            weight = stored.t() if name == "gpt_oss" else stored
            mask = ~torch.from_numpy(published_masks(weight.double().numpy(), norm**2, 0.5, nm))
            assert torch.equal(report.masks[layer], mask.t() if name == "gpt_oss" else mask), layer
        for layer, mask in report.masks.items():
            if f"layers.{block}." in layer and "experts" not in layer:
                partly.get_submodule(layer).weight.detach()[~mask] = 0
            elif f"layers.{block}." in layer:
                path, index = layer.rsplit(".", 1)
                partly.get_parameter(path).detach()[int(index)][~mask] = 0
    assert all(torch.equal(x, partly.state_dict()[key]) for key, x in model.state_dict().items())


def test_all_experts_at_once():
    """As Llama 4 does: each token goes to every expert, times a factor that is mostly zero."""
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=1, num_local_experts=4, head_dim=8,
        interleave_moe_layer_step=1,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config).eval()
    experts = model.model.layers[0].feed_forward.experts
    seen = []
    run_under([experts.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().double()))], model)
    norms = calibrate(model, batches())
    for i in range(4):
        x = torch.cat([rows.view(4, -1, 16)[i] for rows in seen])
        gate, up = (x @ experts.gate_up_proj[i].double()).chunk(2, dim=1)
        inner = up * torch.nn.functional.silu(gate)
        for key, rows in (("gate_up_proj", x), ("down_proj", inner)):
            found = norms[f"model.layers.0.feed_forward.experts.{key}.{i}"]
            torch.testing.assert_close(found, rows.norm(dim=0).float(), rtol=1e-4, atol=1e-7)
    report = pruneops.prune(model, pattern="2:4", sparsity=None, include="*.experts.*")
    assert len(report.layers) == 8
    assert (experts.gate_up_proj.unflatten(1, (-1, 4)) != 0).sum(2).eq(2).all()  # stored in x out


def test_norms_prune_at_any_sparsity():
    model = mixtral()
    norms = calibrate(model, batches())
    report = pruneops.prune(model, 0.25, criterion="wanda", input_norms=norms)
    assert {layer.name for layer in report.layers} == norms.keys()
    assert report.sparsity == 0.25


class Chosen(nn.Module):
    """Sends every token to the experts that are named."""

    is_transposed = False

    def __init__(self, chosen):
        super().__init__()
        torch.manual_seed(0)
        self.chosen = chosen
        self.up = nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x):
        return sum(nn.functional.linear(x, self.up[i]) for i in self.chosen)


def test_experts_that_no_token_reaches_are_ranked_by_their_weights_alone():
    model = nn.Sequential(Chosen([0, 2]), nn.Linear(8, 8))
    x = torch.randn(5, 16)
    with pytest.warns(UserWarning, match=r"no token reached 1 of 3 matrices of experts, .* alone: 0\.up\.1$"):
        norms = calibrate(model, [x])
    torch.testing.assert_close(norms["0.up.0"], x.norm(dim=0))
    assert torch.equal(norms["0.up.0"], norms["0.up.2"])
    weight = model[0].up.detach()[1].clone()
    report = pruneops.prune(model, 0.5, criterion="wanda", input_norms=norms)
    expected = published_masks(weight.numpy(), np.ones(16), 0.5, None)
    assert torch.equal(report.masks["0.up.1"], ~torch.from_numpy(expected))


def test_no_expert_is_reached():
    model = nn.Sequential(nn.Linear(16, 16), Chosen([]))
    model[1].forward = lambda x: x
    with pytest.warns(UserWarning, match=r"3 layers got no input .*: 1\.up\.0, 1\.up\.1, 1\.up\.2$"):
        assert list(calibrate(model, [torch.randn(5, 16)])) == ["0"]
    with pytest.raises(ValueError, match=r"no layer got an input: 1\.up\.0, 1\.up\.1, 1\.up\.2"):
        calibrate(model, [torch.randn(5, 16)], include="*.up")


@pytest.mark.parametrize("name", MODELS)
def test_modes_of_torch(name):
    make, _ = MODELS[name]
    norms = calibrate(make(), batches())
    with torch.inference_mode():
        assert all(torch.equal(norms[key], x) for key, x in calibrate(make(), batches()).items())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = calibrate(make(), batches())
    assert rounded.keys() == norms.keys()
    assert all(torch.allclose(norms[key], x, rtol=0.05) for key, x in rounded.items())


def test_flex_attention():
    model = mixtral()
    norms = calibrate(model, batches())
    model.set_attn_implementation("flex_attention")
    for key, x in calibrate(model, batches()).items():
        torch.testing.assert_close(x, norms[key], rtol=1e-3, atol=1e-5)


IN_CHECKPOINT = {
    "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj",
}  # fmt: skip


def qwen3_moe():
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SIZES, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=2, num_experts=4,
        num_experts_per_tok=2, head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("make", [mixtral, qwen3_moe])
def test_scores_of_a_checkpoint_that_has_each_expert_by_itself(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    experts = [name for name in checkpoint.tensors if ".experts." in name]
    assert len(experts) == 12 * model.config.num_hidden_layers
    scores = score_checkpoint(model, checkpoint, checkpoint.tensors, batches())
    norms = calibrate(model, batches())
    for name in experts:
        before, expert, matrix, _ = name.rsplit(".", 3)
        layer = before.replace("block_sparse_moe", "mlp")
        assert torch.equal(scores[name], norms[f"{layer}.{IN_CHECKPOINT[matrix]}.{expert}"]), name
    save_scores(tmp_path / "scores.safetensors", "wanda", scores)
    saved = load_file(tmp_path / "scores.safetensors")
    assert all(torch.equal(saved[name], score) for name, score in scores.items())
    SavedScores(tmp_path / "scores.safetensors").check(checkpoint, experts)


@pytest.mark.parametrize("make", [mixtral, qwen3_moe])
def test_gradients_of_experts_go_to_the_tensors_that_are_stacked(make, tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    found = score_checkpoint(model, checkpoint, checkpoint.tensors, batches(), "snip")
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 12 * model.config.num_hidden_layers
    expected = dict.fromkeys(experts, 0.0)
    for tokens in batches():
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        for name in experts:
            before, expert, matrix, _ = name.rsplit(".", 3)
            stack = model.get_parameter(f"{before.replace('block_sparse_moe', 'mlp')}.{IN_CHECKPOINT[matrix]}")
            grad = stack.grad[int(expert)].numpy()
            if matrix in ("w1", "gate_proj"):
                grad = grad[:32]
            elif matrix in ("w3", "up_proj"):
                grad = grad[32:]
            expected[name] = expected[name] + np.abs(checkpoint.tensor(name).numpy() * grad)
    for name in experts:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=1e-4, atol=1e-9)
    save_scores(tmp_path / "scores.safetensors", "snip", found)
    SavedScores(tmp_path / "scores.safetensors").check(checkpoint, experts)


def test_scores_of_a_checkpoint_whose_body_has_another_name(tmp_path):
    torch.manual_seed(0)
    config = transformers.NemotronHConfig(
        **SIZES, intermediate_size=24, layers_block_type=["attention", "moe"], head_dim=8, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, moe_shared_expert_intermediate_size=24, n_group=1,
        topk_group=1,
    )  # fmt: skip
    model = transformers.NemotronHForCausalLM(config)
    model.save_pretrained(tmp_path)
    scores = score_checkpoint(model, checkpoint := Checkpoint(tmp_path), checkpoint.tensors, batches())
    norms = calibrate(model, batches())
    found = {name.removeprefix("backbone."): score for name, score in scores.items()}
    assert torch.equal(found["layers.0.mixer.q_proj.weight"], norms["model.layers.0.mixer.q_proj"])
    for i in range(4):
        for key in ("up_proj", "down_proj"):  # without a gate
            norm = norms[f"model.layers.1.mixer.experts.{key}.{i}"]
            assert torch.equal(found[f"layers.1.mixer.experts.{i}.{key}.weight"], norm)


class Config:
    """As transformers' configurations: what is set in one is set in those in it."""

    def __init__(self, **parts):
        self.__dict__.update(parts)
        self._experts_implementation_internal = "grouped_mm"

    def to_dict(self):
        return {}

    @property
    def _experts_implementation(self):
        return self._experts_implementation_internal

    @_experts_implementation.setter
    def _experts_implementation(self, value):
        for x in [self, *filter(lambda x: isinstance(x, Config), self.__dict__.values())]:
            x.__dict__["_experts_implementation_internal"] = value


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_has_its_own_implementation_again(fails):
    inner = Config()
    outer = Config(text=inner)
    inner._experts_implementation = "batched_mm"
    model = nn.Sequential(Chosen([0, 1, 2]), nn.Linear(8, 8))
    model.config, model[0].config, seen = outer, inner, []

    def look(module, args):
        seen.append((outer._experts_implementation, inner._experts_implementation))
        if fails:
            raise RuntimeError("no forward today")

    model[0].register_forward_pre_hook(look)
    if fails:
        with pytest.raises(RuntimeError, match="no forward today"):
            calibrate(model, [torch.randn(5, 16)])
    else:
        calibrate(model, [torch.randn(5, 16)])
    assert seen == [("eager", "eager")]
    assert (outer._experts_implementation, inner._experts_implementation) == ("grouped_mm", "batched_mm")
