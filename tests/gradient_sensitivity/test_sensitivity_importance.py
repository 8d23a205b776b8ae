"""Importance: the formulas against NumPy, head masks against output weights, and what is missing."""

import numpy as np
import pytest
import torch
from calls import TO_HOST, Calls
from sensitivity_models import HEADS, SIZE, Encoder, backward, head_config, neuron_config, tiny_transformers
from torch import nn

from pruneops.gradient_sensitivity import GradientSensitivityPruner, PrunerList

QUERY = "layer.1.attention.q_proj.weight"


def ones():
    return torch.ones(2, HEADS, requires_grad=True)


def test_the_gradient_of_a_head_mask_is_the_block_sum_of_the_output_weight():
    model, mask = Encoder(), ones()
    with_mask, without = (GradientSensitivityPruner(model, head_config()) for _ in range(2))
    with_mask.on_epoch_begin(0)
    backward(model, mask)
    with_mask.on_step_end()
    with_mask.on_epoch_begin(1)
    without.on_epoch_begin(0)
    backward(model)
    without.on_step_end()
    assert torch.equal(with_mask.importance[QUERY], mask.grad[1].abs())
    for name, importance in with_mask.importance.items():
        torch.testing.assert_close(without.importance[name], importance, rtol=1e-5, atol=0)
    output = model.layer[1].attention.o_proj.weight
    product = (output * output.grad).detach().double().numpy()
    expected = np.abs(product.reshape(-1, HEADS, SIZE).sum((0, 2)))
    np.testing.assert_allclose(without.importance[QUERY].numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("how", ["keyword", "position", "not a leaf"])
def test_the_head_mask_is_captured_however_it_is_given(how):
    model, mask = Encoder(), ones()
    pruner = GradientSensitivityPruner(model, head_config())
    pruner.on_epoch_begin(0)
    given = mask * 1 if how == "not a leaf" else mask
    x = torch.randn(1, 3, 32)
    (model(x, head_mask=given) if how == "keyword" else model(x, given)).sum().backward()
    pruner.on_step_end()
    assert torch.equal(pruner.importance[QUERY], mask.grad[1].abs())


def test_a_head_mask_without_gradient_is_an_error():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, head_config())
    pruner.on_epoch_begin(0)
    backward(model, torch.ones(2, HEADS))
    with pytest.raises(ValueError, match="'head_mask' has no gradient"):
        pruner.on_step_end()


def test_a_head_mask_needs_an_index():
    model = Encoder()
    config = head_config() | {"names": [QUERY]}
    pruner = GradientSensitivityPruner(model, config)
    pruner.on_epoch_begin(0)
    backward(model, ones())
    with pytest.raises(ValueError, match=r"q_proj\.weight.*'index'"):
        pruner.on_step_end()
    given = GradientSensitivityPruner(model, config | {"parameters": config["parameters"] | {"index": 1}})
    given.on_epoch_begin(0)
    mask = ones()
    backward(model, mask)
    given.on_step_end()
    assert torch.equal(given.importance[QUERY], mask.grad[1].abs())


def test_importance_grows_by_the_absolute_value_of_each_step():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, head_config())
    total = 0
    for seed in range(3):
        single = GradientSensitivityPruner(model, head_config())
        backward(model, seed=seed)
        pruner.on_step_end()
        single.on_step_end()
        total = total + single.importance[QUERY]
    torch.testing.assert_close(pruner.importance[QUERY], total)


