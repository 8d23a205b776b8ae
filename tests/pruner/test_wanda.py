"""Wanda: norms and masks against the published algorithm in NumPy, block by block, on GPT-2 and OPT."""

import pytest
import torch
from published import batches, published_masks, run_under
from torch import nn
from training import Conv1D

import pruneops
from pruneops.blockwise import wanda
from pruneops.calibration import calibrate

transformers = pytest.importorskip("transformers")


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=3, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def opt():
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=16, word_embed_proj_dim=16, pad_token_id=1,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


MODELS = {"gpt2": (gpt2, "transformer.h"), "opt": (opt, "model.decoder.layers"), "llama": (llama, "model.layers")}


class Inputs:
    """Mean squares of the inputs of some modules, as the authors collect them."""

    def __init__(self, modules):
        self.means = {name: 0.0 for name in modules}
        self.samples = dict.fromkeys(modules, 0)
        self.handles = [x.register_forward_pre_hook(self.hook(name)) for name, x in modules.items()]

    def hook(self, name):
        def add(module, args):
            x = args[0].detach().double().numpy()
            total = self.samples[name] + x.shape[0]
            squares = (x.reshape(-1, x.shape[-1]) ** 2).sum(0)
            self.means[name] = self.means[name] * self.samples[name] / total + squares / total
            self.samples[name] = total

        return add


def simulate(model, blocks, sparsity, nm):
    """The published loop without its bookkeeping: for each block one run of the whole, partly pruned model."""
    masks = {}
    for i in range(len(model.get_submodule(blocks))):
        modules = {
            name: module
            for name, module in model.named_modules()
            if name.startswith(f"{blocks}.{i}.") and getattr(module, "weight", None) is not None
            and module.weight.dim() == 2
        }  # fmt: skip
        inputs = Inputs(modules)
        run_under(inputs.handles, model)
        for name, module in modules.items():
            transposed = hasattr(module, "nf")
            weight = module.weight.detach().t() if transposed else module.weight.detach()
            mask = torch.from_numpy(published_masks(weight.double().numpy(), inputs.means[name], sparsity, nm))
            weight[mask] = 0
            masks[name] = ~(mask.t() if transposed else mask)
    return masks


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("pattern", "sparsity", "nm"), [("1x1", 0.5, None), ("1x1", 0.37, None), ("2:4", 0.5, (2, 4))])
def test_masks_and_weights_are_those_of_the_published_algorithm(name, pattern, sparsity, nm):
    make, blocks = MODELS[name]
    expected_model = make().eval()
    expected = simulate(expected_model, blocks, sparsity, nm)
    model = make()
    report = wanda(model, batches(), sparsity, pattern=pattern)
    assert report.masks.keys() == expected.keys()
    for layer, mask in expected.items():
        assert torch.equal(report.masks[layer], mask), layer
    for (_, a), (_, b) in zip(model.state_dict().items(), expected_model.state_dict().items(), strict=True):
        assert torch.equal(a, b)
    assert model.training
    assert model.config.use_cache


def test_norms():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [torch.randn(5, 7, 4), torch.randn(2, 4), torch.randn(4)]
    norms = calibrate(model, data)
    rows = torch.cat([x.reshape(-1, 4) for x in data]).double()
    hidden = torch.relu(torch.cat([model[0](x).reshape(-1, 6) for x in data])).double()
    torch.testing.assert_close(norms["0"], rows.norm(dim=0).float())
    torch.testing.assert_close(norms["2"], hidden.norm(dim=0).float())
    assert all(norm.dtype == torch.float32 for norm in norms.values())


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
def test_what_a_batch_may_be(batch):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    assert torch.equal(calibrate(Model(), [batch(torch.tensor([[3.0, 4.0]]))])["fc"], torch.tensor([3.0, 4.0]))


def test_a_shared_weight_sees_the_inputs_of_both_modules():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(4, 3)
    both = torch.cat([x, model[0](x)])
    torch.testing.assert_close(calibrate(model, [x]), {"0": both.norm(dim=0)})


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4", "1x2"])
@pytest.mark.parametrize("scope", [None, "global", "local", "row"])
def test_one_calibration_serves_every_sparsity(pattern, scope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), Conv1D(4, 8))
    norms = calibrate(model, [torch.randn(6, 16)])
    scores = {
        name: (module.weight.detach().t() if name == "2" else module.weight.detach()).abs() * norms[name]
        for name, module in model.named_children()
    }
    for sparsity in [0.5] if pattern == "2:4" else [0.3, 0.6, 0.9]:
        copies = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), Conv1D(4, 8))
        copies.load_state_dict(model.state_dict())
        report = pruneops.prune(copies, sparsity, criterion="wanda", pattern=pattern, scope=scope, input_norms=norms)
        weights = {layer: score.clone() for layer, score in scores.items()}
        expected = pruneops.select_masks(
            weights, sparsity=sparsity, pattern=pattern, scope=scope or "row", scores=scores
        )
        assert all(torch.equal(report.masks.units[layer], expected[layer]) for layer in expected)


