"""Elementwise pruning: masks against a NumPy oracle of the rule, the schedule, and exact counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sensitivity_models import Encoder, backward, batch, run_epoch
from torch import nn

from pruneops.gradient_sensitivity import GradientSensitivityPruner
from pruneops.gradient_sensitivity.masks import tile_mask
from pruneops.patterns import parse_pattern

NAME = "layer.0.fc1.weight"


def tiles_of(importance, block):
    """Sums over (N, M) tiles of a weight seen as (O, everything else)."""
    matrix = importance.reshape(importance.shape[0], -1)
    n, m = block
    return matrix.reshape(matrix.shape[0] // n, n, matrix.shape[1] // m, m).sum((1, 3))


def oracle(importance, sparsity, block, per_channel=False, exact=False):
    """The mask by sorting: everything up to the value at sorted index int(n * sparsity) goes, or exactly that many."""
    tiles = tiles_of(importance, block)
    kept = np.empty(tiles.shape, bool)
    for rows in [[i] for i in range(len(tiles))] if per_channel else [slice(None)]:
        values = tiles[rows].ravel()
        count = int(len(values) * sparsity)
        if exact:
            # Among equals the earlier one is kept, so the later one goes first.
            order = np.lexsort((-np.arange(len(values)), values))
            chosen = np.ones(len(values), bool)
            chosen[order[:count]] = False
        else:
            chosen = values > np.sort(values)[count]
        kept[rows] = chosen.reshape(tiles[rows].shape)
    return kept.repeat(block[0], 0).repeat(block[1], 1).reshape(importance.shape)


@given(
    seed=st.integers(0, 2**16),
    values=st.sampled_from([2, 5, 1000]),
    sparsity=st.floats(0, 0.99),
    pattern=st.sampled_from(["1x1", "4x1", "2x2", "1x16"]),
    shape=st.sampled_from([(8, 16), (4, 32), (4, 8, 2, 2)]),
    per_channel=st.booleans(),
    exact=st.booleans(),
)
def test_masks_follow_the_rule(seed, values, sparsity, pattern, shape, per_channel, exact):
    # Small integers: sums are exact in any order, and ties are many.
    importance = np.random.default_rng(seed).integers(0, values, shape).astype(np.float32)
    form = parse_pattern(pattern)
    method, ties = "per_channel" if per_channel else "per_tensor", "exact" if exact else "threshold"
    found = tile_mask(torch.from_numpy(importance), sparsity, form, method, ties)
    expected = oracle(importance, sparsity, form.block or (1, 1), per_channel, exact)
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), expected)


def test_ties_all_go_by_default_and_exactly_the_share_on_request():
    importance = torch.tensor([[0.0, 1, 1, 1, 1, 2, 3, 4]])
    form = parse_pattern("1x1")
    assert tile_mask(importance, 0.25, form, "per_tensor", "threshold").sum() == 3
    assert tile_mask(importance, 0.25, form, "per_tensor", "exact").sum() == 6


def test_the_whole_run_follows_the_schedule():
    """0.8 over epochs 1 to 3: epoch 0 only collects; each later epoch masks by the importance so far."""
    model = Encoder()
    config = {"names": [NAME, "layer.0.fc1.bias"], "start_epoch": 1, "end_epoch": 3, "target_sparsity": 0.8}
    pruner = GradientSensitivityPruner(model, config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weight, total = model.layer[0].fc1.weight, np.zeros((64, 32), np.float32)
    for epoch, sparsity in enumerate([0, 0.8 * 1 / 3, 0.8 * 2 / 3, 0.8]):
        pruner.on_epoch_begin(epoch)
        if epoch:
            assert np.array_equal(pruner.masks[NAME].numpy(), oracle(total, sparsity, (1, 1)))
        for step in range(2):
            pruner.on_step_begin(step)
            if epoch:
                assert not weight[~pruner.masks[NAME]].any()
            backward(model, seed=10 * epoch + step)
            optimizer.step()
            total += np.abs(weight.grad.numpy() * weight.detach().numpy())
            pruner.on_step_end()
            assert np.array_equal(pruner.importance[NAME].numpy(), total)
        pruner.on_epoch_end()
    assert pruner.masks.keys() == {NAME}  # a bias has one dimension, and is never masked
    assert int((weight == 0).sum()) == 64 * 32 - int(pruner.masks[NAME].sum()) == int(64 * 32 * 0.8) + 1


def test_exact_ties_give_the_exact_sparsity():
    model = Encoder()
    pruner = GradientSensitivityPruner(
        model, {"names": [NAME], "target_sparsity": 0.8, "ties": "exact", "end_epoch": 1}
    )
    for epoch in range(2):
        run_epoch(pruner, lambda i: backward(model, seed=i), epoch=epoch)
    assert int((model.layer[0].fc1.weight == 0).sum()) == int(64 * 32 * 0.8)


@pytest.mark.parametrize("pattern", ["4x1", "tile_pattern_4x1"])
def test_tiles_go_as_a_whole_however_the_pattern_is_spelled(pattern):
    model = Encoder()
    pruner = GradientSensitivityPruner(model, {"names": [NAME], "pattern": pattern, "end_epoch": 1, "ties": "exact"})
    for epoch in range(2):
        run_epoch(pruner, lambda i: backward(model, seed=i), epoch=epoch)
    tiles = pruner.masks[NAME].view(16, 4, 32)
    assert torch.equal(tiles.any(1), tiles.all(1))
    assert int((~tiles[:, 0]).sum()) == int(16 * 32 * 0.97)


def test_every_channel_keeps_its_share():
    model = Encoder()
    config = {"names": [NAME], "method": "per_channel", "ties": "exact", "target_sparsity": 0.5, "end_epoch": 1}
    pruner = GradientSensitivityPruner(model, config)
    for epoch in range(2):
        run_epoch(pruner, lambda i: backward(model, seed=i), epoch=epoch)
    assert (pruner.masks[NAME].sum(1) == 16).all()


def test_conv_weights_are_pruned_in_their_shape():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    config = {"names": ["0.weight"], "target_sparsity": 0.5, "end_epoch": 1}
    pruner = GradientSensitivityPruner(model, config)

    def step(i):
        model.zero_grad()
        model(torch.ones(1, 3, 5, 5)).square().sum().backward()

    for epoch in range(2):
        run_epoch(pruner, step, epoch=epoch)
    assert pruner.masks["0.weight"].shape == (8, 3, 3, 3)
    assert int((model[0].weight == 0).sum()) == 8 * 3 * 9 // 2 + 1


def run_alone(module, x, **config):
    """Two epochs of a pruner on a module by itself; its weights before, and the pruner."""
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    pruner = GradientSensitivityPruner(module, {"target_sparsity": 0.5, "end_epoch": 1, "ties": "exact"} | config)

    def step(i):
        module.zero_grad()
        module(x).square().sum().backward()

    for epoch in range(2):
        run_epoch(pruner, step, epoch=epoch)
    return before, pruner


class Experts(nn.Module):
    """Two matrices in one parameter, the second of which the loss hardly depends on; and a class token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up_proj = nn.Parameter(torch.randn(2, 6, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x):
        first, second = self.up_proj
        return (x + self.token[0]) @ first.t() + 1e-3 * (x @ second.t())


@pytest.mark.parametrize(("pattern", "method"), [("1x1", "per_tensor"), ("3x2", "per_tensor"), ("1x1", "per_channel")])
def test_each_matrix_of_a_stack_keeps_its_share(pattern, method):
    model = Experts()
    _, pruner = run_alone(model, torch.ones(3, 8), pattern=pattern, method=method)
    assert pruner.masks.keys() == {"up_proj"}  # a class token is a vector
    score, mask = pruner.importance["up_proj"], pruner.masks["up_proj"]
    block = parse_pattern(pattern).block or (1, 1)
    for i in range(2):
        expected = oracle(score[i].numpy(), 0.5, block, method == "per_channel", exact=True)
        assert np.array_equal(mask[i].numpy(), expected)
    assert not model.up_proj[~mask].any()
    assert (model.up_proj == 0).sum((1, 2)).tolist() == [24, 24]


def test_the_tiles_of_a_stack_lie_in_one_matrix_each():
    # 4 divides the 12 rows of both matrices together, but not the 6 of each.
    with pytest.raises(ValueError, match=r"'up_proj': pattern '4x1' does not divide its shape \[2, 6, 8\]"):
        GradientSensitivityPruner(Experts(), {"names": ["up_proj"], "pattern": "4x1"})


# Under weight norm an output without any weight is 0 / 0, so no tile there may be large.
@pytest.mark.parametrize(("make", "pattern"), [("conv", "2x9"), ("conv3d", "2x9"), ("normed", "1x1")])
def test_a_convolution_is_one_matrix_in_any_number_of_dimensions(make, pattern):
    torch.manual_seed(0)
    if make == "conv3d":
        module, x, name = nn.Conv3d(2, 4, 3), torch.randn(1, 2, 4, 4, 4), "weight"
    elif make == "conv":
        module, x, name = nn.Conv1d(6, 4, 3), torch.randn(2, 6, 9), "weight"
    else:
        module = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 4, 3))
        x, name = torch.randn(2, 6, 9), "parametrizations.weight.original1"
    weight = module.get_parameter(name)
    before, pruner = run_alone(module, x, names=[name], pattern=pattern)
    block = parse_pattern(pattern).block or (1, 1)
    assert np.array_equal(pruner.masks[name].numpy(), oracle(pruner.importance[name].numpy(), 0.5, block, exact=True))
    assert torch.equal(weight, before[name] * pruner.masks[name])
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_a_stack_of_no_matrices_has_an_empty_mask():
    mask = tile_mask(torch.ones(0, 2, 4), 0.5, parse_pattern("1x1"), "per_tensor", "exact", stacked=True)
    assert (mask.shape, mask.dtype) == ((0, 2, 4), torch.bool)