@pytest.mark.parametrize(
    ("config", "masked", "expected"),
    [
        (head_config(), True, ["update_scores_"]),
        (head_config(), False, ["update_block_scores_"]),
        (neuron_config(importance_inputs=["layer.*.fc1.weight"]), False, ["update_block_scores_"]),
        (neuron_config(), False, ["update_block_scores_", "update_scores_"]),  # row sums, and bias added
        ({"names": ["layer.*.fc1.weight", "layer.*.fc2.weight"]}, False, ["update_scores_"]),
    ],
    ids=["head mask", "heads", "neurons", "neurons with bias", "weights"],
)
def test_a_step_is_one_update_for_all_layers_and_stays_on_the_device(config, masked, expected):
    model = Encoder(layers=5)
    pruner = GradientSensitivityPruner(model, config)
    pruner.on_epoch_begin(0)
    backward(model, torch.ones(5, HEADS, requires_grad=True) if masked else None)
    pruner.on_step_end()  # the first step makes the storage
    with Calls() as calls:
        pruner.on_step_begin(1)
        pruner.on_step_end()
    assert [name for name in calls.ours if name != "apply_masks_"] == expected
    assert not calls.others & TO_HOST


def test_neurons_are_weighed_by_the_signed_sum_over_weight_and_bias():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, neuron_config())
    expected = 0
    for seed in range(3):
        backward(model, seed=seed)
        pruner.on_step_end()
        layer = model.layer[0].fc1
        row_sums = (layer.weight.detach() * layer.weight.grad).double().sum(1)
        expected = expected + (row_sums + (layer.bias.detach() * layer.bias.grad).double()).abs()
    found = pruner.importance["layer.0.fc1.weight"]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-9)


def test_one_weight_alone_is_read_without_a_product():
    model = Encoder()
    both = GradientSensitivityPruner(model, neuron_config(importance_inputs=["layer.*.fc1.weight"]))
    backward(model)
    both.on_step_end()
    layer = model.layer[1].fc1
    expected = (layer.weight.detach() * layer.weight.grad).double().sum(1).abs()
    np.testing.assert_allclose(both.importance["layer.1.fc1.bias"].numpy(), expected.numpy(), rtol=1e-4, atol=1e-9)


def test_names_with_the_same_source_share_their_importance():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, head_config())
    backward(model)
    pruner.on_step_end()
    pointers = {name: score.data_ptr() for name, score in pruner.importance.items()}
    assert len(set(pointers.values())) == 2
    pruner.on_step_end()
    assert {name: score.data_ptr() for name, score in pruner.importance.items()} == pointers


def test_the_methods_for_one_weight_give_what_a_step_gives():
    model = Encoder()
    for config, method in ((head_config(), "abs"), (neuron_config(), "weighted")):
        pruner = GradientSensitivityPruner(model, config)
        pruner.on_epoch_begin(0)
        backward(model, ones())
        pruner.on_step_end()
        own = {}
        for pattern in pruner.weights:
            for name in pruner.parse_weight_name(pattern):
                getattr(pruner, f"update_importance_{method}")(model, own, name, pruner.parameters)
        assert own.keys() == pruner.importance.keys()
        assert all(torch.equal(own[name], score) for name, score in pruner.importance.items())
    own = {}
    pruner.update_importance_elementwise(model, own, QUERY)
    weight = model.get_parameter(QUERY)
    assert torch.equal(own[QUERY], (weight * weight.grad).abs())


def test_a_star_is_the_layer_index_and_the_inputs_follow_it():
    pruner = GradientSensitivityPruner(Encoder(layers=11), neuron_config())
    seen = []
    for name in pruner.parse_weight_name("layer.*.fc1.weight"):
        seen.append((name, pruner.parameters["index"], pruner.parameters["importance_inputs"]))
    expected = [(f"layer.{i}.fc1.weight", i, [f"layer.{i}.fc1.weight", f"layer.{i}.fc1.bias"]) for i in range(11)]
    assert seen == expected
    assert pruner.parameters["importance_inputs"] == ["layer.*.fc1.weight", "layer.*.fc1.bias"]
    assert list(pruner.parse_weight_name("layer.3.fc1.bias")) == ["layer.3.fc1.bias"]


