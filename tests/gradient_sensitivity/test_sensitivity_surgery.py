"""Cut models: every size is right, they run, train, save and load, and both orders compute the same."""

import pytest
import torch
from sensitivity_models import (
    HEADS,
    SIZE,
    Encoder,
    MaskedAttention,
    SharedAttention,
    backward,
    batch,
    head_config,
    neuron_config,
    run_epoch,
    tiny_transformers,
)
from torch import nn

from pruneops.gradient_sensitivity import GradientSensitivityPruner, PrunerList, cut, find_groups, load_pruned

# Architecture -> its names of a head weight (none where heads are not known) and of the neurons' incoming weights.
NAMES = {
    "bert": ("bert.encoder.layer.*.attention.self.query.weight", "bert.encoder.layer.*.intermediate.dense"),
    "gpt2": ("transformer.h.*.attn.c_attn.weight", "transformer.h.*.mlp.c_fc"),
    "llama": ("model.layers.*.self_attn.q_proj.weight", "model.layers.*.mlp.up_proj"),
    "opt": ("model.decoder.layers.*.self_attn.v_proj.bias", "model.decoder.layers.*.fc1"),
    "qwen3": ("model.layers.*.self_attn.o_proj.weight", "model.layers.*.mlp.gate_proj"),
    "gptj": ("transformer.h.*.attn.q_proj.weight", "transformer.h.*.mlp.fc_in"),
    "phi": ("model.layers.*.self_attn.dense.weight", "model.layers.*.mlp.fc1"),
    "albert": (None, "albert.encoder.albert_layer_groups.*.albert_layers.*.ffn"),
    "falcon": (None, "transformer.h.*.mlp.dense_h_to_4h"),
    "phi3": (None, "model.layers.*.mlp.gate_up_proj"),
    "t5": (None, "encoder.block.*.layer.1.DenseReluDense.wi", "decoder.block.*.layer.2.DenseReluDense.wi"),
    "flan_t5": (None, "encoder.block.*.layer.1.DenseReluDense.wi_1", "decoder.block.*.layer.2.DenseReluDense.wi_1"),
}
EVERY = pytest.mark.parametrize("name", NAMES)


def configs(name, heads=4, neurons=30, order="importance"):
    weight, *incoming = NAMES[name]
    pruners = []
    if weight is not None:
        of_heads = {"target": heads, "importance_metric": "abs_gradient", "order": order, "normalize": True}
        pruners.append({"names": [weight], "parameters": of_heads})
    for layer in incoming:
        of_neurons = {"target": neurons, "importance_metric": "weighted_gradient", "order": order,
                      "importance_inputs": [f"{layer}.weight"]}  # fmt: skip
        pruners.append({"names": [f"{layer}.weight"], "parameters": of_neurons})
    return {"pruners": pruners}


def logits(model, ids):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(ids, **more).logits


def pruned(name, **changes):
    model, ids = tiny_transformers(name)
    pruners = PrunerList.from_config(model, configs(name, **changes))

    def step(i):
        model.zero_grad()
        logits(model, ids).square().mean().backward()

    run_epoch(pruners, step)
    return model, ids, pruners


def score_of(group, pruners):
    """The importance under one of the names of a group."""
    found = {name: score for pruner in pruners for name, score in pruner.importance.items()}
    return next(found[x.name] for x in group.slices if x.name in found)


def reference(model, ids, name, pruners):
    """The dense model's output with the pruned heads and neurons silenced instead of cut out."""
    for group in find_groups(model):
        ranks = score_of(group, pruners).view(group.units, -1).sum(1)
        keep = (4 if group.kind == "heads" else 30) // group.per_unit
        silent = ranks.argsort(descending=True, stable=True)[keep:]
        rows = group.stride * group.per_unit
        weight = group.output_weight
        for unit in silent.tolist():
            weight[:, unit * rows : (unit + 1) * rows] = 0
    return logits(model, ids)


@EVERY
def test_cutting_is_the_same_as_silencing(name):
    model, ids, pruners = pruned(name)
    dense, _ = tiny_transformers(name)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids), reference(dense, ids, name, pruners), rtol=1e-4, atol=1e-5)


