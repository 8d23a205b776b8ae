"""Experts that one parameter stacks, pruned while they are trained, against the same as modules of their own."""

import copy

import pytest
import torch
from torch import nn
from training import Conv1D, sgd

from pruneops import prune
from pruneops.pruner import Pruner

NAMES = ["experts.up.0", "experts.up.1", "experts.up.2"]


class Experts(nn.Module):
    """As transformers stacks them."""

    def __init__(self, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(3, 8, 16))


class Apart(nn.ModuleDict):
    """The experts under the names that they have when they are stacked."""


def stacked(is_transposed=False):
    return nn.ModuleDict({"experts": Experts(is_transposed)})


def apart(is_transposed=False):
    weights = Experts(is_transposed).up.detach()
    layers = Apart()
    for i, weight in enumerate(weights):
        layers[str(i)] = Conv1D(16, 8) if is_transposed else nn.Linear(16, 8)
        layers[str(i)].weight = nn.Parameter(weight.clone())
    experts = nn.Module()
    experts.up = layers
    return nn.ModuleDict({"experts": experts})


def gradients(step, missing=()):
    generator = torch.Generator().manual_seed(step)
    found = torch.randn(3, 8, 16, generator=generator)
    found[list(missing)] = 0
    return found


def train(model, optimizer, steps, first=0):
    """Steps with gradients that are given, so that no product is rounded in another order."""
    for step in range(first, first + steps):
        grads = gradients(step, missing=[step % 3])
        experts = model["experts"]
        if isinstance(experts, Experts):
            experts.up.grad = grads
        else:
            for i, grad in enumerate(grads):
                experts.up[str(i)].weight.grad = grad
        optimizer.step()
        optimizer.zero_grad()


def weights(model):
    experts = model["experts"]
    if isinstance(experts, Experts):
        return experts.up.detach().clone()
    return torch.stack([layer.weight.detach() for layer in experts.up.values()])


SETTINGS = [
    ("magnitude", "1x1"), ("snip", "4x2"), ("snip_momentum", "1x1"), ("snip_momentum", "4x1"), ("snip_momentum", "2:4"),
    ("snip_momentum", "channelx1"), ("snip_momentum_block", "2x4"), ("retrain_free", "1x4"), ("test_entries", "4x1"),
]  # fmt: skip


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("criterion", "pattern"), SETTINGS)
def test_stacked_experts_are_pruned_as_modules_are(criterion, pattern, is_transposed):
    found = []
    for make in (stacked, apart):
        model = make(is_transposed)
        optimizer = sgd(model)
        pruner = Pruner(model, optimizer, criterion=criterion, pattern=pattern, sparsity=0.5, end_step=5, frequency=1,
                        mask_gradients=True, mask_optimizer_state=True)  # fmt: skip
        assert [layer.name for layer in pruner.layers] == NAMES
        train(model, optimizer, 7)
        masks = pruner.masks
        assert torch.equal(weights(model) == 0, ~torch.stack([masks[name] for name in NAMES]))
        found.append((weights(model), torch.stack([pruner.scores[name] for name in NAMES])))
        report = pruner.detach()
        assert (report.sparsity, report.unlayered) == (0.5, {})
        assert all(torch.equal(report.masks[name], masks[name]) for name in NAMES)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_rules_share_a_stack():
    model = stacked()
    optimizer = sgd(model)
    rules = [{"include": "*.up.1", "pattern": "2:4", "sparsity": 0.5}, {"pattern": "1x1", "sparsity": 0.25}]
    pruner = Pruner(model, optimizer, rules=rules, end_step=2, frequency=1)
    train(model, optimizer, 2)
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    assert kept["experts.up.1"] == 64
    assert kept["experts.up.0"] + kept["experts.up.2"] == 192
    assert (pruner.masks["experts.up.1"].reshape(-1, 4).sum(1) == 2).all()


def test_a_step_without_any_gradient_counts_as_zeros():
    model = stacked()
    pruner = Pruner(model, None, criterion="snip_momentum", pattern="1x1", sparsity=0.5, start_step=5, end_step=9)
    model["experts"].up.grad = gradients(0)
    pruner.on_before_optimizer_step()
    scores = {name: score.clone() for name, score in pruner.scores.items()}
    model["experts"].up.grad = None
    pruner.on_after_optimizer_step()
    pruner.on_before_optimizer_step()
    for name, score in pruner.scores.items():
        torch.testing.assert_close(score, 0.9 * scores[name])


def test_copied_and_resumed():
    settings = {"criterion": "snip_momentum", "pattern": "4x1", "sparsity": 0.5, "end_step": 4, "frequency": 1}
    straight = stacked()
    optimizer = sgd(straight)
    pruner = Pruner(straight, optimizer, **settings)
    train(straight, optimizer, 2)

    twin, twin_optimizer, _ = copy.deepcopy((straight, optimizer, pruner))
    resumed = stacked()
    late = sgd(resumed)
    rest = Pruner(resumed, late, **settings)
    resumed.load_state_dict(straight.state_dict())
    late.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rest.load_state_dict(pruner.state_dict())
    for model, steps in ((straight, optimizer), (twin, twin_optimizer), (resumed, late)):
        train(model, steps, 3, first=2)
    assert int((weights(straight) == 0).sum()) == 3 * 128 // 2
    assert torch.equal(weights(twin), weights(straight))
    assert torch.equal(weights(resumed), weights(straight))


def test_a_stack_that_is_replaced_is_followed():
    model = stacked()
    pruner = Pruner(model, None, criterion="snip", pattern="1x1", sparsity=0.5, end_step=2, frequency=1)
    for step in range(2):
        model.load_state_dict({"experts.up": torch.ones(3, 8, 16)}, assign=True)
        model["experts"].up.grad = gradients(step)
        pruner.on_before_optimizer_step()
        pruner.on_after_optimizer_step()
    assert torch.equal(weights(model) == 0, ~torch.stack([pruner.masks[name] for name in NAMES]))
    assert int((weights(model) == 0).sum()) == 3 * 128 // 2


def test_frozen_experts_are_named():
    model = stacked()
    model["experts"].up.requires_grad_(False)
    with pytest.raises(ValueError, match=r"3 of 3 weights are frozen \(requires_grad=False\), 'experts.up.0' first"):
        Pruner(model, None, criterion="snip", pattern="1x1", sparsity=0.5, end_step=1)
    Pruner(model, None, criterion="magnitude", pattern="1x1", sparsity=0.5, end_step=1).on_before_optimizer_step()


def test_one_shot_and_one_step_agree():
    model, other = stacked(True), stacked(True)
    for each in (model, other):
        each["experts"].up.grad = gradients(1)
    masks = prune(model, 0.5, criterion="snip", pattern="4x1").masks
    pruner = Pruner(other, None, criterion="snip", pattern="4x1", sparsity=0.5, end_step=1)
    pruner.on_before_optimizer_step()
    pruner.on_after_optimizer_step()
    assert all(torch.equal(masks[name], pruner.masks[name]) for name in NAMES)
