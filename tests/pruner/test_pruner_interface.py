"""Pruner in a training loop: by hand or by hooks, detached, in how many calls and how much memory; its errors."""

import numpy as np
import pytest
import torch
from calls import TO_HOST, Calls
from torch import nn
from training import ENTRIES, Conv1D, Model, blocks_of, loss_of, sgd, train, weights

from pruneops.pruner import Pruner


def test_by_hand_gives_the_bits_of_the_hooks():
    first, second = Model(), Model()
    settings = {"pattern": "4x1", "sparsity": 0.6, "end_step": 8, "frequency": 2}
    hooked = sgd(first)
    Pruner(first, hooked, **settings)
    train(first, hooked, 10)
    optimizer = sgd(second)
    pruner = Pruner(second, **settings)
    for step in range(10):
        pruner.on_step_begin()
        loss_of(second, step).backward()
        pruner.on_before_optimizer_step()
        optimizer.step()
        pruner.on_after_optimizer_step()
        optimizer.zero_grad()
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


def test_detach_leaves_a_plain_model_with_zeros():
    model = Model()
    plain = set(model.state_dict())
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, end_step=4)
    train(model, optimizer, 4)
    report = pruner.detach()
    assert set(model.state_dict()) == plain
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    zeros = sum(int((weight == 0).sum()) for weight in weights(model).values())
    assert zeros == report.total - report.kept == int(0.5 * ENTRIES)
    train(model, optimizer, 1, first=4)
    assert sum(int((weight == 0).sum()) for weight in weights(model).values()) < zeros


def test_detach_warns_when_the_schedule_has_not_ended():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, schedule="linear", end_step=4)
    train(model, optimizer, 2)
    with pytest.warns(UserWarning, match=r"after step 2 of 4, at the scheduled sparsity 0\.25 instead of 0\.5"):
        report = pruner.detach()
    assert report.sparsity == 0.25


@pytest.mark.parametrize("layer", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [
        ("snip_momentum", "1x1"), ("snip_momentum", "2:4"), ("snip_momentum", "4x1"), ("snip_momentum_block", "4x1"),
        ("retrain_free", "4x1"),
    ],
)  # fmt: skip
def test_a_step_without_a_selection_is_two_calls_for_all_layers(criterion, pattern, layer):
    """And it asks the device for no number."""
    model = nn.Sequential(*(layer(8, 8) for _ in range(5)))
    settings = {"sparsity": None if pattern == "2:4" else 0.5, "schedule": "one_shot", "end_step": 1}
    pruner = Pruner(model, criterion=criterion, pattern=pattern, **settings)
    model(torch.randn(3, 8)).square().sum().backward()
    for _ in range(2):
        with Calls() as calls:
            pruner.on_before_optimizer_step()
            pruner.on_after_optimizer_step()
    assert calls.ours == [f"update_{'block_' if pattern == '4x1' else ''}scores_", "apply_masks_"]
    assert not calls.others & (TO_HOST | {"cat"})


def test_masks_are_packed_and_block_scores_are_small():
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, pattern="4x1", sparsity=0.5, end_step=2)
    for _ in range(2):
        model(torch.randn(3, 64)).square().sum().backward()
        optimizer.step()
    (group,) = pruner._groups
    assert group.stored_masks[0].dtype == torch.uint8
    assert group.stored_masks[0].numel() == 64 * 64 // 8
    assert group.masks["0"].numel() == 64 * 64 // 4 // 8
    assert pruner.scores["0"].shape == (16, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end_step": None}, "end_step is missing"),
        ({"criterion": "snipp"}, "unknown criterion 'snipp'"),
        ({"pattern": "4x"}, "got '4x'"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0"),
        ({"scope": "globl"}, "scope must be one of global, local, row, got 'globl'"),
        ({"schedule": "cube"}, "schedule must be one of"),
        ({"include": "encoder.*"}, "'encoder.*' matches no layer"),
        ({"min_sparsity": 0.9}, "outside of min_sparsity=0.9"),
        (
            {"pattern": "1x1", "sparsity": 0.503, "min_sparsity": 0.501, "max_sparsity": 0.505},
            "no whole number of them",
        ),
        ({"pattern": "3x1"}, "no layer is left"),
        ({"criterion": "snip_momentum_block", "pattern": "1x1"}, "pattern '1x1' has none"),
        ({"pattern": "2:4", "sparsity": 0.75}, "'2:4' gives sparsity 0.5, got sparsity=0.75"),
        ({"rules": []}, "rules must be"),
        ({"rules": [{"target": "fc"}]}, r"rules\[0\] has an unknown setting 'target'"),
        ({"rules": [{"targets": "fc", "include": "mlp"}]}, "'include' is another name of it"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pruner. pattern")
def test_errors_before_the_first_step(settings, message):
    model = Model()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=message):
        Pruner(model, optimizer, **{"pattern": "4x1", "sparsity": 0.5, "end_step": 5} | settings)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"criterion_config": {"alhpa": 0.5}}, ValueError,
            "criterion_config has an unknown setting 'alhpa'; criterion 'snip_momentum' knows alpha, beta, crit",
        ),
        # What a pruner decides itself would be ignored.
        ({"criterion_config": {"pattern": "2x2"}}, ValueError, "unknown setting 'pattern'"),
        (
            {"rules": [{"criterion": "magnitude", "criterion_config": {"alpha": 0.5}}]}, ValueError,
            "unknown setting 'alpha'; criterion 'magnitude' knows criterion_reduce_type, low_memory_usage",
        ),
        ({"criterion_config": ["alpha"]}, TypeError, "criterion_config must map names to settings, got list"),
        ({"criterion_config": {"alpha": "x"}}, TypeError, "SnipMomentumCriterion: alpha must be a number, got str"),
        ({"criterion_config": {"beta": "1"}}, TypeError, "beta must be a number, got str"),
        ({"sparsity": "8e-1"}, TypeError, "sparsity must be a number, got '8e-1'"),
        ({"initial_sparsity": "0"}, TypeError, "initial_sparsity must be a number, got '0'"),
        ({"min_sparsity": [0.1]}, TypeError, r"min_sparsity must be a number, got \[0.1\]"),
    ],
)  # fmt: skip
def test_settings_that_would_be_ignored_or_read_wrongly(settings, error, message):
    model = Model()
    optimizer = sgd(model)
    with pytest.raises(error, match=message):
        Pruner(model, optimizer, **{"pattern": "4x1", "sparsity": 0.5, "end_step": 5} | settings)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_criterion_has_no_settings_of_its_own_by_default():
    model = Model()
    pruner = Pruner(model, end_step=5, rules=[{"targets": "fc", "criterion_config": None}])
    assert pruner._groups[0].criterion.alpha == 0.9