@EVERY
def test_the_order_of_the_kept_does_not_change_the_output(name):
    by_importance, ids, pruners = pruned(name)
    original, _, _ = pruned(name, order="original")
    with torch.no_grad():
        torch.testing.assert_close(logits(by_importance, ids), logits(original, ids), rtol=1e-4, atol=1e-5)
    dense, _ = tiny_transformers(name)
    group = next(x for x in find_groups(dense) if x.kind == "neurons")
    order = score_of(group, pruners).argsort(descending=True, stable=True)[:30]
    x = group.slices[0]
    parts = x.parameter.detach().chunk(x.parts, x.dim)
    for model, indices in ((by_importance, order), (original, order.sort().values)):
        kept = torch.cat([part.index_select(x.dim, indices) for part in parts], x.dim)
        assert model.get_parameter(x.name).equal(kept)


@EVERY
def test_all_sizes_are_those_asked_for(name):
    model, _, _ = pruned(name)
    for group in find_groups(model):
        assert group.instances == (4 if group.kind == "heads" else 30)
        for x in group.slices:
            rows = group.instances * group.stride
            shared = any(key in x.name for key in ("k_proj", "v_proj")) and group.per_unit > 1
            assert x.parameter.shape[x.dim] == x.parts * (rows // group.per_unit if shared else rows)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        if type(module).__name__ == "Conv1D":
            assert (module.nx, module.nf) == tuple(module.weight.shape)


def test_the_attention_knows_its_heads():
    bert, llama, gpt2 = (
        next(x.holder for x in find_groups(pruned(name)[0]) if x.kind == "heads") for name in ("bert", "llama", "gpt2")
    )
    assert (bert.num_attention_heads, bert.all_head_size) == (4, 32)
    assert (gpt2.num_heads, gpt2.split_size) == (4, 32)
    assert llama.num_key_value_groups == 2  # whole groups stay
    assert llama.k_proj.out_features == llama.q_proj.out_features // 2 == 16


@EVERY
def test_the_model_trains_on_while_a_graph_of_the_dense_one_is_alive(name):
    model, ids = tiny_transformers(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruners = PrunerList.from_config(model, configs(name))
    pruners.on_epoch_begin(0)
    loss = logits(model, ids).square().mean()
    loss.backward()
    pruners.on_step_end()
    pruners.on_epoch_end()
    first = None
    for _ in range(3):
        optimizer.zero_grad()
        again = logits(model, ids).square().mean()
        again.backward()
        optimizer.step()
        first = again.item() if first is None else first
    assert loss.grad_fn is not None
    assert again.item() < first
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


@EVERY
def test_a_saved_model_loads_again(name, tmp_path):
    model, ids, _ = pruned(name)
    model.save_pretrained(tmp_path)
    fresh, _ = tiny_transformers(name)
    loaded = load_pruned(fresh, tmp_path)
    assert loaded is fresh
    with torch.no_grad():
        assert torch.equal(logits(loaded, ids), logits(model, ids))
    counts = [{k: v for k, v in vars(x.holder or x).items() if isinstance(v, int)} for x in find_groups(model)]
    again = [{k: v for k, v in vars(x.holder or x).items() if isinstance(v, int)} for x in find_groups(loaded)]
    assert counts == again


def test_a_cut_model_is_cut_again():
    model, ids, _ = pruned("llama")
    pruners = PrunerList.from_config(model, configs("llama", heads=2, neurons=7))

    def step(i):
        model.zero_grad()
        logits(model, ids).square().mean().backward()

    run_epoch(pruners, step)
    assert {(x.kind, x.instances) for x in find_groups(model)} == {("heads", 2), ("neurons", 7)}
    assert logits(model, ids).isfinite().all()


def test_generation_with_a_cache_gives_what_the_forward_pass_gives():
    model, ids, _ = pruned("llama")
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    for _ in range(3):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("target", [1, 3, 5])
def test_a_target_that_splits_a_group_of_query_heads_is_refused(target):
    model, _ = tiny_transformers("llama")
    with pytest.raises(ValueError, match=rf"q_proj\.weight': target {target} splits grouped-query attention"):
        PrunerList.from_config(model, configs("llama", heads=target))


def test_parameters_beside_the_heads_stop_the_cut():
    class Sinks(Encoder):
        def __init__(self):
            super().__init__()
            self.layer[0].attention.sinks = nn.Parameter(torch.zeros(HEADS))

    with pytest.raises(ValueError, match="parameter 'sinks' beside it depends on them"):
        GradientSensitivityPruner(Sinks(), head_config())


SHARED = "'{}'.* cannot be cut, because its keys and values are shared with other layers"


def sharing_encoder():
    """The first block shares nothing, the last reuses the keys and values of the one before."""
    model = Encoder(layers=3)
    model.layer[1].attention, model.layer[2].attention = SharedAttention(stores=True), SharedAttention(reuses=True)
    return model


def test_heads_with_shared_keys_and_values_are_not_cut():
    model = sharing_encoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    heads = [x for x in find_groups(model) if x.kind == "heads"]
    assert [x.name for x in heads] == ["layer.0.attention", "layer.1.attention"]
    with pytest.raises(ValueError, match=SHARED.format("layer.1.attention")):
        cut(heads[1], torch.arange(4.0), 2)
    for names, attention in {
        "layer.*.attention.q_proj.weight": "layer.1.attention",
        "layer.*.attention.o_proj.weight": "layer.1.attention",
        "layer.2.attention.q_proj.weight": "layer.2.attention",
    }.items():
        for parameters in (
            {"importance_metric": "abs_gradient"},
            {"importance_metric": "weighted_gradient", "importance_inputs": [names]},
        ):
            with pytest.raises(ValueError, match=SHARED.format(attention)):
                GradientSensitivityPruner(model, {"names": [names], "parameters": parameters | {"target": 2}})
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    cut(heads[0], torch.arange(4.0), 2)
    cut(next(x for x in find_groups(model) if x.name == "layer.2"), torch.arange(64.0), 8)
    assert (model.layer[0].attention.num_heads, model.layer[2].fc1.out_features) == (2, 8)


class EarlyConfig:
    """Of four layers the last reuses keys and values of a layer of its type."""

    num_hidden_layers, layer_types = 4, ["sliding", "sliding", "full", "sliding"]

    def __init__(self, shared):
        self.num_kv_shared_layers = shared


@pytest.mark.parametrize("stores", [None, True])
@pytest.mark.parametrize(("layer", "shared", "refused"), [(0, 1, False), (1, 1, True), (2, 1, True), (3, 0, False)])
def test_other_versions_of_transformers_tell_who_shares_keys(layer, shared, refused, stores):
    """The first have no ``store_full_length_kv``; later ones set it in the last layers even where nobody reads it."""
    attention = SharedAttention(stores=refused or not shared)
    attention.config, attention.layer_idx = EarlyConfig(shared), layer
    if stores is None:
        del attention.store_full_length_kv
    group = find_groups(nn.ModuleDict({"attn": attention}))[0]
    if refused:
        with pytest.raises(ValueError, match=SHARED.format("attn")):
            cut(group, torch.arange(4.0), 2)
    else:
        cut(group, torch.arange(4.0), 2)
        assert attention.q_proj.out_features == 2 * SIZE


def test_an_attention_with_a_config_of_its_own_is_cut():
    attention = MaskedAttention()
    attention.config = EarlyConfig(1)
    cut(find_groups(attention)[0], torch.arange(4.0), 2)
    assert attention.num_heads == 2


@pytest.mark.parametrize("kind", ["Gemma3n", "Gemma4"])
def test_models_that_share_keys_and_values_between_layers(kind):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    if not hasattr(transformers, f"{kind}ForCausalLM"):
        pytest.skip(f"this transformers has no {kind}")
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size_per_layer_input": 99,
             "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "attn_implementation": "eager",
             "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention", "full_attention"],
             }  # fmt: skip
    own = {"Gemma3n": {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 5}, "Gemma4": {"global_head_dim": 8}}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}TextConfig")(**sizes, **own[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    ids = torch.randint(1, 99, (2, 7), generator=torch.Generator().manual_seed(1))  # 0 pads: NaN in version 4.53
    with torch.no_grad():
        dense = logits(model, ids)
    heads = {x.name: x for x in find_groups(model) if x.kind == "heads"}
    for name in ("model.layers.1.self_attn", "model.layers.2.self_attn"):
        with pytest.raises(ValueError, match=SHARED.format(name)):
            cut(heads[name], torch.arange(4.0), 2)
    for name, attention in {"*": 1, "4": 4}.items():
        of_heads = {"target": 2, "importance_metric": "abs_gradient"}
        config = {"names": [f"model.layers.{name}.self_attn.q_proj.weight"], "parameters": of_heads}
        with pytest.raises(ValueError, match=SHARED.format(f"model.layers.{attention}.self_attn")):
            GradientSensitivityPruner(model, config)
    with torch.no_grad():
        assert torch.equal(logits(model, ids), dense)
    group = heads["model.layers.0.self_attn"]  # nobody reads its keys
    ranks = torch.tensor([0.0, 0.0, 1.0, 1.0])
    with torch.no_grad():
        kept = group.output_weight.clone()
        group.output_weight[:, : 2 * group.stride] = 0
        expected = logits(model, ids)
        group.output_weight.copy_(kept)
        cut(group, ranks, 2)
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-5)