def test_experts_that_transformers_stacks_are_masked():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)  # fmt: skip
    model = transformers.MixtralForCausalLM(config).train()
    names = [name for name, _ in model.named_parameters() if name.endswith("mlp.experts.gate_up_proj")]
    if not names:
        pytest.skip("this transformers stacks no experts")
    pruner = GradientSensitivityPruner(
        model,
        {"names": ["model.layers.*.mlp.experts.gate_up_proj"], "end_epoch": 1, "target_sparsity": 0.5, "ties": "exact"},
    )
    ids = torch.randint(0, 99, (2, 16), generator=torch.Generator().manual_seed(1))

    def step(i):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    for epoch in range(3):
        run_epoch(pruner, step, epoch=epoch)
    assert pruner.masks.keys() == set(names)
    for name in names:
        weight = model.get_parameter(name)
        assert (weight == 0).sum((1, 2)).tolist() == [96 * 32 // 2] * 4
    assert model(ids).logits.isfinite().all()


def test_all_weights_are_pruned_where_none_is_named():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, {"target_sparsity": 0.5, "end_epoch": 1})
    for epoch in range(2):
        run_epoch(pruner, lambda i: backward(model, seed=i), epoch=epoch)
    names = {name for name, weight in model.named_parameters() if weight.dim() == 2}
    assert pruner.masks.keys() == names
    assert pruner.importance.keys() == dict(model.named_parameters()).keys()


def test_a_star_works_elementwise_too():
    pruner = GradientSensitivityPruner(Encoder(), {"names": ["layer.*.fc1.weight"]})
    assert list(pruner.parse_weight_name("layer.*.fc1.weight")) == ["layer.0.fc1.weight", "layer.1.fc1.weight"]


def test_masking_shows_to_autograd():
    model = Encoder()
    pruner = GradientSensitivityPruner(model, {"names": [NAME], "target_sparsity": 0.5})
    run_epoch(pruner, lambda i: backward(model, seed=i))
    pruner.on_epoch_begin(1)
    loss = model(batch().requires_grad_()).sum()
    pruner.on_step_begin(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