def test_a_layer_that_the_pattern_does_not_divide():
    model = Model()
    settings = {"include": ["fc", "lm_head"], "pattern": "4x1", "sparsity": 0.5, "end_step": 5}
    with pytest.warns(UserWarning, match=r"does not divide 1 layers: lm_head \[3, 8\]"):
        pruner = Pruner(model, **settings)
    assert pruner.report().skipped == ("lm_head",)
    with pytest.raises(ValueError, match="does not divide"):
        Pruner(model, on_indivisible="error", **settings)


def test_the_optimizer_must_hold_what_is_pruned():
    model = Model()
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ValueError, match=r"does not hold the weight of 'conv'.*DeepSpeed"):
        Pruner(model, torch.optim.SGD(copies, lr=0.1), end_step=5)
    by_hand = "With several optimizers give none, and call on_before_optimizer_step"
    with pytest.raises(TypeError, match=rf"optimizer must be a torch.optim.Optimizer, got list\. {by_hand}"):
        Pruner(model, [sgd(model), sgd(model)], end_step=5)
    with pytest.raises(ValueError, match=f"does not hold the weight of 'fc'.*{by_hand}"):
        Pruner(model, torch.optim.SGD(model.conv.parameters(), lr=0.1), end_step=5)
    # Parameters that are exchanged later are noticed before they are trained.
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=5)
    optimizer.param_groups[0]["params"] = copies
    with pytest.raises(ValueError, match="does not hold the weight of 'conv'"):
        optimizer.step()


def test_frozen_layers_can_be_pruned_by_magnitude():
    model = Model()
    model.fc.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pruner = Pruner(model, optimizer, criterion="magnitude", pattern="1x1", sparsity=0.5, end_step=3)
    train(model, optimizer, 3)
    assert pruner.detach().sparsity == 0.5


def test_a_weight_that_is_frozen_is_named():
    model = Model()
    optimizer = sgd(model)
    model.mlp.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'snip_momentum' reads gradients, but 1 of 3 weights are frozen .*'mlp'"):
        Pruner(model, optimizer, end_step=3)
    assert not optimizer._optimizer_step_pre_hooks
    Pruner(model, end_step=3, rules=[{"targets": "mlp", "criterion": "magnitude"}, {}])


def test_a_weight_that_is_frozen_on_the_way_is_named():
    model = Model()
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=3)
    train(model, optimizer, 1)
    model.mlp.weight.requires_grad_(False)
    loss_of(model, 1).backward()
    before = model.conv.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'mlp.weight', which is frozen"):
        optimizer.step()
    assert torch.equal(model.conv.weight, before)


def test_a_closure_hides_the_gradients():
    model = Model()
    optimizer = sgd(model)
    Pruner(model, optimizer, end_step=3)
    with pytest.raises(ValueError, match="with a closure"):
        optimizer.step(lambda: loss_of(model, 0))


def test_block_scores_of_a_weight_stored_in_by_out_are_those_of_its_transpose():
    """Such weights are read as they lie, with the blocks turned over."""
    for pattern, block in (("4x1", (4, 1)), ("2x4", (2, 4)), ("channelx1", (-1, 1)), ("1xchannel", (1, -1))):
        model = Model()
        pruner = Pruner(model, include="mlp", pattern=pattern, sparsity=0.5, schedule="one_shot", end_step=9)
        loss_of(model, 0).backward()
        pruner.on_before_optimizer_step()
        w, g = blocks_of(model.mlp.weight.t(), block), blocks_of(model.mlp.weight.grad.t(), block)
        np.testing.assert_allclose(pruner.scores["mlp"].numpy(), np.abs(w * g).mean(-1), rtol=1e-5)
        assert pruner.state_dict()["scores.mlp"].is_contiguous()