def test_every_name_of_a_group_may_stand_for_it():
    """Query, key and value in one pruner, the output transposed in another: cut once, and all together."""
    outputs = {**head_config(transpose=True), "names": ["layer.*.attention.o_proj.weight"]}
    model = Encoder()
    pruners = PrunerList.from_config(model, {"pruners": [head_config(), outputs, neuron_config()]})
    run_epoch(pruners, lambda i: backward(model, seed=i))
    attention = model.layer[0].attention
    assert attention.num_heads == 2
    assert {tuple(x.weight.shape) for x in (attention.q_proj, attention.k_proj, attention.v_proj)} == {(16, 32)}
    assert tuple(attention.o_proj.weight.shape) == (32, 16)
    assert attention.q_proj.bias.shape == (16,)
    assert model(batch()).isfinite().all()


def test_pruners_that_run_one_after_another_cut_a_group_once():
    outputs = {**head_config(transpose=True), "names": ["layer.*.attention.o_proj.weight"]}
    model = Encoder()
    for config in (head_config(), outputs):
        pruner = GradientSensitivityPruner(model, config)
        pruner.on_epoch_begin(0)
        if config is not outputs:
            late = GradientSensitivityPruner(model, outputs)
            late.on_epoch_begin(0)
        backward(model)
        for x in {pruner, late}:
            x.on_step_end()
        pruner.on_epoch_end()
        late.on_epoch_end()
    assert model.layer[1].attention.o_proj.in_features == 2 * SIZE