def test_bad_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    with pytest.raises(ValueError, match="there are no batches"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="calibrate: no layer is left to prune: none of these is linear: 0"):
        calibrate(nn.Sequential(nn.Conv2d(1, 1, 1)), [])
    with pytest.raises(ValueError, match=r"none of these is linear: transformer\.wpe"):
        wanda(gpt2(), batches(), 0.5, include="*.wpe")
    outside = nn.ModuleDict({"fc": nn.Linear(4, 4), "blocks": nn.ModuleList([nn.ReLU()])})
    with pytest.raises(ValueError, match="none of these lies in the blocks 'blocks': fc"):
        wanda(outside, [torch.ones(1, 4)], 0.5)
    idle = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    idle.forward = lambda x: idle["a"](x)
    with pytest.raises(ValueError, match="calibrate: no layer got an input: b"):
        calibrate(idle, [torch.ones(1, 2)], include="b")
    with pytest.raises(ValueError, match=r"needs input_norms; pruneops\.calibrate"):
        pruneops.prune(model, 0.5, criterion="wanda")
    with pytest.raises(ValueError, match=r"input_norms\['0'\] has shape \[3\], expected \[4\]"):
        pruneops.prune(model, 0.5, criterion="wanda", input_norms={"0": torch.ones(3)})
    with pytest.raises(ValueError, match=r"blocks must name an nn\.ModuleList, got None"):
        wanda(model, [torch.ones(1, 4)], 0.5)
    with pytest.raises(ValueError, match=r"got 'h'; those of this model: transformer\.h"):
        wanda(gpt2(), batches(), 0.5, blocks="h")
    with pytest.raises(ValueError, match="scope must be 'row' or 'local', got 'global'"):
        wanda(gpt2(), batches(), 0.5, scope="global")
    with pytest.raises(ValueError, match="there are no batches"):
        wanda(gpt2(), [], 0.5)


def test_a_model_that_is_no_chain_is_refused_and_left_alone():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    model = Skips()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match="'layers' are no chain"):
        wanda(model, [torch.randn(2, 4)], 0.5)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.training


def test_only_one_layer_s_activations_are_held():
    """Each block's inputs replace those of the block before."""
    model = gpt2()
    alive = []
    import weakref

    def watch(module, args, output):
        alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    for block in model.transformer.h:
        block.register_forward_hook(watch)
    most = 0

    def count(module, args):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))

    model.transformer.h[2].register_forward_pre_hook(count)
    wanda(model, batches(), 0.5)
    assert 0 < most <= len(batches()) + 1


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def gemma3():
    """A language model with images, whose cache is a setting of the configuration in its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=sizes | {"vocab_size": 40, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=42, boi_token_index=43, eoi_token_index=44,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def seq2seq():
    return [{"input_ids": batch, "labels": batch} for batch in batches()]


@pytest.mark.parametrize(
    ("make", "blocks", "include", "data"),
    [
        (t5, "decoder.block", None, seq2seq),
        (t5, "encoder.block", None, seq2seq),
        (t5, "decoder.block", None, lambda: [x | {"use_cache": True} for x in seq2seq()]),
        (gpt2, None, None, lambda: [{"input_ids": batch, "use_cache": True} for batch in batches()]),
        (gemma3, None, "model.language_model.layers.*", batches),
    ],
)
def test_no_cache_of_keys_and_values_is_in_the_norms(make, blocks, include, data, monkeypatch):
    """With nothing pruned, Wanda selects by the norms of one pass over the dense model."""
    seen = {}

    def select(weights, *, input_norms, **settings):
        seen.update(input_norms)
        return pruneops.select_masks(weights, input_norms=input_norms, **settings)

    monkeypatch.setattr("pruneops.blockwise.select_masks", select)
    model = make()
    caching = [
        module.config.use_cache for module in model.modules() if hasattr(getattr(module, "config", 0), "use_cache")
    ]
    report = wanda(model, data(), 0.0, blocks=blocks, include=include)
    norms = calibrate(make(), data(), include=include)
    assert seen.keys() == report.masks.keys()
    assert all(torch.equal(norm, norms[name]) for name, norm in seen.items())
    after = [
        module.config.use_cache for module in model.modules() if hasattr(getattr(module, "config", 0), "use_cache")
    ]
    assert caching == after
    assert any(caching)


def test_a_tied_embedding_has_no_input_but_its_head_has():
    model = gpt2()
    assert list(calibrate(model, batches(), include=["*.wte", "*.h.0.mlp.c_fc"])) == [
        "transformer.h.0.mlp.c_fc",
        "lm_head",
    ]


def test_a_compiled_model():
    report = wanda(torch.compile(gpt2()), batches(), 0.5)
    assert torch.equal(
        report.masks["transformer.h.0.mlp.c_fc"], wanda(gpt2(), batches(), 0.5).masks["transformer.h.0.mlp.c_fc"]
    )


def test_a_layer_that_is_never_called_is_left_out():
    model = gpt2()
    model.transformer.h[2].unused = nn.Linear(4, 4)
    names = {layer.name for layer in wanda(gpt2(), batches(), 0.5).layers}
    for run in (lambda: wanda(model, batches(), 0.5).masks, lambda: calibrate(model, batches())):
        with pytest.warns(UserWarning, match=r"1 layers got no input .* left out, .*: transformer\.h\.2\.unused"):
            assert set(run()) == names
    assert (model.transformer.h[2].unused.weight != 0).all()


def test_inputs_by_keyword():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(input=x)

    assert torch.equal(calibrate(Model(), [torch.tensor([[3.0, 1.0]])])["fc"], torch.tensor([3.0, 1.0]))