def test_conv1d_neurons_are_its_outputs():
    model, ids = tiny_transformers("gpt2")
    inputs = ["transformer.h.*.mlp.c_fc.weight", "transformer.h.*.mlp.c_fc.bias"]
    config = {"names": inputs[:1], "parameters": {"target": 8, "importance_metric": "weighted_gradient",
                                                  "importance_inputs": inputs}}  # fmt: skip
    pruner = GradientSensitivityPruner(model, config)
    model(ids, labels=ids).loss.backward()
    pruner.on_step_end()
    layer = model.transformer.h[0].mlp.c_fc
    expected = (layer.weight.detach() * layer.weight.grad).double().sum(0) + (layer.bias * layer.bias.grad).detach()
    found = pruner.importance["transformer.h.0.mlp.c_fc.weight"]
    np.testing.assert_allclose(found.numpy(), expected.abs().numpy(), rtol=1e-4, atol=1e-9)


def test_low_precision_weights_have_float32_importance():
    model = Encoder().bfloat16()
    for config in (head_config(), neuron_config(), {"names": [QUERY]}):
        pruner = GradientSensitivityPruner(model, config)
        model.zero_grad()
        model(torch.randn(1, 3, 32, dtype=torch.bfloat16)).sum().backward()
        pruner.on_step_end()
        assert {score.dtype for score in pruner.importance.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (head_config(), r"o_proj\.weight' has no gradient"),
        (neuron_config(), r"importance_inputs: 'layer\.0\.fc1\.weight' has no gradient: call backward"),
        ({"names": [QUERY]}, r"names: 'layer\.1\.attention\.q_proj\.weight' has no gradient"),
    ],
)
def test_a_step_without_gradients_is_an_error(config, says):
    with pytest.raises(ValueError, match=says):
        GradientSensitivityPruner(Encoder(), config).on_step_end()


def test_a_frozen_weight_is_said_to_be_frozen():
    model = Encoder()
    model.layer[0].fc1.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        GradientSensitivityPruner(model, neuron_config()).on_step_end()


@pytest.mark.parametrize("several", [False, True])
def test_no_gradient_seen_by_the_end_of_the_epoch_leaves_every_weight(several):
    model = Encoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pruners = [GradientSensitivityPruner(model, config) for config in (neuron_config(), head_config())]
    backward(model)
    pruners[0].on_step_end()
    run = PrunerList(pruners) if several else pruners[1]
    with pytest.raises(ValueError, match=r"q_proj\.weight'.*no gradient was seen for importance_metric 'abs_gradient'"):
        run.on_epoch_end()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_inputs_with_different_rows_are_refused():
    config = neuron_config(importance_inputs=["layer.*.fc1.weight", "layer.*.fc2.bias"])
    model = Encoder()
    backward(model)
    with pytest.raises(ValueError, match=r"fc1\.weight'.*fc2\.bias' has shape \[32\]"):
        GradientSensitivityPruner(model, config).on_step_end()


def test_heads_without_mask_or_known_attention_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    config = {"names": ["0.weight"], "parameters": {"target": 2, "importance_metric": "abs_gradient"}}
    pruner = GradientSensitivityPruner(model, config)
    model(torch.randn(2, 4)).sum().backward()
    with pytest.raises(ValueError, match=r"'0\.weight': no gradient of 'head_mask' was seen"):
        pruner.on_step_end()


def test_nothing_is_collected_before_the_first_epoch_that_prunes():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, neuron_config(), {"start_epoch": 1})
    pruner.on_epoch_begin(0)
    backward(model)
    pruner.on_step_end()
    pruner.on_epoch_end()
    assert not pruner.importance
    assert model.layer[0].fc1.out_features == 64


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_wrappers_are_taken_off(wrap):
    found = []
    for wrapped in (False, True):
        model, mask = Encoder(), ones()
        called = wrap(model) if wrapped else model
        pruner = GradientSensitivityPruner(called, head_config())
        pruner.on_epoch_begin(0)
        backward(called, mask)
        pruner.on_step_end()
        found.append(pruner.importance)
    assert found[0].keys() == found[1].keys()
    for name, importance in found[0].items():
        torch.testing.assert_close(found[1][name], importance)
