"""Layers that have no gradient in a step, such as experts to which nothing was routed."""

import pytest
import torch
from calls import Calls
from torch import nn

from pruneops.pruner import Pruner


class Experts(nn.Module):
    """Each step goes through some of its layers; the others have no gradient."""

    def __init__(self, count=3):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(count))
        self.chosen = range(count)

    def forward(self, x):
        return sum(self.experts[i](x) for i in self.chosen)


def step(model, optimizer, number, chosen):
    model.chosen = chosen
    generator = torch.Generator().manual_seed(number)
    model(torch.randn(4, 8, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


ROUTES = [[0, 1], [0, 2], [1], [0, 1], [2], [0], [0, 1, 2]]


@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [("snip_momentum", "1x1"), ("snip_momentum", "4x1"), ("snip_momentum_block", "4x1"), ("retrain_free", "4x1"),
     ("snip", "1x1"), ("gradient", "4x1")],
)  # fmt: skip
def test_a_missing_gradient_counts_as_zeros(criterion, pattern):
    """To the bit: the twin is given the zeros."""
    ends = []
    for filled in (False, True):
        model = Experts()
        # Without momentum or decay a gradient of zeros leaves a weight alone, as one that is missing does.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if filled:
            optimizer.register_step_pre_hook(lambda *_, model=model: fill(model))
        settings = {"sparsity": 0.5, "start_step": 3, "end_step": 7, "frequency": 1}
        pruner = Pruner(model, optimizer, criterion=criterion, pattern=pattern, **settings)
        for number, chosen in enumerate(ROUTES):
            step(model, optimizer, number, chosen)
        ends.append((model, pruner))
    (first, pruner), (second, twin) = ends
    assert pruner.report().sparsity == 0.5
    for name, score in pruner.scores.items():
        assert torch.equal(score, twin.scores[name])
        assert torch.equal(pruner.masks[name], twin.masks[name])
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


def fill(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_momentum_decays():
    model = Experts(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, optimizer, pattern="1x1", sparsity=0.5, start_step=90, end_step=99)
    step(model, optimizer, 0, [0, 1])
    before = {name: score.clone() for name, score in pruner.scores.items()}
    step(model, optimizer, 1, [0])
    assert torch.equal(pruner.scores["experts.1"], torch.tensor(0.9) * before["experts.1"])
    assert (pruner.scores["experts.0"] > 0.9 * before["experts.0"]).any()


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_it_is_still_one_call(pattern):
    model = Experts()
    pruner = Pruner(model, pattern=pattern, sparsity=0.5, start_step=90, end_step=99)
    model.chosen = [1]
    model(torch.randn(4, 8)).square().sum().backward()
    with Calls() as calls:
        pruner.on_before_optimizer_step()
    assert calls.ours == [f"update_{'block_' if pattern == '4x1' else ''}scores_"]


@pytest.mark.parametrize("criterion", ["snip_momentum", "snip"])
def test_a_layer_that_never_had_a_gradient_is_named_when_masks_are_due(criterion):
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"pattern": "1x1", "sparsity": 0.5, "start_step": 3, "end_step": 5, "frequency": 1}
    pruner = Pruner(model, optimizer, criterion=criterion, **settings)
    step(model, optimizer, 0, [0])
    step(model, optimizer, 1, [2])
    before = {name: score.clone() for name, score in pruner.scores.items()}
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"due at step 3, but 'experts\.1' has had no gradient so far"):
        step(model, optimizer, 2, [0])
    assert all(torch.equal(score, before[name]) for name, score in pruner.scores.items())
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), weights, strict=True))
    step(model, optimizer, 2, [1])
    assert pruner.step == 3


def test_a_run_that_is_resumed_does_not_ask_again():
    states = []
    for stop in (None, 2):
        model = Experts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        settings = {"pattern": "1x1", "sparsity": 0.5, "start_step": 3, "end_step": 5, "frequency": 1}
        pruner = Pruner(model, optimizer, **settings)
        for number, chosen in enumerate([[0, 1], [2], [0], [0], [0]]):
            if number == stop:
                state = pruner.state_dict()
                pruner.remove_hooks()
                pruner = Pruner(model, optimizer, **settings)
                pruner.load_state_dict(state)
            step(model, optimizer, number, chosen)
        states.append(pruner.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