def test_different_targets_of_one_group_are_refused_before_anything_is_cut():
    outputs = {**head_config(transpose=True, target=3), "names": ["layer.*.attention.o_proj.weight"]}
    model = Encoder()
    pruners = PrunerList.from_config(model, {"pruners": [head_config(), outputs]})
    with pytest.raises(ValueError, match=r"o_proj\.weight' has target 3.*q_proj\.weight'.*has 2"):
        run_epoch(pruners, lambda i: backward(model, seed=i))
    assert model.layer[0].attention.q_proj.out_features == 32


def test_later_epochs_leave_the_smaller_model_alone():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, neuron_config())
    for epoch in range(3):
        run_epoch(pruner, lambda i: backward(model, seed=i), epoch=epoch)
    assert model.layer[0].fc1.out_features == 24
    assert not model._forward_pre_hooks


def test_prune_weight_cuts_all_that_belongs_to_the_weight():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, neuron_config())
    importance = {"layer.0.fc1.weight": torch.arange(64.0)}
    before = model.layer[0].fc1.weight.detach().clone()
    pruner.prune_weight(model, importance, "layer.0.fc1.weight", pruner.parameters)
    block = model.layer[0]
    assert torch.equal(block.fc1.weight, before.flip(0)[:24])
    assert (block.fc1.bias.shape, block.fc2.in_features) == ((24,), 24)


