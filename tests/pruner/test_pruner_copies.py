"""A pruner stays with its model: when both are copied or pickled, and when weights are replaced."""

import copy
import pickle

import pytest
import torch
from torch import nn
from training import ENTRIES, Model, same_state, sgd, train, weights

from pruneops.pruner import Pruner

SETTINGS = {"pattern": "1x1", "sparsity": 0.5, "end_step": 6, "frequency": 2}
WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


def zeros(model):
    return sum(int((weight == 0).sum()) for weight in weights(model).values())


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_copy_goes_on_with_the_bits_of_the_original(copied, order):
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 3)
    three = (model, optimizer, pruner)
    copies = copied([three[i] for i in order])
    twin, twin_optimizer, twin_pruner = (copies[order.index(i)] for i in range(3))
    state = pruner.state_dict()
    train(twin, twin_optimizer, 5, first=3)
    assert same_state(pruner.state_dict(), state)
    train(model, optimizer, 5, first=3)
    assert same_state(model, twin)
    assert same_state(pruner, twin_pruner)
    assert zeros(twin) == int(0.5 * ENTRIES)
    assert twin_pruner.detach().sparsity == 0.5
    assert not twin_optimizer._optimizer_step_pre_hooks
    assert optimizer._optimizer_step_pre_hooks


def test_a_copy_of_a_pruner_without_hooks_has_none(copied):
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 6)
    pruner.detach()
    _, twin_optimizer, twin = copied((model, optimizer, pruner))
    assert not twin_optimizer._optimizer_step_pre_hooks
    assert twin.report().sparsity == 0.5
    assert copied(Pruner(model, **SETTINGS)).step == 0


def test_a_copy_holds_each_weight_once(copied):
    """No view of a weight or gradient is kept beside the module's own."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    model(torch.randn(2, 64)).sum().backward()
    pruner = Pruner(model, criterion="magnitude", **SETTINGS)
    pruner.report()
    model.zero_grad()
    assert len(pickle.dumps(copied(pruner))) < 1.5 * len(pickle.dumps(model))


def test_weights_that_are_replaced_are_followed():
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 6)
    dense = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(dense, assign=True)
    model.again.weight = model.fc.weight  # assign unties what was tied
    assert zeros(model) == 0
    report = pruner.detach()
    assert report.sparsity == 0.5
    assert zeros(model) == int(0.5 * ENTRIES)
    for name, mask in report.masks.items():
        assert torch.equal(model.get_submodule(name).weight, dense[f"{name}.weight"] * mask)


def test_training_goes_on_with_weights_that_are_replaced():
    straight, model = Model(), Model()
    for each in (straight, model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        Pruner(each, optimizer, **SETTINGS)
        train(each, optimizer, 3)
        if each is model:
            model.mlp.weight = nn.Parameter(model.mlp.weight.detach().clone())
            with pytest.raises(ValueError, match="does not hold the weight of 'mlp'"):
                optimizer.step()
            optimizer.param_groups[0]["params"] = list(model.parameters())
        train(each, optimizer, 4, first=3)
    assert same_state(straight, model)
    assert zeros(model) == int(0.5 * ENTRIES)


@pytest.mark.parametrize(
    "replace",
    [
        lambda model: setattr(model.mlp, "weight", nn.Parameter(torch.ones(8, 20))),
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.mlp),
        lambda model: delattr(model.mlp, "weight"),
        lambda model: setattr(model.again, "weight", nn.Parameter(torch.ones(16, 8))),
        lambda model: setattr(model.fc, "weight", nn.Parameter(torch.ones(16, 8))),
    ],
    ids=["shape", "parametrized", "none", "untied", "untied-first"],
)
def test_what_a_mask_does_not_fit_is_named(replace):
    model = Model()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 6)
    replace(model)
    for call in (pruner.on_before_optimizer_step, pruner.report, pruner.apply_masks, optimizer.step):
        with pytest.raises(
            ValueError, match=r"the weight of '(mlp|fc)' has been replaced by what its mask does not fit"
        ):
            call()