def test_normalize_divides_by_the_norm():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, head_config())
    importance = {"layer.0.attention.q_proj.weight": torch.tensor([3.0, 0.0, 4.0, 0.0])}
    pruner.prune_weight(model, importance, "layer.0.attention.q_proj.weight", pruner.parameters)
    torch.testing.assert_close(importance["layer.0.attention.q_proj.weight"], torch.tensor([0.6, 0.0, 0.8, 0.0]))


def test_layers_of_unknown_place_are_cut_by_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    incoming = ["0.weight", "0.bias"]
    parameters = {"target": 5, "importance_metric": "weighted_gradient", "importance_inputs": incoming}
    pruners = PrunerList.from_config(
        model,
        {
            "pruners": [
                {"names": incoming, "parameters": parameters},
                {"names": ["2.weight"], "parameters": parameters | {"transpose": True}},
            ]
        },
    )

    def step(i):
        model.zero_grad()
        model(torch.ones(3, 8)).square().sum().backward()

    run_epoch(pruners, step)
    assert (model[0].out_features, model[0].bias.shape, model[2].in_features) == (5, (5,), 5)
    assert model(torch.ones(3, 8)).shape == (3, 4)


def test_an_importance_of_another_length_is_refused():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, neuron_config())
    with pytest.raises(ValueError, match=r"fc1\.weight': importance has shape \[63\], expected \[64\]"):
        pruner.prune_weight(model, {"layer.0.fc1.weight": torch.ones(63)}, "layer.0.fc1.weight", pruner.parameters)


def test_cut_takes_any_importance():
    model = Encoder()
    group = next(x for x in find_groups(model) if x.kind == "heads")
    cut(group, torch.tensor([0.0, 1.0, 0.0, 0.0]), 1)
    assert model.layer[0].attention.num_heads == 1


def test_half_precision_and_frozen_weights_stay_what_they_are():
    model = Encoder().half()
    model.layer[0].fc1.weight.requires_grad_(False)
    cut(next(x for x in find_groups(model) if x.kind == "neurons"), torch.arange(64.0), 8)
    weight = model.layer[0].fc1.weight
    assert (weight.dtype, weight.requires_grad, weight.is_contiguous()) == (torch.float16, False, True)


@pytest.mark.parametrize("change", ["missing", "flat"])
def test_a_file_of_another_model_is_refused(tmp_path, change):
    from safetensors.torch import save_file

    state = Encoder().state_dict()
    if change == "missing":
        del state["layer.1.fc1.weight"]
    else:
        state["layer.1.fc1.weight"] = state["layer.1.fc1.weight"].flatten()
    save_file(state, tmp_path / "model.safetensors")
    model = Encoder(seed=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layer\.1\.fc1\.weight"):
        load_pruned(model, tmp_path)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_everything_stays_on_the_device(device):
    model = Encoder().to(device)
    elementwise = {"names": ["layer.*.fc2.weight"], "pattern": "4x1", "target_sparsity": 0.5, "end_epoch": 1}
    pruners = PrunerList.from_config(model, {"pruners": [elementwise, head_config()]})
    whole = PrunerList.from_config(model, {"pruners": [neuron_config()]})
    mask = torch.ones(2, HEADS, device=device, requires_grad=True)

    def step(given):
        model.zero_grad()
        model(batch().to(device), given).square().mean().backward()

    run_epoch(pruners, lambda i: step(mask))
    run_epoch(pruners, lambda i: step(None), epoch=1)
    run_epoch(whole, lambda i: step(None))
    scores = [score for x in (*pruners, *whole) for score in x.importance.values()]
    assert {score.device.type for score in scores} == {device}
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    assert pruners[0].masks["layer.1.fc2.weight"].device.type == device
    assert model(batch().to(device)).isfinite().all()
    assert (model.layer[0].fc1.out_features, model.layer[0].attention.num_heads) == (24, 2)
